"""Image files with all that they hold: 8 or 16 bits, gray or colour, transparency, the colour profile."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from andfast.data.images import FORMATS, ImageError, cause, upright
from andfast.files import written_whole
from andfast.upscaling.png import png_bytes
from andfast.upscaling.tiff import check_pixels, read_tiff, write_tiff

#: The formats that are written, by the suffixes that they are known by.
SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff"}

#: Images of more pixels are refused unless one asks for them: Pillow's own limit, beyond which it takes a small file
#: for an attack on the memory.
MAX_PIXELS = 178_956_970

# Height and width at most: what the fields of the formats' headers hold.
_LONGEST = {"jpeg": 65_535, "webp": 16_383, "png": 2**31 - 1, "tiff": 2**31 - 1}

# Modes that are one of 1 to 4 channels of 8 bits, and what others become.
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_BECOMES = {"1": "L", "RGBX": "RGB", "RGBa": "RGBA", "La": "LA", "YCbCr": "RGB", "HSV": "RGB", "CMYK": "RGB"}


# A field of TIFF, and what it says.
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0


@dataclass(frozen=True)
class Picture:
    """An image as files hold it.

    Attributes:
        pixels: (H, W, C) of uint8 or uint16; C is 1 for gray, 2 with alpha, 3 for RGB, 4 with alpha, not multiplied
            into the colours.
        icc: the colour profile.
    """

    pixels: np.ndarray
    icc: bytes | None = None


def read_picture(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Picture:
    """Read an image file, upright, with its bits, its transparency and its colour profile.

    BMP, JPEG, PNG, PPM, TIFF and WebP. Palettes become RGB, CMYK becomes sRGB by its profile; of several frames
    the first is read. The other metadata (EXIF, XMP, text) is not kept.

    Args:
        path: the file.
        max_pixels: more are refused before they are decoded.

    Raises:
        ImageError: the file is missing, no image of a known format, truncated, too large, or of a pixel type that has
            no place here (floating point, more than 16 bits); the message names it.
    """
    try:
        deep = read_tiff(path, max_pixels)
        if deep is not None:
            return Picture(*deep)
        with Image.open(path, formats=FORMATS) as image:
            check_pixels(*image.size, max_pixels)
            pixels = _deep(path, image)
            if pixels is None:
                image.load()
            return from_pil(image) if pixels is None else Picture(pixels, image.info.get("icc_profile"))
    except Exception as error:  # decoders of broken files raise nearly anything
        raise ImageError(f"{path}: {cause(error)}") from error


def from_pil(image: Image.Image) -> Picture:
    """What an image of Pillow holds, upright; see `read_picture`.

    Raises:
        ValueError: its mode has no place here.
    """
    icc = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        pixels = _gray(image)
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            pixels = 65535 - pixels
        key = image.info.get("transparency")
        pixels = _keyed(pixels, key) if isinstance(key, int) else pixels
        return Picture(np.ascontiguousarray(upright(pixels, image)), icc)
    if image.mode == "CMYK":
        image, icc = _from_cmyk(image, icc), None
    elif image.mode == "P" or "transparency" in image.info:
        gray = image.mode in ("1", "L")
        image = image.convert(("LA" if gray else "RGBA") if image.has_transparency_data else "RGB")
    elif image.mode in _BECOMES:
        image = image.convert(_BECOMES[image.mode])
    if image.mode not in _CHANNELS:
        raise ValueError(f"pixels of the kind {image.mode}; read are gray and RGB of 8 or 16 bits, palettes and CMYK")
    pixels = np.array(image).reshape(image.height, image.width, _CHANNELS[image.mode])
    return Picture(np.ascontiguousarray(upright(pixels, image)), icc)


def to_pil(picture: Picture) -> Image.Image:
    """As an image of Pillow, which has colours of 8 bits alone.

    Raises:
        ValueError: colours of 16 bits, or gray with alpha of 16 bits.
    """
    pixels = picture.pixels
    if pixels.dtype != np.uint8 and pixels.shape[2] > 1:
        raise ValueError("Pillow has no images with more than one channel of 16 bits")
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if picture.icc:
        image.info["icc_profile"] = picture.icc
    return image


def check_size(path: str | os.PathLike[str], height: int, width: int) -> None:
    """Raise a ValueError if the format that `path` names cannot hold so many pixels."""
    longest = _LONGEST[SUFFIXES[Path(path).suffix.lower()]]
    if max(height, width) > longest:
        raise ValueError(f"{width} x {height} pixels are too many for {Path(path).suffix}: {longest} a side at most")


def write_picture(path: str | os.PathLike[str], picture: Picture, quality: int = 95) -> None:
    """Write an image in the format that the suffix of `path` names, whole or not at all.

    PNG and TIFF hold all of it. WebP and JPEG have 8 bits, to which 16 are rounded; JPEG has no transparency, and gets
    the image as it looks over white.

    Args:
        path: where to.
        picture: the image.
        quality: of JPEG and WebP, 1 to 100.

    Raises:
        ValueError: another suffix, or too many pixels for the format.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: images are written as {', '.join(SUFFIXES)}")
    check_size(path, *picture.pixels.shape[:2])
    kind = SUFFIXES[path.suffix.lower()]
    with written_whole(path) as temporary:
        if kind == "png":
            temporary.write_bytes(png_bytes(picture.pixels, picture.icc))
        elif kind == "tiff":
            write_tiff(temporary, picture.pixels, picture.icc)
        else:
            image = to_pil(Picture(eight_bits(picture.pixels), picture.icc))
            if kind == "jpeg" and image.mode in ("LA", "RGBA"):
                image = over_white(image)
            options = {"quality": quality, "icc_profile": picture.icc}
            if kind == "webp":
                image.save(temporary, "WEBP", method=4, **options)
            else:
                image.save(temporary, "JPEG", subsampling=0 if quality >= 90 else 2, **options)


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 -> uint8, rounded."""
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def over_white(image: Image.Image) -> Image.Image:
    """LA or RGBA -> L or RGB."""
    over = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), over)
    return flat.convert("L" if image.mode == "LA" else "RGB")


def _deep(path: str | os.PathLike[str], image: Image.Image) -> np.ndarray | None:
    """The pixels of a PNG or TIFF of 16 bits in several channels side by side; None of other images, not loaded yet.

    Of such a file Pillow gives the upper bytes. Told that the numbers are stored in the other order, it gives the lower
    ones.
    """
    kinds = {_raw_mode(tile) for tile in image.tile} if image.format in ("PNG", "TIFF") else set()
    if not any(kind is not None and ";16" in kind and not kind.startswith("I") for kind in kinds):
        return None
    kind = kinds.pop()
    if kinds or kind[:-4] not in ("RGB", "RGBA", "RGBX", "LA"):
        raise ValueError(f"16-bit pixels stored as {kind}; read are gray, RGB and RGBA")
    if kind[:2] == "LA":
        both = np.asarray(_loaded_as(image, "RGBA"))  # a pixel's four bytes, of gray and alpha
        return np.ascontiguousarray(both).view(">u2").astype(np.uint16)
    key = image.info.get("transparency")
    order = {"N": "L" if sys.byteorder == "little" else "B"}.get(kind[-1], kind[-1])
    with Image.open(path, formats=FORMATS) as other:
        low = np.asarray(_loaded_as(other, kind[:-1] + ("B" if order == "L" else "L")))
        high = np.asarray(_loaded_as(image, kind[:-1] + order))
        pixels = high.astype(np.uint16) << 8 | low
        if image.format == "PNG":  # TIFF turns upright while it is loaded
            pixels = upright(pixels, image)
        elif high.shape[:2] != image.size[::-1]:
            raise ValueError("its size changed while it was read")
    return _keyed(pixels, key) if isinstance(key, tuple) else np.ascontiguousarray(pixels)


def _raw_mode(tile: tuple) -> str | None:
    """How the decoder of a part of an image is told that the pixels are stored."""
    arguments = tile[3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else None


def _loaded_as(image: Image.Image, raw_mode: str) -> Image.Image:
    """Load an image as if its pixels were stored in another way."""
    tiles = []
    for tile in image.tile:
        arguments = (raw_mode, *tile[3][1:]) if isinstance(tile[3], tuple) else raw_mode
        # A plain tuple in older versions of Pillow.
        tiles.append(tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments))
    image.tile = tiles
    image.load()
    return image


def _gray(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("integer pixels beyond 16 bits")
    return values.astype(np.uint16)[..., None]


def _keyed(pixels: np.ndarray, key: int | tuple[int, ...]) -> np.ndarray:
    """Pixels of one value are transparent, as a PNG's tRNS chunk has it: that as a channel."""
    shown = (pixels != np.asarray(key, np.uint16)).any(2, keepdims=True)
    return np.concatenate([pixels, np.where(shown, 65535, 0).astype(np.uint16)], 2)


def _from_cmyk(image: Image.Image, icc: bytes | None) -> Image.Image:
    """CMYK -> RGB: sRGB where the profile says which colours they are."""
    if icc is None:
        return image.convert("RGB")
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    exif = image.info.get("exif")
    result = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    if exif is not None:
        result.info["exif"] = exif
    return result
