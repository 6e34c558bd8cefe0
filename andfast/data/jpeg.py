"""JPEG files, read even if their metadata is damaged."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from typing import BinaryIO

from PIL import JpegImagePlugin

from andfast.data.exif import carried_exif, orientation_of
from andfast.data.picture import Opened, Picture, make_opened, picture_of_image

_SCAN, _COMMENT = 0xDA, 0xFE
_JFIF, _EXIF, _ICC, _ADOBE = 0xE0, 0xE1, 0xE2, 0xEE
_APPLICATION = range(0xE0, 0xF0)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame, which has the size
_WITHOUT_DATA = (0x01, *range(0xD0, 0xDA))


def open_jpeg(file: BinaryIO) -> Opened:
    """Read the header of a JPEG file; ValueError if it is damaged.

    Pillow, which decodes the pixels, gets only the metadata that says how the colours are coded, because it refuses
    files with damaged metadata.
    """
    header, size = [b"\xff\xd8"], None
    exif, xmp, profile = b"", b"", []
    file.seek(2)
    while (marker := _next_marker(file)) != _SCAN:
        if marker in _WITHOUT_DATA:
            continue
        start = file.read(2)
        length = int.from_bytes(start, "big") - 2
        data = file.read(max(length, 0))
        if len(start) < 2 or len(data) != length:
            raise ValueError("truncated")
        if marker in _FRAMES and length >= 6:
            bits, *size = struct.unpack_from(">BHH", data)
            if bits != 8:
                raise ValueError(f"{bits} bits a sample, of JPEG 8 are read")
        elif marker == _EXIF and data.startswith(b"Exif\0\0"):
            exif += data[6:]
        elif marker == _EXIF and data.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = xmp or data
        elif marker == _ICC and data.startswith(b"ICC_PROFILE\0") and length >= 14:
            profile.append(data[12:])  # its number, how many there are, and a piece
        coded = (marker == _JFIF and data.startswith(b"JFIF\0") and length >= 14) or (
            marker == _ADOBE and data.startswith(b"Adobe") and length >= 12
        )
        if coded or (marker not in _APPLICATION and marker != _COMMENT):
            header.append(bytes([0xFF, marker]) + start + data)
    if size is None:
        raise ValueError("damaged: its header has no size")
    profile.sort()
    # If pieces are missing, the rest is reported as a damaged profile.
    icc = b"".join(piece[2:] for piece in profile if profile[0][1] == len(profile)) or b"".join(profile)
    turn = orientation_of(exif, xmp)
    scan = file.tell() - 2

    def decode() -> Picture:
        file.seek(scan)
        # Not Image.open, which refuses large images, or warns of them, by a setting of the whole process.
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(b"".join(header) + file.read()))
        if image.size != (size[1], size[0]):
            raise ValueError("damaged: it has two different sizes")
        return replace(picture_of_image(image, icc, turn), exif=carried_exif(exif))

    return make_opened(size[1], size[0], turn, decode)


def _next_marker(file: BinaryIO) -> int:
    """Read up to the next marker, and the marker."""
    while byte := file.read(1):
        if byte != b"\xff":
            continue
        while (byte := file.read(1)) == b"\xff":
            pass
        if byte and byte != b"\0":
            return byte[0]
    raise ValueError("truncated")
