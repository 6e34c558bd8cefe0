"""Reading images: what Pillow itself says they show, whatever their form, or an error that names the file."""

import struct

import numpy as np
import pytest
from image_files import chunk
from PIL import Image, ImageOps

from andfast.data import images
from andfast.data.images import ImageError, image_size, read_image, read_picture, write_png


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_written_png_reads_back(tmp_path, pixels):
    write_png(tmp_path / "new" / "a.png", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "a.png"), pixels)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_only_images_are_written(tmp_path, array):
    with pytest.raises(ValueError, match="uint8"):
        write_png(tmp_path / "a.png", array)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, pixels, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    read = read_image(path)
    np.testing.assert_array_equal(read, expected)
    np.testing.assert_array_equal(read_picture(path).pixels, expected)
    assert read.shape[:2] == ((30, 20) if orientation >= 5 else (20, 30))
    assert image_size(path) == read.shape[:2]


def test_unreadable_files_are_named_with_the_cause(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(images, "free_memory", lambda device: 2**30)
    write_png(tmp_path / "whole.png", pixels)
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 16, 2, 0, 0, 0))
    (tmp_path / "huge.png").write_bytes(whole[:8] + header + whole[33:])
    (tmp_path / "folder.png").mkdir()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    causes = {
        "truncated.png": "truncated",
        "zero.png": "not an image",
        "text.jpg": "not an image",
        "script.png": "not an image",
        "huge.png": "pixels",
        "folder.png": "directory",
        "float.tiff": "floating-point",
        "missing.png": "No such file",
    }
    for name, cause in causes.items():
        for read in (read_image, read_picture):
            with pytest.raises(ImageError, match=rf"{name}: .*{cause}"):
                read(tmp_path / name)
    for name in ("zero.png", "text.jpg", "huge.png", "folder.png", "missing.png"):
        with pytest.raises(ImageError, match=rf"{name}: "):
            image_size(tmp_path / name)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "ppm", "tiff", "lzw.tiff", "fax.tiff"])
def test_what_pillow_takes_for_too_many_pixels_is_read(tmp_path, pixels, suffix, monkeypatch):
    path, more = tmp_path / f"a.{suffix}", {"lzw": "tiff_lzw", "fax": "group4"}.get(suffix[:3])
    image = Image.fromarray(pixels).convert("1" if suffix.startswith("fax") else "RGB")
    image.save(path, **{"compression": more} if more else {})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(path).shape == (20, 30, 3)
    assert read_picture(path, 600).pixels.shape[:2] == image_size(path) == (20, 30)
    with pytest.raises(ImageError, match=rf"{suffix}: 30 x 20 pixels; more than 599 are refused"):
        read_picture(path, 599)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_large_images_are_read_if_there_is_memory_for_them(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    write_png(tmp_path / "a.png", pixels)
    for free in (None, 2**30):
        monkeypatch.setattr(images, "free_memory", lambda device, free=free: free)
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)
    monkeypatch.setattr(images, "free_memory", lambda device: 10_000)
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match=r"a\.png: 30 x 20 pixels; to read them needs about 0.0 GiB of"):
            read(tmp_path / "a.png")


def test_size_comes_from_the_header(tmp_path, pixels):
    write_png(tmp_path / "whole.png", pixels)
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:100])
    assert image_size(tmp_path / "cut.png") == (20, 30)
