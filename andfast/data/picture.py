"""Images as files hold them: pixels of 8 or 16 bits, upright, with transparency and colour profile."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms

# The colour space that a profile's header names, by the channels of the pixels.
_SPACES = {1: b"GRAY", 2: b"GRAY", 3: b"RGB ", 4: b"RGB "}
_DAMAGED = "its colour profile is damaged, and not used"

# Pillow's modes of 8 bits by their channels, and the modes that others are converted to.
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_AT_ONCE = 2**24  # bytes of pixels that are converted at once
_BECOMES = {"1": "L", "RGBX": "RGB", "RGBa": "RGBA", "La": "LA", "YCbCr": "RGB", "HSV": "RGB", "PA": "RGBA"}

# Tags of TIFF, and values.
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0


@dataclass(frozen=True)
class Picture:
    """An image as files hold it.

    Attributes:
        pixels: (H, W, C) of uint8 or uint16; C is 1 for gray, 2 with alpha, 3 for RGB, 4 with alpha, not premultiplied.
        icc: the colour profile, which fits the pixels.
        colour: the data of the PNG chunks that define the colours, by name.
        notes: messages about parts of the file that are damaged and were not used.
        exif: EXIF data that hold for a result of another size, too (`carried_exif`).
    """

    pixels: np.ndarray
    icc: bytes | None = None
    colour: dict[bytes, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    exif: bytes | None = None


class Opened(NamedTuple):
    """An image file whose header is read: the size of the upright image, and a function that decodes it."""

    height: int
    width: int
    decode: Callable[[], Picture]


def make_opened(width: int, height: int, orientation: int, decode: Callable[[], Picture]) -> Opened:
    """An `Opened` from the stored size and EXIF's orientation; ValueError if there are no pixels."""
    if width <= 0 or height <= 0:
        raise ValueError(f"damaged: {width} x {height} pixels")
    return Opened(width, height, decode) if orientation >= 5 else Opened(height, width, decode)


def bytes_at(file: BinaryIO, place: int, length: int) -> bytes:
    """Up to `length` bytes from `place` on; `file.read` alone would allocate `length` even if the file is shorter."""
    there = file.seek(0, io.SEEK_END) - place
    if there <= 0:
        return b""
    file.seek(place)
    return file.read(min(length, there))


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (H, W, C) turned upright by EXIF's orientation, contiguous."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    pixels = pixels[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]
    if orientation < 5:
        return np.ascontiguousarray(pixels)
    turned = np.empty(pixels.shape, pixels.dtype)
    for channel in range(pixels.shape[2]):  # in two thirds of the time
        turned[..., channel] = pixels[..., channel]
    return turned


def matching_profile(icc: bytes | None, channels: int) -> tuple[bytes | None, tuple[str, ...]]:
    """A colour profile if it fits pixels with so many channels, or None and a message."""
    return _profile_of(icc, _SPACES[channels])


def _profile_of(icc: bytes | None, space: bytes) -> tuple[bytes | None, tuple[str, ...]]:
    if not icc:
        return None, ()
    if len(icc) <= 128 or icc[36:40] != b"acsp" or int.from_bytes(icc[:4], "big") > len(icc):
        return None, (_DAMAGED,)
    if icc[16:20] != space:
        found, wanted = (name.decode("ascii", "replace").strip() for name in (icc[16:20], space))
        return None, (f"its colour profile is one of {found}, its pixels are {wanted}: not used",)
    return icc, ()


def picture_of(
    pixels: np.ndarray, icc: bytes | None = None, orientation: int = 1, colour: dict[bytes, bytes] | None = None
) -> Picture:
    """A picture of stored pixels (H, W, C) and the metadata of the file."""
    icc, notes = matching_profile(icc, pixels.shape[2])
    return Picture(orient(pixels, orientation), icc, colour or {}, notes)


def picture_of_image(image: Image.Image, icc: bytes | None, orientation: int = 1) -> Picture:
    """A picture of Pillow's image with 8 bits; palettes become RGB, CMYK becomes sRGB, by its profile if possible.

    Raises:
        ValueError: the image has another mode.
    """
    image.load()
    if image.mode != "CMYK":
        return picture_of(pixels_of(image), icc, orientation)
    icc, notes = _profile_of(icc, b"CMYK")
    rgb = None
    if icc:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            rgb = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ValueError, OSError, ImageCms.PyCMSError):
            notes = (_DAMAGED,)
    return Picture(orient(np.array(rgb or image.convert("RGB")), orientation), notes=notes)


