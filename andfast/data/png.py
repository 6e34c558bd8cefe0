"""PNG files, read even if their metadata is damaged, and written with 8 and 16 bits.

Pillow decodes the pixels, but gets only the chunks that they need: it refuses files with large or damaged texts or
profiles. It writes 16 bits only for gray.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from andfast.data.exif import carried_exif, orientation_of
from andfast.data.picture import (
    Opened,
    Picture,
    add_transparency_key,
    bytes_at,
    make_opened,
    picture_of,
    pixels_of,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"

#: The chunks that define the colours, in the order in which they are written, and their lengths.
COLOUR_CHUNKS = {b"cICP": 4, b"mDCV": 24, b"cLLI": 8, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}

_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_COLOUR_TYPES = {1: _GRAY, 2: _GRAY_ALPHA, 3: _RGB, 4: _RGB_ALPHA}  # by channels
_BITS = {_GRAY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), _GRAY_ALPHA: (8, 16), _RGB_ALPHA: (8, 16)}

_NEEDED = (b"IHDR", b"PLTE", b"tRNS")  # by the pixels, besides IDAT
_READ = (*_NEEDED, b"iCCP", b"eXIf", b"tEXt", b"zTXt", b"iTXt", *COLOUR_CHUNKS)
_MISSED = (b"tRNS", b"iCCP", *COLOUR_CHUNKS)  # without which the image looks different
_XMP, _RAW_EXIF = b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"
_LARGEST = 2**26  # bytes of a chunk that is read, compressed and decompressed
_TAIL = 2**14  # bytes at the end of a file that are searched for its orientation

_UP = 2  # the filter: differences from the pixel above
_LEVEL = 4  # of zlib: higher ones take several times as long for a few percent
_ROWS = 2**20  # bytes that are filtered and compressed at once


def open_png(file: BinaryIO) -> Opened:
    """Read a PNG file without its pixels; ValueError if its header is damaged."""
    needed: list[tuple[int, int]] = []  # places and lengths of the chunks that Pillow gets
    found: dict[bytes, bytes] = {}
    notes: list[str] = []
    chunks = _chunks(file)

    def look(name: bytes, begin: int, length: int) -> None:
        if name in _READ and name not in found and length <= _LARGEST:
            content = _checked(file, begin, length)
            key, data = (name, None) if content is None else _parsed(name, content)
            if data is None and name in _MISSED:
                notes.append(f"its {name.decode()} chunk is damaged, and not used")
            if data is not None:
                found.setdefault(key, data)
                if key in _NEEDED:
                    needed.append((begin, length + 12))
        elif name == b"IDAT":
            needed.append((begin, length + 12))

    for each in chunks:
        look(*each)
        if each[0] == b"IDAT" and not _turned_late(file):
            break
    header = found.get(b"IHDR", b"")
    if len(header) != 13:
        raise ValueError("damaged: its header is missing, or its checksum is wrong")
    width, height, bits, kind, *_ = struct.unpack(">IIBBBBB", header)
    if bits not in _BITS.get(kind, ()):
        raise ValueError(f"damaged: {bits} bits of colour type {kind}")
    if kind == _PALETTE and b"PLTE" not in found:
        raise ValueError("damaged: its palette is missing")

    def decode() -> Picture:
        for each in chunks:
            look(*each)
        content = SIGNATURE + b"".join(bytes_at(file, *place) for place in needed)
        pixels = _deep(content, kind) if bits == 16 else pixels_of(_loaded(content))
        transparent = found.get(b"tRNS")
        if kind in (_GRAY, _RGB) and transparent and len(transparent) >= 2 * pixels.shape[2]:
            # Pillow converts gray of fewer bits to 8, but not its key.
            most = 2**bits - 1
            key = np.frombuffer(transparent, ">u2", pixels.shape[2]).astype(np.int64) & most
            pixels = add_transparency_key(pixels, key * np.iinfo(pixels.dtype).max // most)
        colour = {name: found[name] for name in COLOUR_CHUNKS if name in found}
        picture = picture_of(pixels, found.get(b"iCCP"), turn, colour)
        exif = carried_exif(found.get(b"eXIf") or found.get(_RAW_EXIF))
        return replace(picture, notes=(*picture.notes, *notes), exif=exif)

    turn = orientation_of(found.get(b"eXIf") or found.get(_RAW_EXIF), found.get(_XMP))
    return make_opened(width, height, turn, decode)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Name, place and length of the data of each chunk, up to the end or to damaged ones."""
    place = len(SIGNATURE)
    while True:
        file.seek(place)
        start = file.read(8)
        if len(start) < 8 or not start[4:].isalpha() or start[4:] == b"IEND":
            return
        length = int.from_bytes(start[:4], "big")
        yield start[4:], place, length
        place += length + 12


