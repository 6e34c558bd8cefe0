"""TIFF files as tifffile and Pillow write them, and what is wrong with some."""

import zlib

import numpy as np
import pytest
import tifffile
from image_files import SRGB, profile, tiff
from PIL import Image
from upscaling_models import noise

from andfast.data.images import ImageError, image_size, read_image, read_picture

KINDS = [(channels, dtype) for dtype in (np.uint8, np.uint16) for channels in (1, 2, 3, 4)]


def write(path, pixels, **options):
    channels = pixels.shape[2]
    given = {
        "photometric": "rgb" if channels > 2 else "minisblack",
        "planarconfig": "contig" if channels > 1 else None,
        "extrasamples": ["unassalpha"] if channels in (2, 4) else None,
    } | options
    separate = channels == 1 or given["planarconfig"] == "separate"
    tifffile.imwrite(path, pixels.transpose(2, 0, 1).squeeze() if separate else pixels, **given)


def overwrite(path, **fields):
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name, value in fields.items():
            file.pages.first.tags[name].overwrite(value)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "stored",
    [
        {"rowsperstrip": 5},
        {"compression": "zlib", "rowsperstrip": 5},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "compression": "zlib", "predictor": 2, "rowsperstrip": 5},
        {"planarconfig": "separate", "compression": "zlib", "tile": (16, 16)},
    ],
    ids=["strips", "packed", "planes", "predicted", "tiles"],
)
@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_tiff_of_tifffile(tmp_path, channels, dtype, stored, order):
    if channels == 1:
        stored = {**stored, "planarconfig": None}
    pixels = noise(33, 21, channels, dtype)
    icc = SRGB if channels > 2 else profile(b"GRAY")
    write(tmp_path / "a.tif", pixels, iccprofile=icc, byteorder=order, **stored)
    found = read_picture(tmp_path / "a.tif")
    assert found.icc == icc
    assert found.pixels.dtype == dtype
    np.testing.assert_array_equal(found.pixels, pixels)


@pytest.mark.parametrize(("channels", "dtype"), [kind for kind in KINDS if kind[0] == 1 or kind[1] == np.uint8])
def test_lzw_of_pillow(tmp_path, channels, dtype):
    pixels = noise(33, 21, channels, dtype)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(tmp_path / "a.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, pixels)


def test_alpha_beside_a_gray_whose_zero_is_white(tmp_path):
    pixels = noise(9, 8, 2, np.uint16)
    stored = pixels.copy()
    stored[..., 0] = 65535 - pixels[..., 0]
    write(tmp_path / "a.tif", stored, photometric="miniswhite")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, pixels)


@pytest.mark.parametrize("stored", [{}, {"compression": "zlib", "rowsperstrip": 5}], ids=["whole", "strips"])
def test_truncated_tiff_in_planes(tmp_path, stored, caplog):
    path = tmp_path / "a.tif"
    write(path, noise(33, 21, 3, np.uint16), planarconfig="separate", **stored)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ImageError, match=r"a\.tif: truncated"):
        read_picture(path)
    assert not caplog.records


def test_a_strip_that_inflates_to_more_than_its_pixels(tmp_path):
    path = tmp_path / "a.tif"
    write(path, noise(16, 16, 2, np.uint16), compression="zlib")
    bomb = zlib.compress(bytes(2**24))
    overwrite(path, StripOffsets=path.stat().st_size, StripByteCounts=len(bomb))
    path.write_bytes(path.read_bytes() + bomb)
    assert not read_picture(path).pixels.any()  # what is beyond the pixels is not looked at
    path.write_bytes(path.read_bytes()[: -len(bomb)] + bytes(len(bomb)))
    with pytest.raises(ImageError, match=r"a\.tif: truncated or damaged"):
        read_picture(path)


def test_deep_tiff_in_another_compression(tmp_path):
    path = tmp_path / "a.tif"
    write(path, noise(16, 16, 2, np.uint16), compression="zlib")
    overwrite(path, Compression=int(tifffile.COMPRESSION.JPEG))
    with pytest.raises(ImageError, match=r"a\.tif: 2 channels of 16 bits, .* compressed by JPEG: not read so"):
        read_picture(path)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_alpha_is_found_among_extra_samples(tmp_path, place):
    samples = np.random.default_rng(0).integers(0, 256, (9, 7, 6), np.uint8)
    extras = ["unspecified"] * 3
    extras[place] = "unassalpha"
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, samples, photometric="rgb", extrasamples=extras)
    np.testing.assert_array_equal(read_picture(path).pixels, samples[..., [0, 1, 2, 3 + place]])


@pytest.mark.parametrize(("kinds", "taken"), [((1, 0), 1), ((1, 1, 0), 2), ((0, 1), 0), ((2, 0), 0), ((1, 1), 0)])
@pytest.mark.parametrize("compression", [None, "jpeg"])
def test_reduced_copies_are_passed_over(tmp_path, kinds, taken, compression):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for index, kind in enumerate(kinds):
            pixels = np.full((16, 16 + 16 * index), 50 * index, np.uint8)
            file.write(pixels, photometric="minisblack", subfiletype=kind)
    if compression == "jpeg":
        with Image.open(path) as image:
            pages = []
            for index, kind in enumerate(kinds):
                image.seek(index)
                pages.append(image.copy())
                pages[-1].encoderinfo = {"tiffinfo": {254: kind}}
        pages[0].save(
            path, "TIFF", save_all=True, append_images=pages[1:], compression="jpeg", tiffinfo={254: kinds[0]}
        )
    assert image_size(path) == (16, 16 + 16 * taken)
    np.testing.assert_array_equal(read_picture(path).pixels, np.full((16, 16 + 16 * taken, 1), 50 * taken))


@pytest.mark.parametrize(
    ("channels", "photometric", "fields", "said"),
    [(5, 5, {"extras": 2}, "CMYK with alpha"), (3, 6, {"_530": (4, 4)}, "chroma subsampled 4 x 4")],
)
def test_what_would_lose_something_or_come_out_wrong_is_refused(tmp_path, channels, photometric, fields, said):
    (tmp_path / "a.tif").write_bytes(tiff(np.zeros((8, 28, channels), int), photometric, **fields))
    for read in (read_picture, read_image):
        with pytest.raises(ImageError, match=rf"a\.tif: {said}"):
            read(tmp_path / "a.tif")
