"""HEIC, HEIF and AVIF files: their pixels against those they were made of, and what is said where they are not read."""

import importlib.util
import io
import struct
import sys

import numpy as np
import pytest
from image_files import SRGB
from PIL import Image, features
from upscaling_models import noise

from andfast.data.exif import carried_exif
from andfast.data.heif import kind_of
from andfast.data.images import ImageError, image_size, read_image, read_picture
from andfast.data.listing import list_folder, skipped_message

HAS_AVIF = importlib.util.find_spec("PIL._avif") is not None
needs_avif = pytest.mark.skipif(not HAS_AVIF, reason="Pillow is built without AVIF")


@pytest.fixture
def pillow_heif():
    return pytest.importorskip("pillow_heif")


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Camera", orientation
    return exif.tobytes()


def heic(pillow_heif, mode, pixels, **options):
    """An HEIC file without losses, for modes of libheif."""
    file = io.BytesIO()
    size = pixels.shape[1::-1]
    pillow_heif.encode(mode, size, pixels.tobytes(), file, quality=-1, chroma=444, matrix_coefficients=0, **options)
    return file.getvalue()


KINDS = [("L", 1, 8), ("RGB", 3, 8), ("RGBA", 4, 8), ("I;16", 1, 10), ("RGB;16", 3, 10), ("RGBA;16", 4, 10)]


@pytest.mark.parametrize(("mode", "channels", "bits"), KINDS)
def test_pixels_of_heic(tmp_path, pillow_heif, mode, channels, bits):
    """8 bits as they are; 10 bits become 16, from black to white."""
    pixels = noise(21, 34, channels, np.uint8 if bits == 8 else np.uint16)
    pixels[0, 0], pixels[0, 1] = 0, np.iinfo(pixels.dtype).max
    path = tmp_path / "a.heic"
    path.write_bytes(heic(pillow_heif, mode, pixels))
    found = read_picture(path)
    expected = pixels if bits == 8 else np.rint((pixels >> 6) * (65535 / 1023)).astype(np.uint16)
    assert (found.pixels.dtype, found.notes, found.colour, found.icc) == (pixels.dtype, (), {}, None)
    np.testing.assert_array_equal(found.pixels, expected)
    assert image_size(path) == (21, 34) == read_image(path).shape[:2]


def test_colours_of_heic_that_are_multiplied_by_alpha(tmp_path, pillow_heif):
    pixels = noise(16, 24, 4)
    pixels[..., 3] |= 64
    multiplied = np.frombuffer(Image.fromarray(pixels).convert("RGBa").tobytes(), np.uint8).reshape(pixels.shape)
    (tmp_path / "a.heic").write_bytes(heic(pillow_heif, "RGBa", multiplied))
    found = read_picture(tmp_path / "a.heic").pixels
    assert np.abs(found.astype(int) - pixels).max() <= 255 / 64 / 2 + 1
    np.testing.assert_array_equal(found[..., 3], pixels[..., 3])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["heic", pytest.param("avif", marks=needs_avif)])
def test_images_are_turned_once(tmp_path, kind, orientation):
    """The file says how it is turned (irot, imir), and so does its EXIF data: that is not applied again."""
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :24], stored[:16, 24:], stored[16:, :24] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    expected = Image.fromarray(stored)
    turn = {
        2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
        8: "ROTATE_90",
    }.get(orientation)  # fmt: skip
    expected = np.asarray(expected.transpose(Image.Transpose[turn]) if turn else expected)
    path = tmp_path / f"a.{kind}"
    if kind == "heic":
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.from_pillow(Image.fromarray(stored)).save(path, exif=exif_of(orientation), quality=95, chroma=444)
    else:
        Image.fromarray(stored).save(path, quality=95, subsampling="4:4:4", exif=exif_of(orientation))
    found = read_picture(path)
    assert found.pixels.shape == expected.shape
    assert np.abs(found.pixels.astype(int) - expected).mean() < 5
    assert image_size(path) == expected.shape[:2]
    assert found.exif == carried_exif(exif_of(orientation))


def test_only_what_the_file_says_turns_heic(tmp_path, pillow_heif):
    """ISO/IEC 23008-12: EXIF's orientation is information."""
    data = heic(pillow_heif, "RGB", noise(16, 24, 3), exif=exif_of(6))
    angle = data.index(b"irot") + 4
    (tmp_path / "a.heic").write_bytes(data[:angle] + b"\0" + data[angle + 1 :])
    assert read_picture(tmp_path / "a.heic").pixels.shape == (16, 24, 3)


@pytest.mark.parametrize("codes", [(9, 16), (12, 13), (1, 13)])
def test_colours_by_numbers_and_by_profile(tmp_path, pillow_heif, codes):
    """Those that are not sRGB become PNG's chunk, as RGB of the full range, unless there is a profile."""
    pixels, named = noise(16, 24, 3), {"color_primaries": codes[0], "transfer_characteristics": codes[1]}
    (tmp_path / "a.heic").write_bytes(heic(pillow_heif, "RGB", pixels, **named))
    expected = {} if codes == (1, 13) else {b"cICP": bytes([*codes, 0, 1])}
    assert read_picture(tmp_path / "a.heic").colour == expected
    (tmp_path / "a.heic").write_bytes(heic(pillow_heif, "RGB", pixels, icc_profile=SRGB))
    found = read_picture(tmp_path / "a.heic")
    assert (found.icc, found.colour) == (SRGB, {})


