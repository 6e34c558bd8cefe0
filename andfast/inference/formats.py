"""Read images to upscale, and write results as PNG, TIFF, JPEG or WebP."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from andfast.data.images import MAX_PIXELS, DataError, read_picture
from andfast.data.picture import Picture, eight_bits, matching_profile, over_white, to_pil
from andfast.data.png import png_bytes
from andfast.data.tiff import write_tiff
from andfast.inference.tiles import resized_size
from andfast.utils.files import written_whole
from andfast.utils.memory import free_memory

#: The formats that are written, by suffix.
SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff"}

# Bytes of a colour profile: Pillow does not read PNG files with more than the first; JPEG holds at most the second.
_LARGE_PROFILE, _LARGEST_IN_JPEG = 2**20, 255 * 65_519

_LARGEST_EXIF = {"jpeg": 65_533, "webp": 2**31, "png": 2**31, "tiff": 0}  # bytes

# The largest height and width that the formats' headers can hold.
_LONGEST = {"jpeg": 65_535, "webp": 16_383, "png": 2**31 - 1, "tiff": 2**31 - 1}


def check_size(path: str | os.PathLike[str], height: int, width: int) -> None:
    """Raise a ValueError if the format of `path` cannot hold an image of that size."""
    longest = _LONGEST[SUFFIXES[Path(path).suffix.lower()]]
    if max(height, width) > longest:
        raise ValueError(f"{width} x {height} pixels are too many for {Path(path).suffix}: {longest} a side at most")


def read_to_upscale(source: Path, target: Path, factor: float, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read an image file; check that its result, `factor` times the size, fits into memory and the format of `target`.

    Raises:
        DataError: the file cannot be read, or the result needs more than the free memory.
        ValueError: the result is too large for its format.
    """
    picture = read_picture(source, max_pixels)
    height, width, channels = picture.pixels.shape
    large = resized_size((height, width), factor)
    check_size(target, *large)
    # The result is held in memory twice while it is written.
    needed = 2 * large[0] * large[1] * channels * picture.pixels.itemsize
    free = free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        raise DataError(
            f"{source}: the result, {large[1]} x {large[0]} pixels, needs {needed / 2**30:.1f} GiB of "
            f"{free / 2**30:.1f} GiB free"
        )
    return picture


def losses(path: str | os.PathLike[str], picture: Picture) -> list[str]:
    """Messages about metadata that the format of `path` cannot hold, or that other programs cannot read."""
    kind = SUFFIXES[Path(path).suffix.lower()]
    found = []
    if kind == "png" and picture.icc and len(picture.icc) > _LARGE_PROFILE:
        size = f"{len(picture.icc) / 2**20:.1f} MiB"
        found.append(f"its colour profile of {size} is kept; programs built on Pillow read none above 1 MiB in PNG")
    if kind == "jpeg" and picture.icc and len(picture.icc) > _LARGEST_IN_JPEG:
        found.append("its colour profile is left out: JPEG holds none above 15.9 MiB")
    if kind == "webp" and picture.icc and picture.pixels.shape[2] < 3:
        found.append("its colour profile, one of gray, is left out: WebP has RGB alone")
    if len(picture.exif or b"") > _LARGEST_EXIF[kind]:
        why = "it is not written to TIFF" if kind == "tiff" else "JPEG holds none above 64 KiB"
        found.append(f"its EXIF data (date, camera, place) is left out: {why}")
    # The PNG chunks that describe colours other than by the sRGB default or the ICC profile.
    names = [name.decode() for name in picture.colour if name != b"sRGB"]
    if "cICP" not in names and (picture.icc or b"sRGB" in picture.colour):  # take precedence over gAMA and cHRM
        names = [name for name in names if name not in ("gAMA", "cHRM")]
    if kind != "png" and names:
        found.append(f"{', '.join(names)}, which tell of its colours, are left out: PNG alone has them (--format png)")
    return found


def write_picture(path: str | os.PathLike[str], picture: Picture, quality: int = 95) -> None:
    """Write an image in the format of the suffix of `path`, whole or not at all.

    PNG holds everything, TIFF everything but PNG's chunks and EXIF data. For WebP and JPEG 16 bits are rounded to 8;
    JPEG has no transparency, so the image is drawn over white. A colour profile that does not fit the channels is not
    written. `quality`, 1 to 100, is that of JPEG and WebP.

    Raises:
        ValueError: another suffix, or too many pixels for the format.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: images are written as {', '.join(SUFFIXES)}")
    check_size(path, *picture.pixels.shape[:2])
    kind = SUFFIXES[path.suffix.lower()]
    icc, _ = matching_profile(picture.icc, 3 if kind == "webp" else picture.pixels.shape[2])
    if kind == "jpeg" and icc and len(icc) > _LARGEST_IN_JPEG:
        icc = None
    with written_whole(path) as temporary:
        if kind == "png":
            temporary.write_bytes(png_bytes(picture.pixels, icc, picture.colour, picture.exif))
        elif kind == "tiff":
            write_tiff(temporary, picture.pixels, icc)
        else:
            pixels = over_white(picture.pixels) if kind == "jpeg" else picture.pixels
            image = to_pil(Picture(eight_bits(pixels)))
            exif = picture.exif if len(picture.exif or b"") <= _LARGEST_EXIF[kind] else None
            options = {"quality": quality, "icc_profile": icc, "exif": exif or b""}
            if kind == "webp":
                image.save(temporary, "WEBP", method=4, **options)
            else:
                image.save(temporary, "JPEG", subsampling=0 if quality >= 90 else 2, **options)
