"""The formats of image files, told apart by their first bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from PIL import WebPImagePlugin

from andfast.data.bmp import open_bmp, open_dib
from andfast.data.jpeg import open_jpeg
from andfast.data.picture import Opened, Picture, make_opened, orientation_of, picture_of, pixels_of
from andfast.data.png import SIGNATURE, open_png
from andfast.data.pnm import open_pnm
from andfast.data.tiff import open_tiff

#: The formats that are read.
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_BY_START: dict[bytes, Callable[[BinaryIO], Opened]] = {
    SIGNATURE: open_png,
    b"\xff\xd8\xff": open_jpeg,
    b"BM": open_bmp,
    **dict.fromkeys((b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0"), open_dib),  # the lengths of its headers
    **dict.fromkeys((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), open_tiff),
    **{b"P%d%c" % (kind, blank): open_pnm for kind in range(1, 7) for blank in b" \t\r\n\f\v#"},
}


def open_image(file: BinaryIO) -> Opened:
    """Read the header of an image file, whatever its name.

    Raises:
        ValueError: it is of no format that is read, damaged, or of a kind that is not read.
    """
    start = file.read(16)
    for known, open_one in _BY_START.items():
        if start.startswith(known):
            return open_one(file)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _open_webp(file)
    if start[:2] in (b"PF", b"Pf"):  # of the PPM family
        raise ValueError("floating-point pixels, whose range is not known")
    raise ValueError(f"not an image ({', '.join(FORMATS)} are read)")


def _open_webp(file: BinaryIO) -> Opened:
    file.seek(0)
    # Not Image.open: it refuses images by their number of pixels, and warns of others, by a setting of the process.
    image = WebPImagePlugin.WebPImageFile(file)

    def decode() -> Picture:
        image.load()  # the first frame
        return picture_of(pixels_of(image), image.info.get("icc_profile"), turn)

    turn = orientation_of(image.info.get("exif"), image.info.get("xmp"))
    return make_opened(*image.size, turn, decode)
