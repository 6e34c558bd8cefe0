"""What is written to image files, and what a network makes of it: against Pillow, tifffile and NumPy."""

import re
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from image_files import SRGB, chunk, png, profile
from PIL import ExifTags, Image
from upscaling_models import nearest, noise

from andfast.data.exif import add_to_tiff, byte_order_of, carried_exif
from andfast.data.heif import avif_problem
from andfast.data.images import DataError
from andfast.data.picture import eight_bits
from andfast.data.png import png_bytes
from andfast.inference import formats
from andfast.inference.formats import (
    Picture,
    check_memory,
    check_size,
    losses,
    memory_is_free,
    read_picture,
    write_picture,
)
from andfast.inference.upscaler import Upscaler, bleed_alpha

ICC = {1: profile(b"GRAY"), 2: profile(b"GRAY"), 3: SRGB, 4: SRGB}
needs_avif = pytest.mark.skipif(avif_problem() is not None, reason="Pillow is built without AVIF")
AVIF = pytest.param(".avif", marks=needs_avif)
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
    write_picture(tmp_path / "a.png", Picture(pixels, ICC[channels]))
    np.testing.assert_array_equal(png_pixels(tmp_path / "a.png"), pixels)
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["icc_profile"] == ICC[channels]
        image.load()  # checks all of the file
        if channels == 1 or dtype == np.uint8:
            np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)
    found = read_picture(tmp_path / "a.png")
    assert found.icc == ICC[channels]
    assert found.pixels.dtype == dtype
    np.testing.assert_array_equal(found.pixels, pixels)


COLOUR = {
    b"cICP": bytes([9, 16, 0, 1]),
    b"mDCV": bytes(range(24)),
    b"cLLI": bytes(range(8)),
    b"sRGB": b"\0",
    b"gAMA": struct.pack(">I", 45455),
    b"cHRM": bytes(range(32)),
}


@pytest.mark.parametrize("names", [*([name] for name in COLOUR), [b"gAMA", b"cHRM"], list(COLOUR)])
def test_what_tells_of_colours_in_png_is_kept(tmp_path, names):
    told = [chunk(name, COLOUR[name]) for name in names]
    (tmp_path / "a.png").write_bytes(png(noise(5, 6, 3), before=[*told, chunk(b"tIME", bytes(7))]))
    write_picture(tmp_path / "b.png", read_picture(tmp_path / "a.png"))
    data = (tmp_path / "b.png").read_bytes()
    assert [part in data[: data.index(b"IDAT")] for part in told] == [True] * len(told)
    assert b"tIME" not in data
    assert read_picture(tmp_path / "b.png").colour == {name: COLOUR[name] for name in COLOUR if name in names}


@pytest.mark.parametrize(
    ("names", "icc", "said"),
    [
        ([b"cICP"], None, "cICP, which"),
        ([b"cICP", b"mDCV"], SRGB, "cICP, mDCV, which"),
        ([b"gAMA", b"cHRM"], None, "gAMA, cHRM, which"),
        ([b"gAMA", b"cHRM"], SRGB, None),  # the profile counts before them
        ([b"gAMA", b"sRGB"], None, None),  # what all assume
        ([], SRGB, None),
    ],
)
def test_what_a_format_cannot_hold_is_told(names, icc, said):
    picture = Picture(noise(2, 3, 3), icc, {name: COLOUR[name] for name in names})
    assert losses("a.png", picture) == []
    for name in ("a.jpg", "a.webp", "a.tif"):
        found = losses(name, picture)
        assert len(found) == (said is not None)
        assert said is None or found[0].startswith(said)


def test_bits_that_a_format_cannot_hold_are_told():
    deep = Picture(noise(2, 3, 3, np.uint16))
    for name in ("a.jpg", "a.webp", "a.avif"):
        assert losses(name, deep) == ["its 16 bits are rounded to 8: PNG and TIFF keep them"]
    for name in ("a.png", "a.tif"):
        assert losses(name, deep) == []


def test_a_profile_that_others_do_not_read_is_told(tmp_path):
    large = Picture(noise(2, 3, 3), SRGB + bytes(2**20))
    assert re.match(r"its colour profile of 1\.0 MiB is kept; .* Pillow", losses("a.png", large)[0])
    assert losses("a.tif", large) == []
    larger = Picture(noise(2, 3, 3), SRGB + bytes(2**24))
    assert losses("a.jpg", larger) == ["its colour profile is left out: JPEG holds none above 15.9 MiB"]
    write_picture(tmp_path / "a.jpg", larger)
    assert (read_picture(tmp_path / "a.jpg").icc, read_picture(tmp_path / "a.jpg").notes) == (None, ())
    gray = Picture(noise(2, 3, 1), ICC[1])
    assert losses("a.jpg", gray) == []
    assert losses("a.webp", gray) == ["its colour profile, one of gray, is left out: WebP has RGB alone"]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp", AVIF])
