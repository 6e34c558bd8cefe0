"""Read images to upscale, and write results as PNG, TIFF, JPEG, WebP or AVIF."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch

from andfast.data.heif import avif_problem
from andfast.data.images import MAX_PIXELS, DataError, read_picture
from andfast.data.picture import Picture, eight_bits, matching_profile, over_white, to_pil
from andfast.data.png import png_parts
from andfast.data.tiff import write_tiff
from andfast.inference.tiles import resized_size
from andfast.inference.upscaler import BAND
from andfast.utils.files import written_whole
from andfast.utils.memory import free_memory, return_freed_memory

#: The formats that are written, by suffix.
SUFFIXES = {
    ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".avif": "avif", ".tif": "tiff", ".tiff": "tiff",
}  # fmt: skip

# Bytes of a colour profile: Pillow does not read PNG files with more than the first; JPEG holds at most the second.
_LARGE_PROFILE, _LARGEST_IN_JPEG = 2**20, 255 * 65_519

_LARGEST_EXIF_IN_JPEG = 65_533  # bytes; other formats hold any

# Bytes a pixel that writing takes besides the result, measured with RGB of 8 bits; PNG and TIFF are written by rows.
_WRITING = {"jpeg": 4, "webp": 16, "avif": 30}

# The largest height and width that the formats' headers can hold, and what libavif reads, which browsers use.
_LONGEST = {"jpeg": 65_535, "webp": 16_383, "avif": 32_768, "png": 2**31 - 1, "tiff": 2**31 - 1}
_MOST_IN_AVIF = 2**28  # pixels, as above


def check_size(path: str | os.PathLike[str], height: int, width: int) -> None:
    """Raise a ValueError if the format of `path` cannot hold an image of that size."""
    suffix = Path(path).suffix
    kind = SUFFIXES[suffix.lower()]
    if max(height, width) > _LONGEST[kind]:
        raise ValueError(f"{width} x {height} pixels are too many for {suffix}: {_LONGEST[kind]} a side at most")
    if kind == "avif" and height * width > _MOST_IN_AVIF:
        raise ValueError(f"{width} x {height} pixels are too many for {suffix}: {_MOST_IN_AVIF} at most")


def read_to_upscale(source: Path, target: Path, factor: float, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read an image file; check that the format of `target` can hold its result, `factor` times the size.

    Raises:
        DataError: the file cannot be read, or the result is too large for its format.
    """
    picture = read_picture(source, max_pixels)
    try:
        check_size(target, *resized_size(picture.pixels.shape[:2], factor))
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    return picture


def memory_is_free(picture: Picture, target: Path, factor: float) -> bool:
    """Whether there is memory for the result, `factor` times the size of `picture`, and to write it to `target`."""
    return _memory(picture, target, factor)[2]


def check_memory(source: Path, picture: Picture, target: Path, factor: float) -> None:
    """Raise a DataError that names `source` unless `memory_is_free`."""
    needed, free, enough = _memory(picture, target, factor)
    if not enough:
        height, width = resized_size(picture.pixels.shape[:2], factor)
        raise DataError(
            f"{source}: the result, {width} x {height} pixels, needs {needed / 2**30:.1f} GiB of "
            f"{free / 2**30:.1f} GiB free"
        )


def _memory(picture: Picture, target: Path, factor: float) -> tuple[int, float, bool]:
    """The bytes that a result needs, those that are free, and whether they are enough."""
    height, width = resized_size(picture.pixels.shape[:2], factor)
    channels, itemsize = picture.pixels.shape[2], picture.pixels.itemsize
    computing = min(4 * 3 * height * width, BAND)
    writing = height * width * _WRITING.get(SUFFIXES[target.suffix.lower()], 0)
    # Memory that computing has freed does not always serve for writing.
    needed = height * width * channels * itemsize + computing + writing
    free = free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        return_freed_memory()
        free = free_memory(torch.device("cpu"))
    return needed, math.inf if free is None else free, free is None or needed <= free