def _turned_late(file: BinaryIO) -> bool:
    """Whether the orientation may come after the pixels, so that all chunks must be read to find it."""
    file.seek(max(file.seek(0, io.SEEK_END) - _TAIL, 0))
    tail = file.read()
    return any(name in tail for name in (b"eXIf", _XMP, _RAW_EXIF))


def _checked(file: BinaryIO, begin: int, length: int) -> bytes | None:
    """The data of a chunk, or None if its checksum is wrong."""
    chunk = bytes_at(file, begin, length + 12)
    return chunk[8:-4] if zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big") else None


def _parsed(name: bytes, data: bytes) -> tuple[bytes, bytes | None]:
    """A key for the content of a chunk, and the unwrapped content, or None if it is damaged or not used here."""
    if name == b"iCCP":
        return name, _inflated(data.partition(b"\0")[2][1:])
    if name in COLOUR_CHUNKS:
        return name, data if len(data) == COLOUR_CHUNKS[name] else None
    if name == b"iTXt" and data.startswith(_XMP):
        return _XMP, data
    if name in (b"zTXt", b"tEXt") and data.startswith(_RAW_EXIF):
        text = data[len(_RAW_EXIF) :]
        text = text if name == b"tEXt" else _inflated(text[1:]) or b""
        try:  # ImageMagick's format: a name, the length, and hexadecimal digits
            return _RAW_EXIF, bytes.fromhex("".join(text.decode().split()[2:]))
        except ValueError:
            return name, None
    return name, None if name in (b"zTXt", b"tEXt", b"iTXt") else data


def _inflated(data: bytes) -> bytes | None:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, _LARGEST)
    except zlib.error:
        return None
    return content if stream.eof else None


def _loaded(content: bytes, raw_mode: str | None = None) -> Image.Image:
    """The image, decoded as if its pixels were stored as `raw_mode`, if given."""
    # Not Image.open, which refuses large images, or warns of them, by a setting of the whole process.
    image = PngImagePlugin.PngImageFile(io.BytesIO(content))
    if raw_mode is not None:
        image.tile = [
            # A plain tuple in older versions of Pillow.
            tile._replace(args=raw_mode) if hasattr(tile, "_replace") else (*tile[:3], raw_mode)
            for tile in image.tile
        ]
    image.load()
    return image


def _deep(content: bytes, kind: int) -> np.ndarray:
    """The pixels of a PNG file of 16 bits.

    Of several channels Pillow decodes only the upper bytes, or the lower ones if the other byte order is declared.
    """
    if kind == _GRAY:
        return np.asarray(_loaded(content)).astype(np.uint16)[..., None]
    if kind == _GRAY_ALPHA:
        both = np.asarray(_loaded(content, "RGBA"))  # the four bytes of gray and alpha
        return np.ascontiguousarray(both).view(">u2").astype(np.uint16)
    mode = "RGB" if kind == _RGB else "RGBA"
    high, low = (np.asarray(_loaded(content, f"{mode};16{order}")) for order in "BL")
    return high.astype(np.uint16) << 8 | low


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG file of pixels (H, W, C) of uint8 or uint16, as bytes."""
    return b"".join(png_parts(pixels))


def png_parts(
    pixels: np.ndarray,
    icc: bytes | None = None,
    colour: dict[bytes, bytes] | None = None,
    exif: bytes | None = None,
) -> Iterator[bytes]:
    """A PNG file of the values of a `Picture`, in parts; `colour` are data of `COLOUR_CHUNKS`."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, _COLOUR_TYPES[channels], 0, 0, 0)
    yield SIGNATURE + _chunk(b"IHDR", header)
    for name, data in (colour or {}).items():
        yield _chunk(name, data)
    if icc:
        yield _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    if exif:
        yield _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    compressor = zlib.compressobj(_LEVEL)
    line = width * channels * pixels.dtype.itemsize
    step = max(_ROWS // line, 1)
    above = np.zeros((1, line), np.uint8)
    for top in range(0, height, step):
        part = np.ascontiguousarray(pixels[top : top + step])
        big = part if part.dtype == np.uint8 else part.astype(">u2").view(np.uint8)
        rows = big.reshape(len(part), line)
        filtered = np.empty((len(part), line + 1), np.uint8)
        filtered[:, 0] = _UP
        np.subtract(rows, np.concatenate([above, rows[:-1]]), out=filtered[:, 1:])
        above = rows[-1:].copy()
        yield _chunk(b"IDAT", compressor.compress(filtered))
    yield _chunk(b"IDAT", compressor.flush()) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
