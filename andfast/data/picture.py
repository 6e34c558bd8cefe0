"""Images as files hold them: pixels of 8 or 16 bits, upright, with transparency and colour profile."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms

# The colour space that a profile's header names, by the channels of the pixels.
_SPACES = {1: b"GRAY", 2: b"GRAY", 3: b"RGB ", 4: b"RGB "}
_DAMAGED = "its colour profile is damaged, and not used"

# Pillow's modes of 8 bits by their channels, and the modes that others are converted to.
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_BECOMES = {"1": "L", "RGBX": "RGB", "RGBa": "RGBA", "La": "LA", "YCbCr": "RGB", "HSV": "RGB", "PA": "RGBA"}

# Tags of EXIF and TIFF, and values.
_ORIENTATION, _SHORT = 0x0112, 3
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_DIRECTORIES = (0x8769, 0x8825)  # of the exposure and of the place
# Tags of sizes, places and the storage of pixels, of other directories, and of what is kept elsewhere (profile) or not
# at all (XMP).
_OF_THE_FILE = frozenset({
    _ORIENTATION, *_DIRECTORIES, 0x00FE, 0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x0111, 0x0115, 0x0116, 0x0117, 0x011C,
    0x0140, 0x0142, 0x0143, 0x0144, 0x0145, 0x014A, 0x0152, 0x0153, 0x0201, 0x0202, 0x0211, 0x0212, 0x0213, 0x02BC,
    0x8773, 0x9214, 0xA002, 0xA003, 0xA005, 0xA20E, 0xA20F, 0xA210, 0xA214,
})  # fmt: skip
_LONG = 4
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # bytes of a value
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


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
    file.seek(place)
    return file.read(max(min(length, there), 0))


def orientation_of(exif: bytes | None, xmp: bytes | None = None) -> int:
    """EXIF's orientation of a stored image, 1 to 8; 1 if the metadata is damaged."""
    found = _orientation_in_exif(exif) if exif else None
    if found is None and xmp and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found if found in range(1, 9) else 1


def _orientation_in_exif(exif: bytes) -> int | None:
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, first)
        for place in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", data, place)
            if tag == _ORIENTATION:
                return struct.unpack_from(f"{order}{'H' if kind == _SHORT else 'I'}", data, place + 8)[0]
    except struct.error:
        pass
    return None


def carried_exif(exif: bytes | None) -> bytes | None:
    """EXIF data without what an upright result of another size changes: orientation, sizes, places and the thumbnail.

    Date, camera, place, resolution and the rest stay as they are, byte for byte, but for what lies outside of the data.
    None if nothing is left.
    """
    data = (exif or b"").removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 8:
        return None
    first, inside = _entries(data, order, data[4:8]), {}
    for tag in _DIRECTORIES:
        if tag in first and (kept := _kept(_entries(data, order, first[tag].value))):
            inside[tag] = kept
    first = _kept(first)
    if not first and not inside:
        return None
    # The first directory, then the others, each followed by its longer values. Pointers do not change its length.
    pointers = {tag: _Entry(tag, _LONG, 1, bytes(4)) for tag in inside}
    place, others = 8 + len(_directory(first | pointers, order, 8)), b""
    for tag, entries in inside.items():
        pointers[tag] = _Entry(tag, _LONG, 1, struct.pack(f"{order}I", place + len(others)))
        others += _directory(entries, order, place + len(others))
    header = data[:4] + struct.pack(f"{order}I", 8)
    return b"Exif\0\0" + header + _directory(first | pointers, order, 8) + others


class _Entry(NamedTuple):
    """An entry of a directory, its value as it is stored."""

    tag: int
    kind: int
    count: int
    value: bytes


def _entries(data: bytes, order: str, pointer: bytes) -> dict[int, _Entry]:
    """The whole entries of the directory that begins where `pointer` says, by tag."""
    place = int.from_bytes(pointer[:4], "little" if order == "<" else "big")
    if place + 2 > len(data):
        return {}
    (count,) = struct.unpack_from(f"{order}H", data, place)
    found: dict[int, _Entry] = {}
    for start in range(place + 2, min(place + 2 + 12 * count, len(data) - 11), 12):
        tag, kind, values, far = struct.unpack_from(f"{order}HHII", data, start)
        size = _TYPE_SIZES.get(kind, 0) * values
        begin = start + 8 if size <= 4 else far
        if size and begin + size <= len(data):
            found.setdefault(tag, _Entry(tag, kind, values, data[begin : begin + size]))
    return found


def _kept(entries: dict[int, _Entry]) -> dict[int, _Entry]:
    return {tag: entry for tag, entry in entries.items() if tag not in _OF_THE_FILE}


def _directory(entries: dict[int, _Entry], order: str, start: int) -> bytes:
    """A directory at the place `start`, without another one after it, and its values of more than four bytes."""
    head, values = struct.pack(f"{order}H", len(entries)), b""
    place = start + 2 + 12 * len(entries) + 4
    for entry in sorted(entries.values()):
        stored = entry.value.ljust(4, b"\0")
        if len(entry.value) > 4:
            stored = struct.pack(f"{order}I", place + len(values))
            values += entry.value + b"\0" * (len(entry.value) % 2)
        head += struct.pack(f"{order}HHI", entry.tag, entry.kind, entry.count) + stored
    return head + bytes(4) + values


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
        turn = Image.Image.getexif(image).get(_ORIENTATION, 1)
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
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def over_white(pixels: np.ndarray) -> np.ndarray:
    """Composite over white: (H, W, C) -> (H, W, C), or C - 1 if the last channel is alpha."""
    if pixels.shape[2] in (1, 3):
        return pixels
    most = np.iinfo(pixels.dtype).max
    if pixels[..., -1].min() == most:
        return np.ascontiguousarray(pixels[..., :-1])
    wide = pixels.astype(np.uint16 if most == 255 else np.uint32)  # which holds most * most + most // 2
    alpha = wide[..., -1:]
    return ((wide[..., :-1] * alpha + (most * (most - alpha) + most // 2)) // most).astype(pixels.dtype)
