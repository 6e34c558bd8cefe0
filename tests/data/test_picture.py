"""Images with all that files hold of them, against Pillow's own reading."""

import struct

import numpy as np
import pytest
from image_files import chunk, png, profile
from PIL import Image, ImageCms
from upscaling_models import noise

from andfast.data.images import read_picture
from andfast.data.picture import from_pil


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
