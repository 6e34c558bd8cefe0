"""BMP files of 1 to 32 bits a pixel, with palettes, masks and run lengths; Pillow reads not all of them."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

import numpy as np

from andfast.data.picture import Opened, Picture, bytes_at, make_opened, picture_of

# Bytes of the file's header, and of those of OS/2 and Windows after it.
_START, _CORE, _INFO = 14, 12, 40
_RAW, _RLE8, _RLE4, _MASKS, _ALPHA_MASKS = 0, 1, 2, 3, 6
_MASKS_OF = {16: (0x7C00, 0x3E0, 0x1F, 0), 24: (0xFF0000, 0xFF00, 0xFF, 0), 32: (0xFF0000, 0xFF00, 0xFF, 0)}


def open_bmp(file: BinaryIO) -> Opened:
    """Read the header of a BMP file; ValueError if it is damaged or of an unsupported kind."""
    file.seek(0)
    start = file.read(_START + 124)
    try:
        offset, length = struct.unpack_from("<II", start, 10)
        if length == _CORE:
            width, height, _, bits = struct.unpack_from("<HHHH", start, 18)
            packing = colours = 0
        else:
            width, height, _, bits, packing, _, _, _, colours = struct.unpack_from("<iiHHIIiiI", start, 18)
        masks = _MASKS_OF.get(bits, ())
        if packing in (_MASKS, _ALPHA_MASKS) and masks:
            alpha = length >= 56 or packing == _ALPHA_MASKS
            masks = struct.unpack_from("<IIII", start, 54) if alpha else (*struct.unpack_from("<III", start, 54), 0)
    except struct.error as error:
        raise ValueError("truncated") from error
    if length != _CORE and length < _INFO:
        raise ValueError(f"a header of {length} bytes, which is not a BMP header")
    kinds = {_RAW: (1, 2, 4, 8, 16, 24, 32), _RLE8: (8,), _RLE4: (4,), _MASKS: (16, 32), _ALPHA_MASKS: (16, 32)}
    if bits not in kinds.get(packing, ()) or (length == 64 and packing == _MASKS):
        raise ValueError(f"{bits} bits a pixel, packed in way {packing}, which is not read")

    def decode() -> Picture:
        if bits > 8:
            pixels = _colours(_rows(file, offset, width, abs(height), bits), width, bits, masks)
        else:
            palette = _palette(file, length, bits, colours, offset)
            if packing == _RAW:
                indices = _indices(_rows(file, offset, width, abs(height), bits), width, bits)
            else:
                file.seek(offset)
                indices = _run_lengths(file.read(), (abs(height), width), packing == _RLE4)
            pixels = palette[indices]
        return picture_of(pixels if height < 0 else pixels[::-1])

    return make_opened(width, abs(height), 1, decode)


def open_dib(file: BinaryIO) -> Opened:
    """As `open_bmp`, for a file without the file's own header, as in clipboards and resources."""
    file.seek(0)
    data = file.read()
    try:
        length, _, _, _, bits, packing = struct.unpack_from("<IiiHHI", data)
        (colours,) = struct.unpack_from("<I", data, 32)
    except struct.error as error:
        raise ValueError("truncated") from error
    masks = 12 if packing == _MASKS and length == _INFO else 0
    palette = 4 * min(colours or 2**bits, 256) if bits <= 8 else 0
    start = struct.pack("<2sIII", b"BM", _START + len(data), 0, _START + length + masks + palette)
    return open_bmp(io.BytesIO(start + data))


def _rows(file: BinaryIO, offset: int, width: int, height: int, bits: int) -> np.ndarray:
    line = (width * bits + 31) // 32 * 4
    data = bytes_at(file, offset, height * line)
    if len(data) < height * line:
        raise ValueError("truncated")
    return np.frombuffer(data, np.uint8).reshape(height, line)


def _palette(file: BinaryIO, length: int, bits: int, colours: int, offset: int) -> np.ndarray:
    """uint8 (2**bits, 3), or (2**bits, 1) if all of it is gray."""
    size, count = (3 if length == _CORE else 4), 2**bits
    place = _START + length
    held = min(colours or count, count, max(offset - place, 0) // size)
    data = bytes_at(file, place, held * size)
    found = np.frombuffer(data[: len(data) // size * size], np.uint8).reshape(-1, size)[:, 2::-1]
    palette = np.zeros((count, 3), np.uint8)
    palette[: len(found)] = found
    return palette[:, :1] if (palette == palette[:, :1]).all() else palette


def _indices(rows: np.ndarray, width: int, bits: int) -> np.ndarray:
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return (rows[..., None] >> shifts & (2**bits - 1)).reshape(len(rows), -1)[:, :width]


def _colours(rows: np.ndarray, width: int, bits: int, masks: tuple[int, ...]) -> np.ndarray:
    """Pixels (H, W, 3), or 4 with alpha, unless that is 0 everywhere, which means no alpha."""
    if bits == 24:
        return rows[:, : 3 * width].reshape(len(rows), width, 3)[..., ::-1]
    values = np.ascontiguousarray(rows[:, : width * bits // 8]).view(f"<u{bits // 8}")
    channels = [_masked(values, mask) for mask in masks if mask]
    if len(channels) < 3:
        raise ValueError("damaged: its masks leave out a colour")
    if len(channels) == 4 and not channels[3].any():
        channels.pop()
    return np.stack(channels, axis=2)


def _masked(values: np.ndarray, mask: int) -> np.ndarray:
    shift = (mask & -mask).bit_length() - 1
    most = mask >> shift
    if most & (most + 1):
        raise ValueError(f"damaged: a mask {mask:#x}")
    found = (values.astype(np.uint64) & mask) >> shift
    return ((found * 255 + most // 2) // most).astype(np.uint8)


def _run_lengths(data: bytes, shape: tuple[int, int], halves: bool) -> np.ndarray:
    """Decompress indices (H, W); those that are left out are 0."""
    indices = np.zeros(shape, np.uint8)
    height, width = shape
    place = x = y = 0

    def split(packed: bytes) -> np.ndarray:
        values = np.frombuffer(packed, np.uint8)
        return np.stack([values >> 4, values & 15], axis=1).reshape(-1) if halves else values

    while y < height:
        if place + 2 > len(data):
            raise ValueError("truncated")
        count, value = data[place], data[place + 1]
        place += 2
        if count:  # a byte, repeated
            run = np.resize(split(bytes([value])), count)
        elif value == 0:  # the next row
            x, y = 0, y + 1
            continue
        elif value == 1:  # the end
            break
        elif value == 2:  # a step
            step = data[place : place + 2]
            if len(step) < 2:
                raise ValueError("truncated")
            x, y, place = x + step[0], y + step[1], place + 2
            continue
        else:  # uncompressed values, padded to an even number of bytes
            length = -(-value // 2) if halves else value
            run = split(data[place : place + length])[:value]
            place += length + length % 2
        part = run[: max(width - x, 0)]
        indices[y, x : x + len(part)] = part
        x += len(run)
    return indices
