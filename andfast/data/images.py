"""Reading and writing image files, recognised by their first bytes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, WebPImagePlugin

from andfast.data.bmp import open_bmp, open_dib
from andfast.data.exif import carried_exif, orientation_of
from andfast.data.heif import kind_of, open_avif, open_heif
from andfast.data.jpeg import open_jpeg
from andfast.data.picture import (
    Opened,
    Picture,
    eight_bits,
    make_opened,
    over_white,
    picture_of_image,
)
from andfast.data.png import SIGNATURE, open_png
from andfast.data.pnm import open_pnm
from andfast.data.suffixes import RAW, RAW_SUFFIXES
from andfast.data.tiff import open_tiff
from andfast.utils.files import written_whole
from andfast.utils.memory import free_memory

#: Larger images are refused by upscaling unless a larger limit is given, and otherwise read if there is memory: a small
#: file can be an attack on the memory. It is Pillow's limit.
MAX_PIXELS = 178_956_970

_BYTES_PER_PIXEL = 24  # that decoding takes at most, with 16 bits

_FORMATS = "AVIF, BMP, HEIC, JPEG, PNG, PPM, TIFF, WebP"
_OPEN_BY_START: dict[bytes, Callable[[BinaryIO], Opened]] = {
    SIGNATURE: open_png,
    b"\xff\xd8\xff": open_jpeg,
    b"BM": open_bmp,
    **dict.fromkeys((b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0"), open_dib),  # the lengths of its headers
    **dict.fromkeys((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), open_tiff),
    **{b"P%d%c" % (kind, blank): open_pnm for kind in range(1, 7) for blank in b" \t\r\n\f\v#"},
}


class DataError(ValueError):
    """A folder or a set of images that cannot be used; the message names it and what would be right."""


class ImageError(DataError):
    """An image file that cannot be read; the message names the file and the cause."""


def read_picture(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Picture:
    """Read an image file, upright, with its bits, its transparency and its colour profile.

    BMP, JPEG, PNG, PPM, TIFF, WebP, AVIF, and with pillow-heif HEIC. Palettes become RGB, CMYK becomes sRGB by its
    profile; of several frames the first is read. EXIF data is kept (`carried_exif`, `exif_of_tiff`), other metadata is
    not; both may be damaged.

    Raises:
        ImageError: the file is missing, truncated, of an unknown format, of floating-point or more than 16 bits, or
            has more than `max_pixels`, which are not decoded; the message names it.
    """
    with _opened(path) as image:
        _check_pixels(image, max_pixels)
        return image.decode()


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as 8-bit RGB, upright: uint8 (H, W, 3), contiguous and writable.

    Gray and palette images become RGB; transparent pixels are composited over white; 16-bit values are scaled to
    8 bits. Colour profiles are ignored.

    Raises:
        ImageError: as for `read_picture`, or the image is too large for the free memory.
    """
    with _opened(path) as image:
        _check_memory(image)
        pixels = eight_bits(over_white(image.decode().pixels))
        return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


def image_size(path: str | os.PathLike[str], max_pixels: float = math.inf) -> tuple[int, int]:
    """Height and width of the array that `read_image` returns, without decoding it.

    Only the file's header is read, of HEIC and AVIF the whole file.

    Raises:
        ImageError: the header cannot be read, or the image has more than `max_pixels`, or is too large for the free
            memory.
    """
    with _opened(path) as image:
        _check_pixels(image, max_pixels)
        _check_memory(image)
        return image.height, image.width


def write_png(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write `array`, uint8 (H, W, 3) RGB, to `path` as PNG, whole or not at all.

    Raises:
        ValueError: `array` is of another type or shape, or empty.
        OSError: the file cannot be written.
    """
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ValueError(f"an image is uint8 (H, W, 3), not {array.dtype} {tuple(array.shape)}")
    with written_whole(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Opened]:
    """An image file with its header read; every error inside becomes an ImageError that names the file."""
    try:
        with open(path, "rb") as file:
            if os.path.splitext(path)[1].lower() in RAW_SUFFIXES:  # many are TIFF files of a thumbnail and raw data
                raise ValueError(RAW)
            yield _open(file)
    except Exception as error:  # decoders of broken files raise nearly anything
        raise ImageError(f"{path}: {_cause(error)}") from error


def _open(file: BinaryIO) -> Opened:
    start = file.read(64)
    for known, open_one in _OPEN_BY_START.items():
        if start.startswith(known):
            return open_one(file)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _open_webp(file)
    if kind := kind_of(start):
        return open_avif(file) if kind == "avif" else open_heif(file)
    if start[:2] in (b"PF", b"Pf"):  # of the PPM family
        raise ValueError("floating-point pixels, whose range is not known")
    raise ValueError(f"not an image ({_FORMATS} are read)")


def _open_webp(file: BinaryIO) -> Opened:
    file.seek(0)
    # Not Image.open, which refuses large images, or warns of them, by a setting of the whole process.
    image = WebPImagePlugin.WebPImageFile(file)
    exif, icc = image.info.get("exif"), image.info.get("icc_profile")
    turn = orientation_of(exif, image.info.get("xmp"))
    return make_opened(*image.size, turn, lambda: replace(picture_of_image(image, icc, turn), exif=carried_exif(exif)))


def _check_pixels(image: Opened, max_pixels: float) -> None:
    if image.height * image.width > max_pixels:
        size = f"{image.width} x {image.height} pixels"
        raise ValueError(f"{size}; more than {max_pixels} are refused (--max-pixels)")


def _check_memory(image: Opened) -> None:
    """Refuse an image that is too large for the free memory."""
    pixels = image.height * image.width
    if pixels <= MAX_PIXELS:
        return
    needed, free = _BYTES_PER_PIXEL * pixels, free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        raise MemoryError(
            f"{image.width} x {image.height} pixels; to read them needs about {needed / 2**30:.1f} GiB of "
            f"{free / 2**30:.1f} GiB free"
        )


def _cause(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = str(error).strip() or type(error).__name__  # libheif ends in empty lines
    return words if isinstance(error, OSError | ValueError | MemoryError) else f"damaged ({words})"
