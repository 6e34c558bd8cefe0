"""What is read from image files, and what is written: against Pillow, tifffile and NumPy."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, ImageOps
from upscaling_models import nearest, noise

from andfast.data.images import ImageError
from andfast.upscaling.alpha import without_holes
from andfast.upscaling.engine import Upscaler
from andfast.upscaling.formats import Picture, eight_bits, read_picture, write_picture
from andfast.upscaling.png import png_bytes

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
KINDS = [(channels, dtype) for dtype in (np.uint8, np.uint16) for channels in (1, 2, 3, 4)]


def png_pixels(path):
    """A PNG file's pixels, by the format's specification: a reader of our own, for the filter that we write."""
    data = path.read_bytes()
    place, body, header = 8, b"", None
    while place < len(data):
        (length,), name = struct.unpack(">I", data[place : place + 4]), data[place + 4 : place + 8]
        content = data[place + 8 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0] == zlib.crc32(name + content)
        header = struct.unpack(">IIBBBBB", content) if name == b"IHDR" else header
        body += content if name == b"IDAT" else b""
        place += 12 + length
    width, height, bits, colour, *_ = header
    channels = {0: 1, 4: 2, 2: 3, 6: 4}[colour]
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 2).all()  # "up"
    bytes_ = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8)
    return np.ascontiguousarray(bytes_).view(">u2" if bits == 16 else np.uint8).reshape(height, width, channels)


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_png(tmp_path, channels, dtype):
    pixels = noise(33, 21, channels, dtype)
    write_picture(tmp_path / "a.png", Picture(pixels, SRGB))
    np.testing.assert_array_equal(png_pixels(tmp_path / "a.png"), pixels)
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["icc_profile"] == SRGB
        image.load()  # checks all of the file
        if channels == 1 or dtype == np.uint8:
            np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)
    found = read_picture(tmp_path / "a.png")
    assert found.icc == SRGB
    assert found.pixels.dtype == dtype
    np.testing.assert_array_equal(found.pixels, pixels)


def test_png_of_many_rows(tmp_path):
    """Longer than what is compressed at once."""
    pixels = noise(1500, 700, 3, np.uint16)
    (tmp_path / "a.png").write_bytes(png_bytes(pixels))
    np.testing.assert_array_equal(png_pixels(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_tiff_is_written(tmp_path, channels, dtype):
    pixels = noise(33, 21, channels, dtype)
    write_picture(tmp_path / "a.tif", Picture(pixels, SRGB))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        (page,) = file.pages
        np.testing.assert_array_equal(page.asarray().reshape(pixels.shape), pixels)
        assert page.tags["InterColorProfile"].value == SRGB
        if channels in (2, 4):
            assert page.extrasamples == (2,)  # alpha that is not multiplied into the colours


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


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_tiff_is_read_as_it_is_written(tmp_path, channels, dtype):
    pixels = noise(33, 21, channels, dtype)
    write_picture(tmp_path / "a.tif", Picture(pixels, SRGB))
    found = read_picture(tmp_path / "a.tif")
    assert found.icc == SRGB
    np.testing.assert_array_equal(found.pixels, pixels)


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
    write_deep(tmp_path / "a.tif", pixels, planarconfig="separate", iccprofile=SRGB, byteorder=order, **stored)
    found = read_picture(tmp_path / "a.tif")
    assert found.icc == SRGB
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


@pytest.mark.parametrize(
    ("kind", "photometric", "extras"),
    [(5, "separated", None), (1, "minisblack", ["unassalpha", "unspecified", "unspecified"])],
)
def test_tiff_with_other_channels_of_16_bits(tmp_path, kind, photometric, extras):
    pixels = noise(9, 8, 4, np.uint16)
    write_deep(tmp_path / "a.tif", pixels, planarconfig="separate", photometric=photometric, extrasamples=extras)
    said = rf"a\.tif: 4 channels of 16 bits, photometric interpretation {kind}; read are gray and RGB"
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_images_are_turned_upright(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    corners = np.zeros((20, 30, 3), np.uint8)
    corners[:10, :10] = (255, 0, 0)
    corners[-10:, :10] = (0, 255, 0)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(corners).save(path, exif=exif, quality=100)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    assert np.abs(read_picture(path).pixels - upright).max() <= 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_turned_upright(tmp_path, suffix, orientation):
    pixels = noise(5, 7, 3, np.uint16)
    path = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(0x0112, "H", 1, orientation, True)])
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
        data = png_bytes(pixels)
        path.write_bytes(data[:33] + chunk + data[33:])
    turn = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn.info["exif"] = exif.tobytes()
    order = np.asarray(ImageOps.exif_transpose(turn))
    np.testing.assert_array_equal(read_picture(path).pixels, pixels.reshape(35, 3)[order])


def test_interlaced_png_of_16_bits(tmp_path):
    pixels = noise(8, 8, 3, np.uint16)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        b"\0" + row.astype(">u2").tobytes()
        for top, left, down, right in passes
        for row in pixels[top::down, left::right]
    )

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 1)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_formats_with_losses(tmp_path, suffix, channels):
    smooth = np.linspace(0, 255, 24 * 40 * channels).reshape(24, 40, channels).astype(np.uint8)
    path = tmp_path / f"a{suffix}"
    write_picture(path, Picture(smooth.astype(np.uint16) * 257, SRGB))
    found = read_picture(path)
    assert found.icc == SRGB
    assert found.pixels.dtype == np.uint8
    alpha = channels in (2, 4)
    expected = Image.fromarray(smooth[..., 0] if channels == 1 else smooth)
    if suffix == ".jpg" and alpha:
        white = Image.new("RGBA", expected.size, "white")
        expected = Image.alpha_composite(white, expected.convert("RGBA")).convert("L" if channels == 2 else "RGB")
    if suffix == ".webp":  # it has no gray
        expected = expected.convert("RGBA" if alpha else "RGB")
    expected = np.asarray(expected).reshape(*smooth.shape[:2], -1)
    assert found.pixels.shape == expected.shape
    seen = (expected[..., -1:] > 8) if suffix == ".webp" and alpha else True  # nobody sees the others' colours
    error = np.abs(found.pixels.astype(int) - expected) * seen
    assert error.mean() < 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp", ".bmp", ".ppm"])
def test_modes(tmp_path, mode, suffix):
    """Every kind of pixels that Pillow can write, against its own conversion."""
    given = Image.fromarray(noise(12, 10, 3)).convert("RGB")
    given = Image.fromarray(noise(12, 10, 1, np.uint16)[..., 0]) if mode == "I;16" else given.convert(mode)
    path = tmp_path / f"a{suffix}"
    try:
        given.save(path)
    except OSError:
        return
    found = read_picture(path).pixels
    with Image.open(path) as stored:
        if stored.mode.startswith("I"):
            expected = np.asarray(stored).astype(np.uint16)
            assert found.dtype == np.uint16
        else:
            expected = np.asarray(stored.convert({"1": "L", "P": "RGB", "CMYK": "RGB"}.get(stored.mode, stored.mode)))
    np.testing.assert_array_equal(found, expected.reshape(12, 10, -1))


def test_palette_with_transparency(tmp_path):
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4), "P")
    image.putpalette(bytes(range(36)))
    image.save(tmp_path / "a.png", transparency=bytes([0, 100] + [255] * 10))
    pixels = read_picture(tmp_path / "a.png").pixels
    assert pixels.shape == (3, 4, 4)
    assert pixels[0, :3].tolist() == [[0, 1, 2, 0], [3, 4, 5, 100], [6, 7, 8, 255]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_colour_that_stands_for_transparency(tmp_path, channels, dtype):
    pixels = noise(6, 5, channels, dtype)
    data, key = png_bytes(pixels), pixels[2, 3].astype(int)
    content = struct.pack(f">{channels}H", *key)
    chunk = struct.pack(">I", len(content)) + b"tRNS" + content + struct.pack(">I", zlib.crc32(b"tRNS" + content))
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
    found = read_picture(tmp_path / "a.png").pixels
    np.testing.assert_array_equal(found[..., :-1], pixels)
    np.testing.assert_array_equal(found[..., -1] == 0, (pixels == key).all(2))
    assert set(np.unique(found[..., -1])) <= {0, np.iinfo(dtype).max}


def test_cmyk_becomes_srgb_by_its_profile(tmp_path, monkeypatch):
    cyan = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    cyan.save(tmp_path / "a.jpg", quality=100)
    assert read_picture(tmp_path / "a.jpg").pixels[0, 0].tolist() == [0, 255, 255]
    seen = []

    def convert(image, profile, target, outputMode):  # noqa: N803 (Pillow's name); no profile of CMYK is at hand
        seen.append((image.mode, profile, outputMode))
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    cyan.save(tmp_path / "a.jpg", icc_profile=SRGB)
    found = read_picture(tmp_path / "a.jpg")
    assert (found.icc, found.pixels[0, 0].tolist(), seen[0][0]) == (None, [1, 2, 3], "CMYK")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_16_bits_are_rounded_where_they_must(tmp_path, suffix):
    assert eight_bits(np.array([0, 128, 129, 65535 - 129, 65535], np.uint16)).tolist() == [0, 0, 1, 254, 255]
    every = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(eight_bits(every), np.rint(every / 257).astype(np.uint8))
    write_picture(tmp_path / f"a{suffix}", Picture(np.full((8, 8, 1), 25700, np.uint16)))
    found = read_picture(tmp_path / f"a{suffix}").pixels
    if suffix in (".png", ".tif"):
        assert (found == 25700).all()
    else:
        assert np.abs(found.astype(int) - 100).max() <= 1


# What is refused


def test_too_many_pixels(tmp_path):
    Image.new("L", (100, 50)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", 5000).pixels.shape == (50, 100, 1)
    with pytest.raises(ImageError, match=r"a\.png: 100 x 50 pixels; more than 4999 are refused"):
        read_picture(tmp_path / "a.png", 4999)


def test_a_small_file_of_a_huge_image(tmp_path):
    """Refused by what its header says: were it decoded, this test would take 200 GB."""
    data = png_bytes(np.zeros((4, 4, 3), np.uint8))
    header = struct.pack(">IIBBBBB", 10**5, 10**5, 16, 2, 0, 0, 0)
    bomb = data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]
    (tmp_path / "a.png").write_bytes(bomb)
    with pytest.raises(ImageError, match=r"a\.png: .*(refused|pixels)"):
        read_picture(tmp_path / "a.png")


def overwrite(path, **fields):
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name, value in fields.items():
            file.pages.first.tags[name].overwrite(value)


def test_a_strip_that_inflates_to_more_than_its_pixels(tmp_path):
    path = tmp_path / "a.tif"
    write_deep(path, noise(16, 16, 2, np.uint16), compression="zlib")
    bomb = zlib.compress(bytes(2**24))
    overwrite(path, StripOffsets=path.stat().st_size, StripByteCounts=len(bomb))
    path.write_bytes(path.read_bytes() + bomb)
    with pytest.raises(ImageError, match=r"a\.tif: a strip or tile holds more than its pixels"):
        read_picture(path)
    path.write_bytes(path.read_bytes()[: -len(bomb)] + bytes(len(bomb)))
    with pytest.raises(ImageError, match=r"a\.tif: damaged"):
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
    overwrite(path, Compression=int(tifffile.COMPRESSION.LZW))
    with pytest.raises(ImageError, match=r"a\.tif: compressed by LZW; .* Deflate, PackBits and uncompressed ones"):
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


@pytest.mark.parametrize(("name", "height", "width"), [("a.jpg", 65536, 1), ("a.webp", 1, 16384), ("a.jpeg", 1, 65536)])
def test_more_than_a_format_can_hold(tmp_path, name, height, width):
    with pytest.raises(ValueError, match=f"{width} x {height} pixels are too many"):
        write_picture(tmp_path / name, Picture(np.zeros((height, width, 1), np.uint8)))
    assert not list(tmp_path.iterdir())


def test_unknown_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"a\.gif: images are written as \.png"):
        write_picture(tmp_path / "a.gif", Picture(noise(2, 2, 3)))


def test_floating_point_pixels(tmp_path):
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: pixels of the kind F"):
        read_picture(tmp_path / "a.tif")


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.jpg"):
        write_picture(tmp_path / "a.jpg", Picture(noise(2, 2, 3)))
    assert not list(tmp_path.iterdir())


# Pixels through a network


@pytest.mark.parametrize(("channels", "dtype"), [*KINDS, (1, np.float32), (3, np.float64), (4, np.float32)])
def test_every_kind_keeps_its_values(channels, dtype):
    """A network that repeats pixels shows whether levels are kept, exactly."""
    integers = np.issubdtype(dtype, np.integer)
    pixels = noise(9, 11, channels, dtype if integers else np.uint16)
    pixels = pixels if integers else (pixels / 65535).astype(dtype)
    if channels in (2, 4):
        pixels[..., -1][pixels[..., -1] == 0] = 1  # holes change, see below
    large = Upscaler(nearest(3), tile=4).pixels(pixels)
    assert large.dtype == dtype
    expected = pixels.repeat(3, 0).repeat(3, 1)
    if integers:
        np.testing.assert_array_equal(large, expected)
    else:
        np.testing.assert_allclose(large, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_no_dark_fringes(dtype):
    """A white disc on what is transparent and black, as drawing programs write it, stays white where it is seen."""
    most = np.iinfo(dtype).max
    y, x = np.mgrid[:40, :40] - 19.5
    disc = (x**2 + y**2 < 150)[..., None]
    pixels = np.concatenate([np.where(disc, most, 0)] * 4, axis=2).astype(dtype)
    upscaler = Upscaler(nearest(2))
    large = upscaler.pixels(pixels, 3)  # bicubic interpolation from 2 to 3 mixes neighbours
    alpha = large[..., 3]
    assert len(np.unique(alpha)) > 2  # soft edges
    assert (large[..., :3][alpha > 0] == most).all()
    naive = upscaler.pixels(np.ascontiguousarray(pixels[..., :3]), 3)
    assert naive[alpha > most // 20].min() < most / 2  # that was no matter of course


def test_holes_take_the_colours_around_them():
    pixels = noise(17, 23, 4)
    pixels[..., 3] = 255
    assert without_holes(pixels) is pixels
    pixels[3:14, 5:16] = 0
    pixels[:3, :, :3] = 200
    filled = without_holes(pixels)
    seen = pixels[..., 3] > 0
    np.testing.assert_array_equal(filled[seen], pixels[seen])
    np.testing.assert_array_equal(filled[..., 3], pixels[..., 3])
    assert filled[3:14, 5:16, :3].min() > 0
    pixels[..., 3] = 0
    np.testing.assert_array_equal(without_holes(pixels), pixels)  # nothing to take colours from


def test_alpha_that_is_the_same_everywhere_costs_nothing():
    calls = []
    upscaler = Upscaler(nearest(2))
    upscaler._views[torch.float32].module.register_forward_hook(lambda *_: calls.append(1))
    pixels = noise(5, 6, 4)
    pixels[..., 3] = 77
    assert (upscaler.pixels(pixels)[..., 3] == 77).all()
    assert sum(calls) - 1 <= 1  # but for the one that counts memory