def test_a_profile_of_other_pixels_is_not_written(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_picture(path, Picture(noise(5, 6, 3), profile(b"CMYK")))
    with Image.open(path) as image:
        assert image.info.get("icc_profile") is None


def test_png_of_many_rows(tmp_path):
    """Longer than what is compressed at once."""
    pixels = noise(1500, 700, 3, np.uint16)
    (tmp_path / "a.png").write_bytes(png_bytes(pixels))
    np.testing.assert_array_equal(png_pixels(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_tiff(tmp_path, channels, dtype):
    pixels = noise(33, 21, channels, dtype)
    write_picture(tmp_path / "a.tif", Picture(pixels, ICC[channels]))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        (page,) = file.pages
        np.testing.assert_array_equal(page.asarray().reshape(pixels.shape), pixels)
        assert page.tags["InterColorProfile"].value == ICC[channels]
        if channels in (2, 4):
            assert page.extrasamples == (2,)  # alpha that is not multiplied into the colours
    found = read_picture(tmp_path / "a.tif")
    assert found.icc == ICC[channels]
    np.testing.assert_array_equal(found.pixels, pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", AVIF])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_formats_with_losses(tmp_path, suffix, channels):
    smooth = np.linspace(0, 255, 24 * 40 * channels).reshape(24, 40, channels).astype(np.uint8)
    path = tmp_path / f"a{suffix}"
    write_picture(path, Picture(smooth.astype(np.uint16) * 257, ICC[channels]))
    found = read_picture(path)
    lost = {".jpg": (), ".webp": (1, 2), ".avif": (2,)}[suffix]  # profiles of gray
    assert found.icc == (None if channels in lost else ICC[channels])
    assert found.pixels.dtype == np.uint8
    alpha = channels in (2, 4)
    expected = Image.fromarray(smooth[..., 0] if channels == 1 else smooth)
    if suffix == ".jpg" and alpha:
        white = Image.new("RGBA", expected.size, "white")
        expected = Image.alpha_composite(white, expected.convert("RGBA")).convert("L" if channels == 2 else "RGB")
    if channels in lost:  # of which it has no gray
        expected = expected.convert("RGBA" if alpha else "RGB")
    expected = np.asarray(expected).reshape(*smooth.shape[:2], -1)
    assert found.pixels.shape == expected.shape
    seen = (expected[..., -1:] > 8) if suffix != ".jpg" and alpha else True  # nobody sees the others' colours
    error = np.abs(found.pixels.astype(int) - expected) * seen
    assert error.mean() < 3


@pytest.mark.parametrize("suffix", [".jpg", ".webp", AVIF])
def test_quality(tmp_path, suffix):
    """What is lost grows as the file shrinks."""
    y, x = np.mgrid[:64, :96]
    pixels = (127 + 80 * np.sin(x[..., None] / [3, 4, 5]) * np.cos(y[..., None] / 6)).astype(np.uint8)
    sizes, errors = [], []
    for quality in (100, 95, 60, 10):
        write_picture(tmp_path / f"a{suffix}", Picture(pixels), quality)
        sizes.append((tmp_path / f"a{suffix}").stat().st_size)
        errors.append(np.abs(read_picture(tmp_path / f"a{suffix}").pixels.astype(int) - pixels).mean())
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert errors[0] < 2 < errors[-1]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", AVIF])
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


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [
        ("a.jpg", 65536, 1),
        ("a.webp", 1, 16384),
        ("a.jpeg", 1, 65536),
        pytest.param("a.avif", 1, 32769, marks=needs_avif),
        pytest.param("a.avif", 16385, 16384, marks=needs_avif),
    ],
)
def test_more_than_a_format_can_hold(tmp_path, name, height, width):
    with pytest.raises(ValueError, match=f"{width} x {height} pixels are too many"):
        write_picture(tmp_path / name, Picture(np.broadcast_to(np.uint8(), (height, width, 1))))
    assert not list(tmp_path.iterdir())
    check_size(tmp_path / name, height - height // 2, width - width // 2)


@needs_avif
def test_what_avif_is_written_others_read(tmp_path):
    """Its longest side, by the library that browsers have."""
    write_picture(tmp_path / "a.avif", Picture(np.zeros((1, 32768, 1), np.uint8)))
    with Image.open(tmp_path / "a.avif") as image:
        image.load()
        assert image.size == (32768, 1)


def test_where_pillow_writes_no_avif(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "avif_problem", lambda: "of a format that")
    with pytest.raises(ValueError, match=r"a\.avif: of a format that"):
        write_picture(tmp_path / "a.avif", Picture(noise(4, 4, 3)))
    assert not list(tmp_path.iterdir())


def test_memory_that_results_need(tmp_path, monkeypatch):
    """The result, and what is taken to compute or to write it; first what this process keeps for itself is returned."""
    picture, returned = Picture(noise(10, 20, 3, np.uint16)), []
    monkeypatch.setattr(formats, "return_freed_memory", lambda: returned.append(1))
    # 6 bytes a pixel, 12 to compute, and those to write.
    for name, needed in (("a.png", 18 * 800), ("a.tif", 18 * 800), ("a.jpg", 22 * 800), ("a.webp", 34 * 800)):
        monkeypatch.setattr(formats, "free_memory", lambda device, free=needed: free)
        assert memory_is_free(picture, tmp_path / name, 2)
        check_memory(tmp_path / "in.png", picture, tmp_path / name, 2)
        assert not returned
        left = iter([needed - 1, needed])
        monkeypatch.setattr(formats, "free_memory", lambda device, left=left: next(left))
        assert memory_is_free(picture, tmp_path / name, 2)
        assert returned.pop()
        monkeypatch.setattr(formats, "free_memory", lambda device, free=needed: free - 1)
        assert not memory_is_free(picture, tmp_path / name, 2)
        with pytest.raises(DataError, match=r"in\.png: the result, 40 x 20 pixels, needs"):
            check_memory(tmp_path / "in.png", picture, tmp_path / name, 2)
        returned.clear()
    monkeypatch.setattr(formats, "free_memory", lambda device: None)
    assert memory_is_free(picture, tmp_path / "a.png", 2)


def photograph_exif():
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "Camera", 6
    exif[ExifTags.Base.XResolution] = 300
    exif.get_ifd(ExifTags.IFD.Exif).update(
        {ExifTags.Base.DateTimeOriginal: "2026:11:29 12:00:00", ExifTags.Base.ExifImageWidth: 9}
    )
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {ExifTags.GPS.GPSLatitudeRef: "N", ExifTags.GPS.GPSLatitude: (52.0, 31.0, 12.5)}
    )
    return exif


@pytest.mark.parametrize("target", [".png", ".jpg", ".webp", ".tif", AVIF])
@pytest.mark.parametrize("source", [".png", ".jpg", ".webp", AVIF, ".heic"])
def test_date_camera_and_place_are_kept(tmp_path, source, target):
    """The image is turned upright, once; its old size is no longer told."""
    given, written = tmp_path / f"given{source}", tmp_path / f"written{target}"
    image = Image.fromarray(noise(16, 24, 3))
    if source == ".heic":
        pytest.importorskip("pillow_heif").from_pillow(image).save(given, exif=photograph_exif().tobytes())
    else:
        image.save(given, exif=photograph_exif())
    picture = read_picture(given)
    assert picture.pixels.shape == (24, 16, 3)
    write_picture(written, picture)
    assert losses(written, picture) == []
    with Image.open(written) as image:
        exif = image.getexif()
        assert exif[ExifTags.Base.Make] == "Camera"
        assert exif[ExifTags.Base.XResolution] == 300
        assert ExifTags.Base.Orientation not in exif
        assert image.size == picture.pixels.shape[1::-1]
        assert exif.get_ifd(ExifTags.IFD.Exif) == {ExifTags.Base.DateTimeOriginal: "2026:11:29 12:00:00"}
        place = exif.get_ifd(ExifTags.IFD.GPSInfo)
        assert (place[ExifTags.GPS.GPSLatitudeRef], place[ExifTags.GPS.GPSLatitude]) == ("N", (52.0, 31.0, 12.5))
    assert np.array_equal(read_picture(written).pixels.shape, picture.pixels.shape)  # not turned again


def exif_block(order, entries, inside=None):
    """EXIF data written by hand: entries (tag, kind, count, value); `inside` of the exposure's directory."""

    def directory(entries, start):
        head, values, place = struct.pack(f"{order}H", len(entries)), b"", start + 2 + 12 * len(entries) + 4
        for tag, kind, count, value in sorted(entries):
            stored = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(f"{order}I", place + len(values))
            values += value + bytes(len(value) % 2) if len(value) > 4 else b""
            head += struct.pack(f"{order}HHI", tag, kind, count) + stored
        return head + bytes(4) + values

    if inside:
        length = len(directory([*entries, (0x8769, 4, 1, bytes(4))], 8))
        entries = [*entries, (0x8769, 4, 1, struct.pack(f"{order}I", 8 + length))]
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    block = mark + struct.pack(f"{order}I", 8) + directory(entries, 8)
    return b"Exif\0\0" + block + (directory(inside, len(block)) if inside else b"")


@pytest.mark.parametrize("order", ["<", ">"])
def test_what_stays_of_exif_data_stays_byte_for_byte(order):
    """Texts of any encoding, the byte order, which texts depend on, and the types."""
    artist = "© Jürgen".encode() + b"\0"
    comment = b"UNICODE\0" + "Grüße".encode("utf-16-le")
    first = [(0x013B, 2, len(artist), artist), (0x0100, 4, 1, struct.pack(f"{order}I", 40)), (0x0112, 3, 1, b"\6\0")]
    inside = [
        (0x9286, 7, len(comment), comment),
        (0xA005, 4, 1, struct.pack(f"{order}I", 999)),
        (0x9214, 3, 4, struct.pack(f"{order}4H", 1, 2, 3, 4)),
    ]
    kept = carried_exif(exif_block(order, first, inside))
    assert kept == exif_block(order, first[:1], inside[:1])
    assert carried_exif(kept) == kept
    assert carried_exif(exif_block(order, first[:1])) == exif_block(order, first[:1])  # no directory is added
    assert carried_exif(exif_block(order, first[1:])) is None
    with_lost_value = exif_block(order, first[:1]).replace(artist, b"")
    assert carried_exif(with_lost_value) is None


def tiff_with(order, entries, inside=None):
    """A gray TIFF file of 2 x 3 pixels with more entries in its directory."""
    pixels = {0x0100: 3, 0x0101: 2, 0x0102: 8, 0x0103: 1, 0x0106: 1, 0x0111: 0, 0x0115: 1, 0x0116: 2, 0x0117: 6}

    def block():
        own = [(tag, 4, 1, struct.pack(f"{order}I", value)) for tag, value in pixels.items()]
        return exif_block(order, [*own, *entries], inside).removeprefix(b"Exif\0\0")

    pixels[0x0111] = len(block())
    return block() + bytes(range(6))


MAKE, CAPTION, PROGRAM = (0x010F, 2, 7, b"Camera\0"), (0x010E, 2, 10, b"ImageJ=1.0"), (0x0131, 2, 4, b"gimp")
DATE = (0x9003, 2, 20, b"2026:11:29 12:00:00\0")


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_data_of_tiff(tmp_path, order):
    """Of the first directory what tells of a photograph, byte for byte."""
    path, resolution = tmp_path / "a.tif", (0x011A, 5, 1, struct.pack(f"{order}II", 300, 1))
    unit = [(0x0128, 3, 1, struct.pack(f"{order}H", value)) for value in (1, 2)]
    tile = (0x8482, 12, 1, bytes(8))  # GeoTIFF's
    size = (0xA002, 4, 1, struct.pack(f"{order}I", 3))
    path.write_bytes(tiff_with(order, [MAKE, CAPTION, PROGRAM, tile, resolution, unit[1]], [DATE, size]))
    found = read_picture(path)
    assert found.pixels.ravel().tolist() == list(range(6))
    assert found.exif == exif_block(order, [MAKE, PROGRAM, resolution, unit[1]], [DATE])
    path.write_bytes(tiff_with(order, [MAKE, resolution, unit[0]]))  # of pixels that are not square, perhaps
    assert read_picture(path).exif == exif_block(order, [MAKE])
    path.write_bytes(tiff_with(order, []))
    assert read_picture(path).exif is None


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_data_in_tiff(tmp_path, monkeypatch, order, large):
    """In its byte order, beside all else; nothing of it changes how the pixels are read. Also in BigTIFF."""
    monkeypatch.setattr("andfast.data.tiff._LARGEST_SMALL", 0 if large else 2**31)
    path, pixels = tmp_path / "a.tif", noise(40, 30, 3)
    resolution = [(tag, 5, 1, struct.pack(f"{order}II", 300, 1)) for tag in (0x011A, 0x011B)]
    harmful = (0x013D, 3, 1, struct.pack(f"{order}H", 2))  # a predictor, which the pixels do not have
    write_picture(path, Picture(pixels, SRGB, exif=exif_block(order, [MAKE, CAPTION, *resolution, harmful], [DATE])))
    with tifffile.TiffFile(path) as file:
        (page,) = file.pages
        assert (file.byteorder, file.is_bigtiff) == (order, large)
        np.testing.assert_array_equal(page.asarray(), pixels)
        assert page.tags["InterColorProfile"].value == SRGB
        assert (page.tags["Make"].value, page.tags["ImageDescription"].value) == ("Camera", "ImageJ=1.0")
        assert page.tags["XResolution"].value == (300, 1)
        assert "ResolutionUnit" not in page.tags  # by default inches, in both standards
        assert page.tags["ExifTag"].value == {"DateTimeOriginal": "2026:11:29 12:00:00"}
    found = read_picture(path)
    np.testing.assert_array_equal(found.pixels, pixels)
    assert found.exif == exif_block(order, [MAKE, *resolution], [DATE])


def test_a_tiff_file_without_exif_data_stays_as_it_is(tmp_path):
    write_picture(tmp_path / "a.tif", Picture(noise(4, 5, 3)))
    before = (tmp_path / "a.tif").read_bytes()
    add_to_tiff(tmp_path / "a.tif", b"Exif\0\0damaged")
    assert (tmp_path / "a.tif").read_bytes() == before
    assert byte_order_of(b"Exif\0\0damaged") == byte_order_of(None) == "<"
    assert read_picture(tmp_path / "a.tif").exif is None


def test_a_thumbnail_of_the_smaller_image_is_not_kept():
    """An EXIF block of two directories, of which the second holds a thumbnail."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera"
    first = bytearray(exif.tobytes().removeprefix(b"Exif\0\0"))
    count = struct.unpack_from(">H", first, 8)[0]
    thumbnail = b"\xff\xd8 the thumbnail \xff\xd9"
    struct.pack_into(">I", first, 10 + 12 * count, len(first))  # where the next directory is
    second = struct.pack(">HHHIIHHIII", 2, 0x0201, 4, 1, len(first) + 30, 0x0202, 4, 1, len(thumbnail), 0)
    block = b"Exif\0\0" + bytes(first) + second + thumbnail
    kept = carried_exif(block)
    assert b"Camera" in kept
    assert b"thumbnail" not in kept


def test_damaged_exif_data_is_left_out():
    whole, random = photograph_exif().tobytes(), np.random.default_rng(0)
    assert carried_exif(None) is None
    assert carried_exif(b"Exif\0\0") is None
    for _ in range(200):
        damaged = bytearray(whole[: random.integers(len(whole))])
        for place in random.integers(max(len(damaged), 1), size=3):
            damaged[place : place + 1] = random.bytes(1)
        kept = carried_exif(bytes(damaged))
        assert kept is None or kept.startswith(b"Exif\0\0")


def test_exif_data_that_a_format_cannot_hold(tmp_path):
    picture = Picture(noise(4, 4, 3), exif=b"Exif\0\0" + bytes(70_000))
    for name in ("a.png", "a.webp", "a.tif"):
        assert losses(name, picture) == []
    assert losses("a.jpg", picture) == ["its EXIF data (date, camera, place) is left out: JPEG holds none above 64 KiB"]
    write_picture(tmp_path / "a.jpg", picture)
    assert read_picture(tmp_path / "a.jpg").exif is None


def test_unknown_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"a\.gif: images are written as \.png"):
        write_picture(tmp_path / "a.gif", Picture(noise(2, 2, 3)))


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
    assert bleed_alpha(pixels) is pixels
    pixels[3:14, 5:16] = 0
    pixels[:3, :, :3] = 200
    filled = bleed_alpha(pixels)
    seen = pixels[..., 3] > 0
    np.testing.assert_array_equal(filled[seen], pixels[seen])
    np.testing.assert_array_equal(filled[..., 3], pixels[..., 3])
    assert filled[3:14, 5:16, :3].min() > 0
    pixels[..., 3] = 0
    np.testing.assert_array_equal(bleed_alpha(pixels), pixels)  # nothing to take colours from


def test_alpha_that_is_the_same_everywhere_costs_nothing():
    calls = []
    upscaler = Upscaler(nearest(2))
    upscaler._views[torch.float32].module.register_forward_hook(lambda *_: calls.append(1))
    pixels = noise(5, 6, 4)
    pixels[..., 3] = 77
    assert (upscaler.pixels(pixels)[..., 3] == 77).all()
    assert sum(calls) - 1 <= 1  # but for the one that counts memory
