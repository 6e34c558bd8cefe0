"""Reading and writing images: 8-bit RGB arrays on one side, files on the other."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, UnidentifiedImageError

from andfast.files import written_whole

#: Only the decoders that the suffixes stand for: Pillow picks one by content, and among the others are some
#: that start foreign programs (EPS).
FORMATS = ("BMP", "DIB", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_TIFF_WIDTH, _TIFF_HEIGHT, _EXIF_ORIENTATION = 0x0100, 0x0101, 0x0112
# What to do to a stored image so that it stands upright, by the value of its EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DataError(ValueError):
    """A folder or a set of images that cannot be used; the message names it and says what would be right."""


class ImageError(DataError):
    """An image file that cannot be read; the message names the file and the cause."""


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as 8-bit RGB, upright.

    The EXIF orientation is applied. Gray and palette images become RGB; transparent pixels are composited
    over white; 16-bit values are scaled to 8 bits; of several frames the first is read. Colour profiles are
    ignored.

    Returns:
        uint8 array (H, W, 3) in 0..255, contiguous and writable.

    Raises:
        ImageError: the file is missing, no image of a known format, truncated, of more pixels than Pillow's
            limit against decompression bombs, or of a pixel type without a fixed range (floating point).
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            # Asked after loading: Pillow turns TIFF upright itself while it loads, and then says 1 here.
            turn = _UPRIGHT.get(_orientation(image))
            rgb = _to_rgb(image)
            return np.array(rgb if turn is None else rgb.transpose(turn))
    except Exception as error:  # decoders of broken files raise nearly anything
        raise ImageError(f"{path}: {cause(error)}") from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width in pixels of the array that `read_image` gives, from the file's header only.

    Raises:
        ImageError: the header cannot be read, or tells of more pixels than Pillow's limit.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if image.format == "TIFF":  # Pillow tells its stored size or its upright one, by version
                width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
            return (width, height) if _orientation(image) >= 5 else (height, width)
    except Exception as error:
        raise ImageError(f"{path}: {cause(error)}") from error


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


def _orientation(image: Image.Image) -> int:
    try:
        # Not image.getexif(): for a PNG without EXIF data in its header, that decodes all of the image.
        return Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1)
    except Exception:  # the pixels of an image with broken EXIF data are still good
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray; convert("RGB") would clip it instead of scaling it
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("integer pixels beyond 16 bits")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def upright(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """The pixels (H, W, C) of a loaded image as its EXIF orientation says; a view."""
    return as_oriented(pixels, _orientation(image))


def as_oriented(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Stored pixels (H, W, C) as an orientation of 1 to 8 says, in the numbers of EXIF and TIFF; a view."""
    if turn in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    # Which of the directions, after that, run backwards.
    return pixels[:: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1]


def cause(error: Exception) -> str:
    """In words, why an image cannot be read, for a message that names the file."""
    if isinstance(error, UnidentifiedImageError):  # its own text repeats the path
        return f"not an image ({', '.join(FORMATS)} are read)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
