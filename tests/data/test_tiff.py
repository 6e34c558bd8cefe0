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


def write_deep(path, pixels, **options):
    """16 bits with alpha or in planes of their own."""
    channels = pixels.shape[2]
    given = {
        "photometric": "rgb" if channels > 2 else "minisblack",
        "planarconfig": "contig",
        "extrasamples": ["unassalpha"] if channels in (2, 4) else None,
    } | options
    planes = pixels.transpose(2, 0, 1) if given["planarconfig"] == "separate" else pixels
    tifffile.imwrite(path, planes, **given)


def overwrite(path, **fields):
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name, value in fields.items():
            file.pages.first.tags[name].overwrite(value)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_tiff_is_read(tmp_path, channels, dtype, compression, order):
    pixels = noise(33, 21, channels, dtype)
    path = tmp_path / "a.tif"
    if compression == "lzw":
        if channels > 1 and dtype == np.uint16:
            pytest.skip("neither Pillow nor tifffile writes it here")
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path, compression="tiff_lzw")
    else:
        tifffile.imwrite(
            path, pixels if channels > 1 else pixels[..., 0], byteorder=order, compression=compression, rowsperstrip=5,
            photometric="rgb" if channels > 2 else "minisblack", planarconfig="contig" if channels > 1 else None,
            extrasamples=["unassalpha"] if channels in (2, 4) else None,
        )  # fmt: skip
    found = read_picture(path).pixels
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)


def test_tiff_whose_zero_is_white(tmp_path):
    pixels = noise(9, 8, 1, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", 65535 - pixels[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, pixels)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"rowsperstrip": 5},
        {"compression": "zlib", "predictor": 2, "rowsperstrip": 5},
        {"compression": "zlib", "tile": (16, 16)},
    ],
    ids=["whole", "strips", "predicted", "tiles"],
)
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_tiff_of_16_bits_in_planes(tmp_path, channels, stored, order):
    pixels = noise(33, 21, channels, np.uint16)
    icc = SRGB if channels > 2 else profile(b"GRAY")
    write_deep(tmp_path / "a.tif", pixels, planarconfig="separate", iccprofile=icc, byteorder=order, **stored)
    found = read_picture(tmp_path / "a.tif")
    assert found.icc == icc
    np.testing.assert_array_equal(found.pixels, pixels)


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_taken_out_of_the_colours(tmp_path, channels, planes):
    pixels = noise(9, 8, channels, np.uint16)
    pixels[0, 0, -1], pixels[0, 1, -1] = 0, 65535
    stored = pixels.astype(np.float64)
    stored[..., :-1] *= stored[..., -1:] / 65535
    stored = np.rint(stored).astype(np.uint16)
    write_deep(tmp_path / "a.tif", stored, extrasamples=["assocalpha"], planarconfig=planes)
    found = read_picture(tmp_path / "a.tif").pixels
    np.testing.assert_array_equal(found[..., -1], pixels[..., -1])
    shown = pixels[..., -1:] > 0
    half_a_level = 0.5 * 65535 / np.maximum(pixels[..., -1:], 1) + 0.5
    assert (np.abs(found.astype(float) - pixels) <= half_a_level)[..., :-1][shown[..., 0]].all()


def test_alpha_beside_a_gray_whose_zero_is_white(tmp_path):
    pixels = noise(9, 8, 2, np.uint16)
    stored = pixels.copy()
    stored[..., 0] = 65535 - pixels[..., 0]
    write_deep(tmp_path / "a.tif", stored, photometric="miniswhite")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, pixels)


def test_a_channel_that_is_no_alpha_is_left_out(tmp_path):
    pixels = noise(9, 8, 2, np.uint16)
    write_deep(tmp_path / "a.tif", pixels, extrasamples=["unspecified"])
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, pixels[..., :1])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("channels", "planes"), [(2, "contig"), (3, "separate")])
def test_such_tiff_is_turned_upright(tmp_path, channels, planes, orientation):
    """As Pillow turns one of 8 bits that is stored alike."""
    stored = np.arange(35 * channels, dtype=np.uint16).reshape(5, 7, channels)
    tags = [(0x0112, "H", 1, orientation, True)]
    write_deep(tmp_path / "a.tif", stored, planarconfig=planes, extratags=tags)
    write_deep(tmp_path / "b.tif", stored.astype(np.uint8), planarconfig=planes, extratags=tags)
    with Image.open(tmp_path / "b.tif") as image:
        image.load()
        expected = np.asarray(image)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, expected)


def test_tiff_with_other_channels_of_16_bits(tmp_path):
    pixels, extras = noise(9, 8, 4, np.uint16), ["unassalpha", "unspecified", "unspecified"]
    write_deep(tmp_path / "a.tif", pixels, planarconfig="separate", photometric="minisblack", extrasamples=extras)
    said = r"a\.tif: 4 channels of 16 bits, photometric interpretation 1; read are gray and RGB"
    with pytest.raises(ImageError, match=said):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("stored", [{}, {"compression": "zlib", "rowsperstrip": 5}], ids=["whole", "strips"])
def test_truncated_tiff_in_planes(tmp_path, stored, caplog):
    path = tmp_path / "a.tif"
    write_deep(path, noise(33, 21, 3, np.uint16), planarconfig="separate", **stored)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ImageError, match=r"a\.tif: truncated"):
        read_picture(path)
    assert not caplog.records


def test_a_strip_that_inflates_to_more_than_its_pixels(tmp_path):
    path = tmp_path / "a.tif"
    write_deep(path, noise(16, 16, 2, np.uint16), compression="zlib")
    bomb = zlib.compress(bytes(2**24))
    overwrite(path, StripOffsets=path.stat().st_size, StripByteCounts=len(bomb))
    path.write_bytes(path.read_bytes() + bomb)
    assert not read_picture(path).pixels.any()  # what is beyond the pixels is not looked at
    path.write_bytes(path.read_bytes()[: -len(bomb)] + bytes(len(bomb)))
    with pytest.raises(ImageError, match=r"a\.tif: truncated or damaged"):
        read_picture(path)


def test_bytes_that_are_not_a_strip_s_are_not_read_as_pixels(tmp_path):
    path = tmp_path / "a.tif"
    write_deep(path, noise(16, 16, 2, np.uint16))
    overwrite(path, StripByteCounts=100)
    with pytest.raises(ImageError, match=r"a\.tif: truncated: it holds fewer bytes"):
        read_picture(path)


def test_deep_tiff_in_another_compression(tmp_path):
    path = tmp_path / "a.tif"
    write_deep(path, noise(16, 16, 2, np.uint16), compression="zlib")
    overwrite(path, Compression=int(tifffile.COMPRESSION.JPEG))
    with pytest.raises(ImageError, match=r"a\.tif: 2 channels of 16 bits, .* compressed by JPEG: not read so"):
        read_picture(path)


def test_a_small_tiff_of_a_huge_image_in_planes(tmp_path):
    """Refused by what its header says."""
    path = tmp_path / "a.tif"
    write_deep(path, noise(4, 4, 3, np.uint16), planarconfig="separate")
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("ImageWidth", "ImageLength"):
            file.pages.first.tags[name].overwrite(40_000)
    with pytest.raises(ImageError, match=r"a\.tif: 40000 x 40000 pixels; more than 178956970 are refused"):
        read_picture(path)


def test_floating_point_pixels(tmp_path):
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: floating-point pixels"):
        read_picture(tmp_path / "a.tif")


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
