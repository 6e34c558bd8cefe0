"""Image files with something wrong: each is read or refused by name, none takes the process with it."""

import io
import struct
import tracemalloc
import warnings
import zlib
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
from image_files import SRGB, bmp, chunk, png, tiff
from PIL import Image
from upscaling_models import noise

from andfast.data.images import ImageError, image_size, read_picture
from andfast.data.picture import Picture
from andfast.data.png import png_parts

WRONG_SIZES = (0, 1, 7, 300, 65_535, 2**31 - 1, 2**32 - 1)


def originals():
    """A file of each format and mode that there is."""
    files, exif = [], Image.Exif()
    exif[0x0112] = 6
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        image = Image.fromarray(noise(13, 17, 3)).convert(mode)
        for kind in ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "PPM"):
            buffer = io.BytesIO()
            try:
                image.save(buffer, kind, exif=exif)
            except (OSError, ValueError, TypeError, KeyError):  # the last where Pillow has no AVIF
                continue
            files.append((kind.lower(), buffer.getvalue()))
        if find_spec("pillow_heif") and mode in ("L", "RGB", "RGBA"):
            buffer = io.BytesIO()
            import_module("pillow_heif").from_pillow(image).save(buffer, exif=exif.tobytes())
            files.append(("heic", buffer.getvalue()))
    for channels in (1, 2, 3, 4):
        pixels = noise(13, 17, channels, np.uint16)
        files.append(("png", b"".join(png_parts(pixels, b"a profile"))))
        for compression in (None, "zlib"):
            buffer = io.BytesIO()
            tifffile.imwrite(
                buffer, pixels if channels > 1 else pixels[..., 0], compression=compression, rowsperstrip=4,
                photometric="rgb" if channels > 2 else "minisblack", planarconfig="contig" if channels > 1 else None,
            )  # fmt: skip
            files.append(("tif", buffer.getvalue()))
        for compression in (None, "zlib") if channels > 1 else ():
            buffer = io.BytesIO()
            tifffile.imwrite(
                buffer, pixels.transpose(2, 0, 1), compression=compression, rowsperstrip=4, planarconfig="separate",
                photometric="rgb" if channels > 2 else "minisblack",
            )  # fmt: skip
            files.append(("tif", buffer.getvalue()))
    shapes = [{"compression": 5, "tile": (16, 16)}, {"compression": 32773, "order": ">"}, {"big": True, "predictor": 2}]
    files += [("tif", tiff(noise(13, 17, 4), 2, apart=apart, **shape)) for shape in shapes for apart in (False, True)]
    files += [("tif", tiff(noise(13, 17, 1) // 16, 0, 4, fill=2)), ("tif", tiff(noise(13, 17, 3), 6, _530=[1, 1]))]
    chunks = [chunk(b"tRNS", b"\0\1"), chunk(b"cICP", bytes(4)), chunk(b"iCCP", b"a\0\0" + zlib.compress(SRGB))]
    files.append(("png", png(noise(13, 17, 1) // 64, 2, before=chunks)))
    files += [("ppm", b"P3 17 13 9\n" + b"1 2 3 " * 221), ("ppm", b"P6 17 13 999\n" + bytes(1326))]
    run_lengths = bytes([0, 2, 2, 0, 1, 7, 0, 0, 0, 3, 1, 2, 3, 0, 2, 4, 0, 0, 0, 0, 5, 1, 0, 1])
    files.append(("bmp", bmp((4, 5), 8, run_lengths, packing=1, palette=bytes(range(256)) * 4)))
    return files


def mutated(data, random):
    data = bytearray(data)
    kind = random.integers(7)
    if kind == 0:  # truncated
        return bytes(data[: random.integers(len(data))])
    if kind == 1:  # the header
        for place in random.integers(0, min(len(data), 64), random.integers(1, 8)):
            data[place] = random.integers(256)
    elif kind == 2:  # bits anywhere
        for place in random.integers(0, len(data), random.integers(1, 40)):
            data[place] ^= 1 << random.integers(8)
    elif kind == 3:  # a piece is missing
        begin, end = sorted(random.integers(0, len(data), 2))
        del data[begin:end]
    elif kind == 4:  # too many bytes
        place = random.integers(len(data))
        data[place:place] = random.bytes(random.integers(1, 100))
    elif kind == 5:  # a number that says how much there is
        place = random.integers(0, max(min(len(data), 200) - 4, 1))
        data[place : place + 4] = struct.pack(random.choice(["<I", ">I"]), random.choice(WRONG_SIZES))
    else:  # nothing but noise after the first bytes
        data[8:] = random.bytes(len(data))
    return bytes(data)


def test_500_damaged_images(tmp_path):
    random = np.random.default_rng(0)
    files = originals()
    assert {kind for kind, _ in files} - {"avif", "heic"} == {"png", "jpeg", "webp", "tiff", "tif", "bmp", "ppm"}
    told = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata that is damaged
        for number in range(len(files), len(files) + 500):
            kind, data = files[number % len(files)]
            path = tmp_path / f"{number}.{kind}"
            path.write_bytes(mutated(data, random))
            try:
                found = read_picture(path, max_pixels=10**6)
            except ImageError as error:
                told.append((path, str(error)))
            else:
                assert isinstance(found, Picture)
                assert image_size(path) == found.pixels.shape[:2]
                assert found.pixels.dtype in (np.uint8, np.uint16)
                assert found.pixels.ndim == 3
                assert 1 <= found.pixels.shape[2] <= 4
                assert 0 < found.pixels.size <= 4 * 10**6
            path.unlink()
    assert 150 < len(told) < 500
    assert all(message.startswith(f"{path}: ") for path, message in told)


def test_what_a_header_says_is_not_made_room_for(tmp_path):
    """Lengths that are not there, in a chunk and in a size."""
    path = tmp_path / "a.image"
    whole = png(noise(13, 17, 3))
    place = whole.index(b"IDAT") - 4
    files = [whole[:place] + struct.pack(">I", 2**31 - 1) + whole[place + 4 : -99], b"P5 13000 13000 255\n" + bytes(99)]
    files.append(bmp((13000, 13000), 24, b""))
    for data in files:
        path.write_bytes(data)
        tracemalloc.start()
        try:
            with pytest.raises(ImageError):
                read_picture(path)
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()
