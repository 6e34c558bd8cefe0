"""The formats that images are written in."""

from __future__ import annotations

import os
from pathlib import Path

from andfast.data.images import MAX_PIXELS, read_picture
from andfast.data.picture import Picture, eight_bits, matching_profile, over_white, to_pil
from andfast.data.png import png_bytes
from andfast.data.tiff import write_tiff
from andfast.utils.files import written_whole

__all__ = ["MAX_PIXELS", "SUFFIXES", "Picture", "check_size", "losses", "read_picture", "write_picture"]

#: The formats that are written, by the suffixes that they are known by.
SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff"}

# Bytes of a profile: above which Pillow, and what is built on it, opens no PNG file with it; and those JPEG can hold.
_LARGE_PROFILE, _LARGEST_IN_JPEG = 2**20, 255 * 65_519

# Height and width at most: what the fields of the formats' headers hold.
_LONGEST = {"jpeg": 65_535, "webp": 16_383, "png": 2**31 - 1, "tiff": 2**31 - 1}


def check_size(path: str | os.PathLike[str], height: int, width: int) -> None:
    """Raise a ValueError if the format that `path` names cannot hold so many pixels."""
    longest = _LONGEST[SUFFIXES[Path(path).suffix.lower()]]
    if max(height, width) > longest:
        raise ValueError(f"{width} x {height} pixels are too many for {Path(path).suffix}: {longest} a side at most")


def losses(path: str | os.PathLike[str], picture: Picture) -> list[str]:
    """What of the colours' meaning the format that `path` names cannot hold, or others cannot read: for people."""
    kind = SUFFIXES[Path(path).suffix.lower()]
    found = []
    if kind == "png" and picture.icc and len(picture.icc) > _LARGE_PROFILE:
        size = f"{len(picture.icc) / 2**20:.1f} MiB"
        found.append(f"its colour profile of {size} is kept; programs built on Pillow read none above 1 MiB in PNG")
    if kind == "jpeg" and picture.icc and len(picture.icc) > _LARGEST_IN_JPEG:
        found.append("its colour profile is left out: JPEG holds none above 15.9 MiB")
    if kind == "webp" and picture.icc and picture.pixels.shape[2] < 3:
        found.append("its colour profile, one of gray, is left out: WebP has RGB alone")
    names = _telling(picture)
    if kind != "png" and names:
        found.append(f"{', '.join(names)}, which tell of its colours, are left out: PNG alone has them (--format png)")
    return found


def _telling(picture: Picture) -> list[str]:
    """The chunks that say something of the colours which is not said otherwise, and which is not what all assume."""
    names = [name for name in picture.colour if name != b"sRGB"]
    if b"cICP" not in names and (picture.icc or b"sRGB" in picture.colour):  # which count before gAMA and cHRM
        names = [name for name in names if name not in (b"gAMA", b"cHRM")]
    return [name.decode() for name in names]


def write_picture(path: str | os.PathLike[str], picture: Picture, quality: int = 95) -> None:
    """Write an image in the format that the suffix of `path` names, whole or not at all.

    PNG holds all of it, TIFF all but the chunks of PNG. WebP and JPEG have 8 bits, to which 16 are rounded; JPEG has no
    transparency, and gets the image as it looks over white.

    Args:
        path: where to.
        picture: the image; a profile of other pixels is not written.
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
    icc, _ = matching_profile(picture.icc, 3 if kind == "webp" else picture.pixels.shape[2])
    if kind == "jpeg" and icc and len(icc) > _LARGEST_IN_JPEG:
        icc = None
    with written_whole(path) as temporary:
        if kind == "png":
            temporary.write_bytes(png_bytes(picture.pixels, icc, picture.colour))
        elif kind == "tiff":
            write_tiff(temporary, picture.pixels, icc)
        else:
            pixels = over_white(picture.pixels) if kind == "jpeg" else picture.pixels
            image = to_pil(Picture(eight_bits(pixels)))
            options = {"quality": quality, "icc_profile": icc}
            if kind == "webp":
                image.save(temporary, "WEBP", method=4, **options)
            else:
                image.save(temporary, "JPEG", subsampling=0 if quality >= 90 else 2, **options)
