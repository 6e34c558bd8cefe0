"""PNG files of 8 and 16 bits; Pillow writes 16 bits for gray alone."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels
_UP = 2  # the filter: what differs from the pixel above
_LEVEL = 4  # of zlib's ten: those above take several times as long for a few percent
_ROWS = 2**20  # bytes that are filtered and compressed at once


def png_bytes(pixels: np.ndarray, icc: bytes | None = None) -> bytes:
    """A PNG file.

    Args:
        pixels: (H, W, C) of uint8 or uint16; C is 1 for gray, 2 with alpha, 3 for RGB, 4 with alpha.
        icc: a colour profile.
    """
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, _COLOUR_TYPES[channels], 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", header)]
    if icc:
        parts.append(_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
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
        parts.append(_chunk(b"IDAT", compressor.compress(filtered)))
    parts += [_chunk(b"IDAT", compressor.flush()), _chunk(b"IEND", b"")]
    return b"".join(parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