def pixels_of(image: Image.Image) -> np.ndarray:
    """The stored pixels (H, W, C) of Pillow's image with 8 bits; palettes become RGB. ValueError for other modes."""
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode in _BECOMES:
        image = image.convert(_BECOMES[image.mode])
    if image.mode not in _CHANNELS:
        raise ValueError(f"pixels of the kind {image.mode}; read are gray and RGB of 8 or 16 bits, palettes and CMYK")
    return np.array(image).reshape(image.height, image.width, _CHANNELS[image.mode])


def from_pil(image: Image.Image) -> Picture:
    """A picture of any image of Pillow, upright; it is loaded if necessary.

    Raises:
        ValueError: its mode is not supported.
        OSError: it cannot be loaded.
    """
    stored = image.tile[0][3] if getattr(image, "tile", None) and image.format == "PNG" else None
    image.load()
    icc, key = image.info.get("icc_profile"), image.info.get("transparency")
    try:
        # Not image.getexif(): for a PNG without EXIF data in its header, that decodes all of the image.
        turn = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # the pixels of an image with broken EXIF data are still good
        turn = 1
    if image.mode in ("CMYK", "P"):
        return picture_of_image(image, icc, turn)
    pixels = _gray(image) if image.mode.startswith("I") else pixels_of(image)
    if isinstance(key, int | tuple):
        key = np.atleast_1d(key)
        if pixels.dtype == np.uint8:
            # Pillow converts pixels of fewer and of more bits to 8, but not their key.
            key = key * {"L;2": 85, "L;4": 17}.get(stored, 1) if key.max() < 256 else key >> 8
        pixels = add_transparency_key(pixels, key)
    return picture_of(pixels, icc, turn)


def _gray(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("integer pixels beyond 16 bits")
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # which Pillow does not invert
        values = 65535 - values
    return values.astype(np.uint16)[..., None]


def add_transparency_key(pixels: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Add an alpha channel in which the pixels of the value `key` are transparent, as a PNG's tRNS chunk says."""
    shown = (pixels != key).any(2, keepdims=True)
    return np.concatenate([pixels, np.where(shown, np.iinfo(pixels.dtype).max, 0).astype(pixels.dtype)], 2)


def divide_by_alpha(pixels: np.ndarray) -> np.ndarray:
    """Colours (H, W, C) that are multiplied by alpha, the last channel, as those that are not."""
    most, alpha = np.iinfo(pixels.dtype).max, np.maximum(pixels[..., -1:], 1).astype(np.uint32)
    whole = (pixels[..., :-1].astype(np.uint32) * most + alpha // 2) // alpha
    return np.concatenate([np.minimum(whole, most).astype(pixels.dtype), pixels[..., -1:]], axis=2)


def to_pil(picture: Picture) -> Image.Image:
    """As an image of Pillow; ValueError for 16 bits and more than one channel, which Pillow does not have."""
    pixels = picture.pixels
    if pixels.dtype != np.uint8 and pixels.shape[2] > 1:
        raise ValueError("Pillow has no images with more than one channel of 16 bits")
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if picture.icc:
        image.info["icc_profile"] = picture.icc
    return image


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 -> uint8, rounded."""
    if pixels.dtype == np.uint8:
        return pixels
    return _by_rows(lambda part: ((part.astype(np.uint32) + 128) // 257).astype(np.uint8), pixels)


def over_white(pixels: np.ndarray) -> np.ndarray:
    """Composite over white: (H, W, C) -> (H, W, C), or C - 1 if the last channel is alpha."""
    if pixels.shape[2] in (1, 3):
        return pixels
    most = np.iinfo(pixels.dtype).max
    if pixels[..., -1].min() == most:
        return np.ascontiguousarray(pixels[..., :-1])

    def composite(part: np.ndarray) -> np.ndarray:
        wide = part.astype(np.uint16 if most == 255 else np.uint32)  # which holds most * most + most // 2
        alpha = wide[..., -1:]
        return ((wide[..., :-1] * alpha + (most * (most - alpha) + most // 2)) // most).astype(part.dtype)

    return _by_rows(composite, pixels)


def _by_rows(function: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> np.ndarray:
    """Apply a function of pixels to some rows at a time: its wider types would take several times the memory."""
    step = max(_AT_ONCE // pixels[0].nbytes, 1)
    return np.concatenate([function(pixels[top : top + step]) for top in range(0, len(pixels), step)])
