"""PBM, PGM and PPM files, plain and binary, with any largest value."""

from __future__ import annotations

import io
import math
import re
from typing import BinaryIO

import numpy as np

from andfast.data.picture import Opened, Picture, bytes_at, make_opened, picture_of

_CHANNELS = {b"P1": 1, b"P2": 1, b"P3": 3, b"P4": 1, b"P5": 1, b"P6": 3}
_PLAIN = (b"P1", b"P2", b"P3")
_NUMBER = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*(\d{1,10})")
_COMMENT = re.compile(rb"#[^\r\n]*")
_LONGEST = 2**16  # bytes of a header, comments with it


def open_pnm(file: BinaryIO) -> Opened:
    """Read the header of a file; ValueError if it is damaged."""
    file.seek(0)
    start = file.read(_LONGEST)
    kind, bits = start[:2], start[:2] in (b"P1", b"P4")
    numbers, place = [], 2
    for _ in range(2 if bits else 3):
        found = _NUMBER.match(start, place)
        if found is None:
            raise ValueError("damaged: its header is incomplete")
        numbers.append(int(found[1]))
        place = found.end()
    width, height, most = (*numbers, 1)[:3]
    if not 0 < most < 65536:
        raise ValueError(f"damaged: its largest value is {most}")

    def decode() -> Picture:
        file.seek(place)
        shape = height, width, _CHANNELS[kind]
        if kind in _PLAIN:
            values = _plain(file.read(), math.prod(shape), bits)
        else:
            values = _binary(file, place, shape, bits, most)
        if values.min() < 0 or values.max() > most:
            raise ValueError(f"damaged: it holds values that are not 0 to {most}")
        top = 255 if most < 256 else 65535
        if bits:  # 1 is black
            values = 1 - values
        scaled = values if most == top else (values.astype(np.uint32) * top + most // 2) // most
        return picture_of(scaled.astype(np.uint8 if top == 255 else np.uint16).reshape(shape))

    return make_opened(width, height, 1, decode)


def _plain(text: bytes, count: int, bits: bool) -> np.ndarray:
    text = _COMMENT.sub(b"", text)
    if bits:  # digits need nothing between them
        values = np.frombuffer(b"".join(text.split())[:count], np.uint8) - ord("0")
    else:
        values = np.array(text.split()[:count] or [b"0"]).astype(np.int64)
    if values.size < count:
        raise ValueError("truncated")
    return values


def _binary(file: BinaryIO, place: int, shape: tuple[int, int, int], bits: bool, most: int) -> np.ndarray:
    height, width, channels = shape
    kind = np.dtype(np.uint8 if most < 256 else ">u2")
    line = -(-width // 8) if bits else width * channels * kind.itemsize
    blank = bytes_at(file, place, 2)
    # The pixels come after one blank, or after a line end of Windows, if the file has a byte more.
    two = blank == b"\r\n" and file.seek(0, io.SEEK_END) == place + 2 + height * line
    data = bytes_at(file, place + (2 if two else 1), height * line)
    if len(data) < height * line:
        raise ValueError("truncated")
    values = np.frombuffer(data, kind)
    return np.unpackbits(values.reshape(height, line), axis=1, count=width) if bits else values
