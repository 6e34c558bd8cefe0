"""The page's first tab without the page: what comes out is what `andfast.upscale` gives."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from upscaling_models import compact, noise, picture

import andfast
from andfast.data.images import DataError
from andfast.demo import enlarging
from andfast.demo.enlarging import OWN, archive, enlarge, flat, glance, parse_factor, thumbnail
from andfast.demo.errors import explain
from andfast.demo.models import Offered
from andfast.inference import formats
from andfast.inference.formats import Picture, read_picture, write_picture
from andfast.inference.tiles import NonFiniteError
from andfast.inference.upscaler import Upscaler
from andfast.models.frozen import FrozenModule

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MANY = 10**6


@pytest.fixture(scope="module")
def offered():
    model = compact()
    return Offered("tiny", "tiny.pth", Upscaler(model), FrozenModule(model, torch.float32))


def opened(path):
    return np.asarray(Image.open(path))


def test_the_file_the_slider_and_the_line(tmp_path, offered):
    pixels, told = picture(tmp_path / "a.png", 21, 34), []
    made = enlarge(tmp_path / "a.png", offered, None, tmp_path, MANY, told.append)
    expected = andfast.upscale_image(pixels, compact())
    assert made.file == tmp_path / "a_x2.png"
    assert np.array_equal(opened(made.file), expected)
    assert np.array_equal(opened(made.after), expected)
    interpolated = Image.fromarray(pixels).resize((68, 42), Image.Resampling.BICUBIC)
    assert np.array_equal(opened(made.before), np.asarray(interpolated))
    assert made.line.startswith("a.png, 34 x 21 → 68 x 42 pixels, RGB, 8 bits; ")
    assert made.line.endswith(" s by tiny on cpu in float32")
    assert told == [1.0]


def test_all_that_a_file_holds_is_kept(tmp_path, offered):
    """16 bits, transparency and the profile; the slider shows it over white in 8 bits, with the profile."""
    pixels = noise(12, 9, 4, np.uint16)
    write_picture(tmp_path / "a.tif", Picture(pixels, SRGB))
    told = []
    made = enlarge(tmp_path / "a.tif", offered, 1.5, tmp_path, MANY, told.append)
    found = read_picture(made.file)
    assert found.icc == SRGB
    assert np.array_equal(found.pixels, andfast.upscale_image(pixels, compact(), 1.5))
    assert "9 x 12 → 14 x 18 pixels, RGB with alpha, 16 bits, with a colour profile" in made.line
    for path in (made.before, made.after):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (14, 18))
            assert image.info["icc_profile"] == SRGB
    assert told == [0.5, 1.0]


def test_transparent_pixels_are_shown_white():
    pixels = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 51]]], np.uint8)
    assert np.asarray(flat(Picture(pixels))).tolist() == [[[255] * 3, [10, 20, 30], [204] * 3]]
    gray = np.array([[[0, 0], [65535, 65535], [257 * 7, 65535]]], np.uint16)
    assert np.asarray(flat(Picture(gray))).tolist() == [[[255] * 3, [255] * 3, [7] * 3]]


def test_of_large_results_the_slider_shows_the_middle(tmp_path, offered, monkeypatch):
    monkeypatch.setattr(enlarging, "SHOWN", 20)
    pixels = picture(tmp_path / "a.png", 8, 30)
    made = enlarge(tmp_path / "a.png", offered, None, tmp_path, MANY)
    result = opened(made.file)
    assert result.shape == (16, 60, 3)
    assert np.array_equal(opened(made.after), result[:, 20:40])
    whole = np.asarray(Image.fromarray(pixels).resize((60, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(opened(made.before), whole[:, 20:40])
    assert made.line.endswith("The slider shows the middle of it")


def test_other_formats(tmp_path, offered):
    """With the quality that is asked for; what they cannot hold is said."""
    pixels = picture(tmp_path / "a.png", 21, 34)
    expected, sizes = andfast.upscale_image(pixels, compact()).astype(int), []
    for quality in (95, 30):
        made = enlarge(tmp_path / "a.png", offered, None, tmp_path, MANY, suffix=".jpg", quality=quality)
        assert made.file == tmp_path / "a_x2.jpg"
        sizes.append(made.file.stat().st_size)
        if quality == 95:
            assert np.abs(opened(made.file) - expected).mean() < 8
        assert np.array_equal(opened(made.after), expected)  # the slider shows what was computed
    assert sizes[1] < sizes[0]
    write_picture(tmp_path / "b.png", Picture(pixels, colour={b"cICP": bytes([9, 16, 0, 1])}))
    made = enlarge(tmp_path / "b.png", offered, None, tmp_path, MANY, suffix=".tif")
    assert "; cICP, which tell of its colours, are left out: PNG alone has them" in made.line


def test_several_results_in_one_file(tmp_path):
    """Each under a name of its own on every system; what is packed is not kept twice."""
    files = [tmp_path / str(index) / name for index, name in enumerate(["a_x2.png", "A_x2.png", "b.jpg", "a_x2.png"])]
    for index, path in enumerate(files):
        path.parent.mkdir()
        path.write_bytes(bytes([index]) * 1000)
    archive(files, tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as file:
        assert file.testzip() is None
        assert file.namelist() == ["a_x2.png", "A_x2 (2).png", "b.jpg", "a_x2 (3).png"]
        assert [file.read(name)[:1] for name in file.namelist()] == [b"\0", b"\1", b"\2", b"\3"]
    assert not any(path.exists() for path in files)


@pytest.mark.parametrize(("text", "factor"), [(OWN, None), ("3", 3), ("x2.5", 2.5), (" 0.5 ", 0.5)])
def test_output_scales(text, factor):
    assert parse_factor(text) == factor


@pytest.mark.parametrize("text", ["", "two", "0", "-1", "65", "nan", "inf"])
def test_no_output_scale(text):
    with pytest.raises(ValueError, match="output scale"):
        parse_factor(text)


def test_what_the_page_says_before(tmp_path):
    write_picture(tmp_path / "a.tif", Picture(noise(700, 1400, 1, np.uint16)))
    image, words = thumbnail(tmp_path / "a.tif", MANY)
    assert image.shape == (320, 640, 3)
    assert words == "a.tif: 1400 x 700 pixels, gray, 16 bits"
    assert glance(tmp_path / "a.tif", MANY) == "a.tif: 1400 x 700 pixels"
    for look in (glance, thumbnail):
        with pytest.raises(DataError, match="1400 x 700 pixels; more than 979999 are refused"):
            look(tmp_path / "a.tif", 979_999)


def said(error, path=Path("/somewhere/0a1b/a.png")):
    return explain(error, path)


def test_images_that_are_refused(tmp_path, offered, monkeypatch):
    picture(tmp_path / "a.png", 20, 30)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(DataError) as large:
        enlarge(tmp_path / "a.png", offered, None, tmp_path, 599)
    assert said(large.value, tmp_path / "a.png") == "a.png: 30 x 20 pixels; more than 599 are refused (--max-pixels)"
    with pytest.raises(DataError) as long:
        enlarge(tmp_path / "a.png", offered, 1000, tmp_path, MANY, suffix=".webp")
    assert said(long.value, tmp_path / "a.png").startswith("a.png: 30000 x 20000 pixels are too many for .webp")
    with pytest.raises(DataError) as damaged:
        enlarge(tmp_path / "b.png", offered, None, tmp_path, MANY)
    words = said(damaged.value, tmp_path / "b.png")
    assert words.startswith("b.png: ")
    assert str(tmp_path) not in words
    monkeypatch.setattr(formats, "free_memory", lambda device: 1000)
    with pytest.raises(DataError, match="the result, 60 x 40 pixels, needs"):
        enlarge(tmp_path / "a.png", offered, None, tmp_path, MANY)


def test_what_the_page_says_of_other_failures():
    assert said(torch.OutOfMemoryError("CUDA out of memory. Tried to")).startswith("a.png: out of memory; try")
    assert said(MemoryError("needs about 3.0 GiB of 1.0 GiB free")).startswith(
        "a.png: out of memory (needs about 3.0 GiB of 1.0 GiB free); try"
    )
    assert said(NonFiniteError("the model's output is not finite")).endswith("--precision float32")
    # Results lie beside the folder of the upload, not below it.
    for place in ("/somewhere/tmp2c3d/a_x2.png", "/somewhere/0a1b/a.png", None):
        assert said(OSError(28, "No space left on device", place)) == "a.png: No space left on device"
    assert said(OSError("cannot write /somewhere/0a1b/a.png")) == "cannot write a.png"
    assert said(RuntimeError("a mistake")) is None