def losses(path: str | os.PathLike[str], picture: Picture) -> list[str]:
    """Messages about what the format of `path` cannot hold, or other programs cannot read."""
    kind = SUFFIXES[Path(path).suffix.lower()]
    found = []
    if kind in ("jpeg", "webp", "avif") and picture.pixels.itemsize == 2:
        found.append("its 16 bits are rounded to 8: PNG and TIFF keep them")
    if kind == "png" and picture.icc and len(picture.icc) > _LARGE_PROFILE:
        size = f"{len(picture.icc) / 2**20:.1f} MiB"
        found.append(f"its colour profile of {size} is kept; programs built on Pillow read none above 1 MiB in PNG")
    if kind == "jpeg" and picture.icc and len(picture.icc) > _LARGEST_IN_JPEG:
        found.append("its colour profile is left out: JPEG holds none above 15.9 MiB")
    if kind == "webp" and picture.icc and picture.pixels.shape[2] < 3:
        found.append("its colour profile, one of gray, is left out: WebP has RGB alone")
    if kind == "avif" and picture.icc and picture.pixels.shape[2] == 2:
        found.append("its colour profile, one of gray, is left out: with transparency AVIF has RGB alone")
    if picture.exif and not _holds_exif(kind, picture.exif):
        found.append("its EXIF data (date, camera, place) is left out: JPEG holds none above 64 KiB")
    # The PNG chunks that describe colours other than by the sRGB default or the ICC profile.
    names = [name.decode() for name in picture.colour if name != b"sRGB"]
    if "cICP" not in names and (picture.icc or b"sRGB" in picture.colour):  # take precedence over gAMA and cHRM
        names = [name for name in names if name not in ("gAMA", "cHRM")]
    if kind != "png" and names:
        found.append(f"{', '.join(names)}, which tell of its colours, are left out: PNG alone has them (--format png)")
    return found


def _holds_exif(kind: str, exif: bytes) -> bool:
    return kind != "jpeg" or len(exif) <= _LARGEST_EXIF_IN_JPEG


def write_picture(path: str | os.PathLike[str], picture: Picture, quality: int = 95) -> None:
    """Write an image in the format of the suffix of `path`, whole or not at all.

    PNG holds everything, TIFF everything but PNG's chunks. For JPEG, WebP and AVIF 16 bits are rounded to 8; JPEG has
    no transparency, so the image is drawn over white. A colour profile that does not fit the channels is not written.
    `quality`, 1 to 100, is that of JPEG, WebP and AVIF.

    Raises:
        ValueError: another suffix, too many pixels for the format, or AVIF with a Pillow that does not write it.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: images are written as {', '.join(SUFFIXES)}")
    check_size(path, *picture.pixels.shape[:2])
    kind = SUFFIXES[path.suffix.lower()]
    if kind == "avif" and (problem := avif_problem()):
        raise ValueError(f"{path}: {problem}")
    channels = picture.pixels.shape[2]
    icc, _ = matching_profile(picture.icc, 3 if kind == "webp" or (kind == "avif" and channels == 2) else channels)
    if kind == "jpeg" and icc and len(icc) > _LARGEST_IN_JPEG:
        icc = None
    with written_whole(path) as temporary:
        if kind == "png":
            with temporary.open("wb") as file:
                file.writelines(png_parts(picture.pixels, icc, picture.colour, picture.exif))
        elif kind == "tiff":
            write_tiff(temporary, picture.pixels, icc, picture.exif)
        else:
            pixels = over_white(picture.pixels) if kind == "jpeg" else picture.pixels
            image = to_pil(Picture(eight_bits(pixels)))
            exif = picture.exif if picture.exif and _holds_exif(kind, picture.exif) else b""
            options: dict[str, Any] = {"quality": quality, "icc_profile": icc, "exif": exif}
            if kind == "webp":
                options["method"] = 4
            elif channels > 2 or kind == "jpeg":
                options["subsampling"] = "4:4:4" if quality >= 90 else "4:2:0"
            image.save(temporary, kind.upper(), **options)
