"""Images with all that files hold of them, against Pillow's own reading."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from image_files import chunk, png, profile
from PIL import Image, ImageCms, ImageOps
from upscaling_models import noise

from andfast.data.images import ImageError, read_picture
from andfast.data.picture import from_pil
from andfast.data.png import png_bytes


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

    def convert(image, source, target, outputMode):  # noqa: N803 (Pillow's name); no profile of CMYK is at hand
        seen.append((image.mode, source, outputMode))
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    cyan.save(tmp_path / "a.jpg", icc_profile=profile(b"CMYK"))
    found = read_picture(tmp_path / "a.jpg")
    assert (found.icc, found.pixels[0, 0].tolist(), seen[0][0]) == (None, [1, 2, 3], "CMYK")


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


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_key_of_a_gray_png_that_pillow_opened(tmp_path, bits):
    """Of fewer than 8 bits Pillow scales the pixels, but not their key."""
    values = np.arange(24).reshape(4, 6, 1) % 2**bits
    (tmp_path / "a.png").write_bytes(png(values, bits, before=[chunk(b"tRNS", b"\0\1")]))
    with Image.open(tmp_path / "a.png") as image:
        pixels = from_pil(image).pixels
    assert np.array_equal(pixels[..., 0], values[..., 0] * 255 // (2**bits - 1))
    assert np.array_equal(pixels[..., 1] == 0, values[..., 0] == 1)


def test_the_key_of_a_deep_png_that_pillow_opened(tmp_path):
    """Of colours of 16 bits Pillow keeps the upper bytes."""
    values = np.arange(60).reshape(4, 5, 3) * 1000
    key = struct.pack(">3H", *values[1, 2])
    (tmp_path / "a.png").write_bytes(png(values, 16, before=[chunk(b"tRNS", key)]))
    with Image.open(tmp_path / "a.png") as image:
        pixels = from_pil(image).pixels
    assert np.array_equal(np.argwhere(pixels[..., 3] == 0), [[1, 2]])
