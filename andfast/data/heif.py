"""HEIC, HEIF and AVIF files, which are built alike: pillow-heif reads the former, Pillow the latter, if they can."""

from __future__ import annotations

import importlib.util
import re
import struct
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from andfast.data.exif import carried_exif, orientation_of
from andfast.data.picture import Opened, Picture, divide_by_alpha, make_opened, picture_of, picture_of_image
from andfast.utils.optional import NOT_INSTALLED, problem_of

# The kinds of files by the brands that they name at their begin.
_AVIF = {b"avif", b"avis"}
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}

# The bits of AV1's configuration that say more than 8 bits, and the description of colours by numbers.
_MORE_BITS = 0x40
_CONFIGURATION, _COLOURS = re.compile(rb"av1C\x81.(.)", re.DOTALL), re.compile(rb"colrnclx(.{4})", re.DOTALL)

# Primaries and transfer functions that all programs show as sRGB, and the code of those that are not said.
_AS_SRGB, _NOT_SAID = ({1}, {1, 6, 13, 14, 15}), 2


def kind_of(start: bytes) -> str | None:
    """The kind of a file, avif or heif, by its first bytes; None for others."""
    if start[4:8] != b"ftyp":
        return None
    length = int.from_bytes(start[:4], "big")
    brands = {start[8:12], *(start[place : place + 4] for place in range(16, min(length, len(start)), 4))}
    return "avif" if brands & _AVIF else "heif" if brands & _HEIF else None


def heif_problem() -> str | None:
    """Why HEIC and HEIF files are not read, or None."""
    problem = problem_of("pillow_heif")
    if problem is None:
        return None
    cause = "" if problem == NOT_INSTALLED else f" ({problem})"
    return f"of a format that pillow-heif reads: pip install pillow-heif{cause}"


def avif_problem() -> str | None:
    """Why AVIF files are neither read nor written, or None."""
    if importlib.util.find_spec("PIL._avif") is not None:
        return None
    return "of a format that Pillow 11.3 and later ones read and write: pip install --upgrade pillow"


def open_heif(file: BinaryIO) -> Opened:
    """Open an HEIC or HEIF file, for its primary image; the file is read whole, and decoded later.

    libheif turns the image upright as the file says (irot, imir); by the standard EXIF's orientation does not count.

    Raises:
        ValueError: it is damaged, or pillow-heif is missing.
    """
    if problem := heif_problem():
        raise ValueError(problem)
    import pillow_heif

    file.seek(0)
    images = pillow_heif.open_heif(file.read(), convert_hdr_to_8bit=False, hdr_to_16bit=False)
    image = images[images.primary_index]
    size = width, height = image.size
    codes = image.info.get("nclx_profile") or {}
    icc, exif = image.info.get("icc_profile"), image.info.get("exif")
    colour = _cicp(codes.get("color_primaries", _NOT_SAID), codes.get("transfer_characteristics", _NOT_SAID), icc)

    def decode() -> Picture:
        stored = np.asarray(image)
        if image.size != size:
            raise ValueError("damaged: it has two different sizes")
        name, _, bits = image.mode.partition(";")
        pixels = np.array(stored.reshape(height, width, -1))
        if bits:
            most = 2 ** int(bits) - 1
            pixels = ((pixels.astype(np.uint32) * 65535 + most // 2) // most).astype(np.uint16)
        if name.endswith("a"):
            pixels = divide_by_alpha(pixels)
        return replace(picture_of(pixels, icc, colour=colour), exif=carried_exif(exif))

    return make_opened(width, height, 1, decode)


def open_avif(file: BinaryIO) -> Opened:
    """Open an AVIF file; it is read whole, and decoded later. Of more than 8 bits Pillow gives the upper 8.

    Raises:
        ValueError: Pillow is built without AVIF.
    """
    if problem := avif_problem():
        raise ValueError(problem)
    from PIL import AvifImagePlugin

    file.seek(0)
    header = file.read().partition(b"mdat")[0]
    file.seek(0)
    # Not Image.open, which refuses large images, or warns of them, by a setting of the whole process.
    image = AvifImagePlugin.AvifImageFile(file)
    icc, exif = image.info.get("icc_profile"), image.info.get("exif")
    turn = orientation_of(exif)  # into which Pillow writes how the file says that the image is turned (irot, imir)
    codes, configuration = _COLOURS.search(header), _CONFIGURATION.search(header)
    primaries, transfer = struct.unpack(">HH", codes[1]) if codes else (_NOT_SAID, _NOT_SAID)
    deep = configuration is not None and configuration[1][0] & _MORE_BITS
    notes = ("its 10 or 12 bits are read as 8",) if deep else ()

    def decode() -> Picture:
        picture = picture_of_image(image, icc, turn)
        colour = _cicp(primaries, transfer, icc)
        return replace(picture, colour=colour, notes=(*picture.notes, *notes), exif=carried_exif(exif))

    return make_opened(*image.size, turn, decode)


def _cicp(primaries: int, transfer: int, icc: bytes | None) -> dict[bytes, bytes]:
    """The PNG chunk of colours that are not sRGB and have no profile (H.273: RGB, full range)."""
    known = all(code in codes for code, codes in zip((primaries, transfer), _AS_SRGB, strict=True))
    if icc or known or _NOT_SAID in (primaries, transfer) or max(primaries, transfer) > 255:
        return {}
    return {b"cICP": bytes([primaries, transfer, 0, 1])}