@needs_avif
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_pixels_of_avif(tmp_path, mode):
    y, x = np.mgrid[:33, :50]
    smooth = np.stack([5 * x, 7 * y, 250 - 5 * x, 40 + 5 * y], axis=2)[..., : len(mode)].astype(np.uint8)
    chroma = "4:0:0" if mode == "L" else "4:4:4"
    Image.fromarray(smooth.squeeze()).save(tmp_path / "a.avif", quality=100, subsampling=chroma, icc_profile=SRGB)
    found = read_picture(tmp_path / "a.avif")
    assert found.pixels.shape == smooth.shape
    assert np.abs(found.pixels.astype(int) - smooth).max() <= 3
    assert found.icc == (SRGB if mode != "L" else None)
    assert found.colour == {}


@needs_avif
def test_what_avif_says_of_its_bits_and_colours(tmp_path):
    """Patched into the header, from which alone they are known; the pixels are those of 8 bits."""
    file = io.BytesIO()
    Image.fromarray(noise(16, 24, 3)).save(file, "AVIF")
    data = bytearray(file.getvalue())
    place = data.index(b"colrnclx") + 8
    data[place : place + 4] = struct.pack(">HH", 9, 16)
    (tmp_path / "a.avif").write_bytes(data)
    found = read_picture(tmp_path / "a.avif")
    assert (found.colour, found.notes) == ({b"cICP": bytes([9, 16, 0, 1])}, ())
    data[data.index(b"av1C") + 6] |= 64
    place = data.index(b"pixi") + 9
    data[place : place + 3] = bytes([10] * 3)
    (tmp_path / "a.avif").write_bytes(data)
    deep = read_picture(tmp_path / "a.avif")
    assert deep.notes == ("its 10 or 12 bits are read as 8",)
    np.testing.assert_array_equal(deep.pixels, found.pixels)


def test_kinds_by_their_brands():
    def start(*brands):
        body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
        return struct.pack(">I", 4 + len(body)) + body + b"more of avif"

    assert [kind_of(start(name)) for name in (b"avif", b"avis", b"heic", b"hevx")] == ["avif", "avif", "heif", "heif"]
    assert kind_of(start(b"mif1", b"miaf", b"avif")) == "avif"
    assert kind_of(start(b"mif1", b"miaf", b"heic")) == "heif"
    assert kind_of(start(b"crx ", b"isom")) is kind_of(start(b"isom", b"mp42")) is kind_of(b"avif") is None


def test_without_pillow_heif(tmp_path, pillow_heif, monkeypatch):
    """It is said of the file, and of those of a folder, how they could be read."""
    (tmp_path / "a.HEIC").write_bytes(heic(pillow_heif, "RGB", noise(16, 24, 3)))
    (tmp_path / "b.hif").write_bytes(b"")
    assert [path.name for path in list_folder(tmp_path).paths] == ["a.HEIC", "b.hif"]
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for read in (read_picture, read_image, image_size):
        with pytest.raises(ImageError, match=r"a\.HEIC: of a format that pillow-heif reads: pip install pillow-heif$"):
            read(tmp_path / "a.HEIC")
    listing = list_folder(tmp_path)
    assert listing.paths == []
    assert skipped_message(listing.passed_over) == (
        "passed over: 2 of a format that pillow-heif reads: pip install pillow-heif (a.HEIC, b.hif)"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ImageError, match=r"pip install pillow-heif \(it cannot be imported \(ModuleNotFoundError: "):
        read_picture(tmp_path / "a.HEIC")


def test_without_avif(tmp_path, monkeypatch):
    (tmp_path / "a.avif").write_bytes(struct.pack(">I", 16) + b"ftypavif" + bytes(4))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = "of a format that Pillow 11.3 and later ones read and write: pip install --upgrade pillow"
    with pytest.raises(ImageError, match=rf"a\.avif: {message}"):
        read_picture(tmp_path / "a.avif")
    assert skipped_message(list_folder(tmp_path).passed_over) == f"passed over: 1 {message} (a.avif)"


def test_pillow_says_the_same_of_avif():
    if not hasattr(features, "get_supported_modules") or "avif" not in features.modules:
        pytest.skip("this Pillow does not know AVIF")
    assert features.check("avif") == HAS_AVIF


def test_an_error_of_libheif_is_one_line(tmp_path):
    pytest.importorskip("pillow_heif").from_pillow(Image.fromarray(noise(64, 64, 3))).save(tmp_path / "whole.heic")
    path = tmp_path / "a.heic"
    path.write_bytes((tmp_path / "whole.heic").read_bytes()[:2000])
    with pytest.raises(ImageError) as error:
        read_picture(path)
    assert "a.heic: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["dng", "NEF", "cr3"])
def test_raw_files_are_not_taken_for_their_thumbnails(tmp_path, suffix):
    """Many are TIFF files whose first image is a thumbnail."""
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(16, 24, 3)).save(path, "TIFF")
    message = "of a camera's raw format, which is not read: develop to TIFF or PNG first"
    for read in (read_picture, read_image, image_size):
        with pytest.raises(ImageError, match=rf"a\.{suffix}: {message}"):
            read(path)
    assert skipped_message(list_folder(tmp_path).passed_over) == f"passed over: 1 {message} (a.{suffix})"
