"""Reading and writing images: 8-bit RGB arrays on one side, files on the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from andfast.data.formats import open_image
from andfast.data.picture import Opened, Picture, eight_bits, over_white
from andfast.utils.files import written_whole
from andfast.utils.memory import free_memory

#: Images of more pixels are refused by upscaling unless one asks for them, and otherwise read if there is memory for
#: them: beyond this a small file may be an attack on the memory. It is the limit that Pillow has.
MAX_PIXELS = 178_956_970

# What decoding takes at most, with 16 bits.
_BYTES_A_PIXEL = 24


class DataError(ValueError):
    """A folder or a set of images that cannot be used; the message names it and says what would be right."""


class ImageError(DataError):
    """An image file that cannot be read; the message names the file and the cause."""


def read_picture(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Picture:
    """Read an image file, upright, with its bits, its transparency and its colour profile.

    BMP, JPEG, PNG, PPM, TIFF and WebP. Palettes become RGB, CMYK becomes sRGB by its profile; of several frames
    the first is read. The other metadata (EXIF, XMP, text) is not kept, and costs nothing where it is damaged.

    Args:
        path: the file.
        max_pixels: more are refused before they are decoded.

    Raises:
        ImageError: the file is missing, no image of a known format, truncated, too large, or of a pixel type that has
            no place here (floating point, more than 16 bits); the message names it.
    """
    with _opened(path) as image:
        if image.height * image.width > max_pixels:
            size = f"{image.width} x {image.height} pixels"
            raise ValueError(f"{size}; more than {max_pixels} are refused (--max-pixels)")
        return image.decode()


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as 8-bit RGB, upright: `read_picture` without what a network does not see.

    Gray and palette images become RGB; transparent pixels are composited over white; 16-bit values are scaled to
    8 bits. Colour profiles are ignored. Images of any size are read that fit the free memory.

    Returns:
        uint8 array (H, W, 3) in 0..255, contiguous and writable.

    Raises:
        ImageError: as of `read_picture`, or too large for the memory.
    """
    with _opened(path) as image:
        _check_memory(image)
        pixels = eight_bits(over_white(image.decode().pixels))
        return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width in pixels of the array that `read_image` gives, from the file's header only.

    Raises:
        ImageError: the header cannot be read, or tells of more pixels than fit the free memory.
    """
    with _opened(path) as image:
        _check_memory(image)
        return image.height, image.width


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Opened]:
    """An image file with its header read; whatever goes wrong with it is an ImageError that names it."""
    try:
        with open(path, "rb") as file:
            yield open_image(file)
    except Exception as error:  # decoders of broken files raise nearly anything
        raise ImageError(f"{path}: {_cause(error)}") from error


def _check_memory(image: Opened) -> None:
    """Refuse an image whose header tells of more pixels than there is memory for."""
    pixels = image.height * image.width
    if pixels <= MAX_PIXELS:
        return
    needed, free = _BYTES_A_PIXEL * pixels, free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        raise MemoryError(
            f"{image.width} x {image.height} pixels; to read them needs about {needed / 2**30:.1f} GiB of "
            f"{free / 2**30:.1f} GiB free"
        )


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


def _cause(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = str(error) or type(error).__name__
    return words if isinstance(error, OSError | ValueError | MemoryError) else f"damaged ({words})"
