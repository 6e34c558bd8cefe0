"""TIFF of 16 bits in several channels: written, and read where Pillow cannot."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile

from andfast.data.images import as_oriented

# Fields of TIFF, and what they say.
_ORIENTATION, _ICC = 274, 34675
_CHANNELS = {tifffile.PHOTOMETRIC.MINISWHITE: 1, tifffile.PHOTOMETRIC.MINISBLACK: 1, tifffile.PHOTOMETRIC.RGB: 3}
_DEFLATE = (tifffile.COMPRESSION.ADOBE_DEFLATE, tifffile.COMPRESSION.DEFLATE)
_MULTIPLIED, _ALPHA = tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA


def write_tiff(path: Path, pixels: np.ndarray, icc: bytes | None) -> None:
    """Write pixels (H, W, C) of uint8 or uint16: gray, with alpha, RGB, with alpha; and their colour profile."""
    channels = pixels.shape[2]
    with tifffile.TiffWriter(path, bigtiff=pixels.nbytes > 2**31) as file:
        file.write(
            pixels if channels > 1 else pixels[..., 0],
            photometric="rgb" if channels > 2 else "minisblack",
            planarconfig="contig" if channels > 1 else None,
            extrasamples=["unassalpha"] if channels in (2, 4) else None,
            iccprofile=icc,
            compression="zlib",
            rowsperstrip=max(2**20 // pixels[0].nbytes, 1),
            metadata=None,
            software=False,
        )


def check_pixels(width: int, height: int, most: int) -> None:
    """Refuse an image that has more pixels, before it is decoded."""
    if width * height > most:
        raise ValueError(f"{width} x {height} pixels; more than {most} are refused (--max-pixels)")


def read_tiff(path: str | os.PathLike[str], max_pixels: int) -> tuple[np.ndarray, bytes | None] | None:
    """The first image of a TIFF file, if it has several channels of 16 bits that Pillow does not read.

    Those are gray with alpha, alpha that is multiplied into the colours, and channels in planes of their own.

    Args:
        path: the file.
        max_pixels: more are refused before they are decoded.

    Returns:
        uint16 (H, W, C), upright, C as for `write_tiff`, and the colour profile; None: it is none of those.

    Raises:
        ValueError, OSError: it is one of those, but damaged, too large, or stored in a way that is not read.
    """
    with _quiet():
        try:
            file = tifffile.TiffFile(path)
        except Exception:  # no TIFF, or so damaged that it may be anything
            return None
        with file:
            try:
                page = file.pages.first
                foreign = _is_foreign(page)
            except Exception:
                return None
            if not foreign:
                return None
            icc = page.tags.valueof(_ICC)
            try:
                return _decoded(page, max_pixels), icc if isinstance(icc, bytes) else None
            except (TypeError, ArithmeticError, LookupError) as error:  # fields that hold what they cannot
                raise ValueError(f"damaged ({error})") from error


def _is_foreign(page: tifffile.TiffPage) -> bool:
    """Whether it is such an image as Pillow does not read."""
    if page.dtype != np.uint16 or page.bitspersample != 16 or page.samplesperpixel == 1:
        return False
    apart = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
    return apart or page.samplesperpixel == 2 or _MULTIPLIED in page.extrasamples


def _decoded(page: tifffile.TiffPage, max_pixels: int) -> np.ndarray:
    colours, found, extra = _CHANNELS.get(page.photometric), page.samplesperpixel, page.extrasamples[:1]
    if colours is None or found not in (colours, colours + 1):
        kind = f"{found} channels of 16 bits, photometric interpretation {int(page.photometric)}"
        raise ValueError(f"{kind}; read are gray and RGB, with alpha or without")
    width, height = page.imagewidth, page.imagelength
    if not width * height:
        raise ValueError("it has no pixels")
    check_pixels(width, height, max_pixels)
    _check_parts(page)
    # (planes, depth, H, W, channels)
    pixels = np.moveaxis(page.asarray(squeeze=False)[:, 0], 0, 2).reshape(height, width, found).astype(np.uint16)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels[..., 0] = 65535 - pixels[..., 0]
    if extra not in ((_ALPHA,), (_MULTIPLIED,)):
        pixels = pixels[..., :colours]
    elif extra == (_MULTIPLIED,):
        alpha = np.maximum(pixels[..., colours:], 1).astype(np.uint32)
        whole = (pixels[..., :colours].astype(np.uint32) * 65535 + alpha // 2) // alpha
        pixels[..., :colours] = np.minimum(whole, 65535)
    return np.ascontiguousarray(as_oriented(pixels, page.tags.valueof(_ORIENTATION, 1)))


def _check_parts(page: tifffile.TiffPage) -> None:
    """Refuse a file that lacks some of its strips or tiles, whose pixels would be made up, or that has huge ones."""
    size = page.parent.filehandle.size
    first, count = page.dataoffsets, page.databytecounts
    if not len(first) == len(count) == math.prod(page.chunked):
        raise ValueError("it has more or fewer strips or tiles than its size needs")
    if any(not length or begin + length > size for begin, length in zip(first, count, strict=True)):
        raise ValueError("truncated, or its strips or tiles are not where it says")
    if page.imagedepth != 1 or math.prod(page.chunks) > max(page.size, 2**24):
        raise ValueError("its strips or tiles are larger than the image")
    if page.compression == tifffile.COMPRESSION.NONE:
        if sum(count) < page.nbytes:
            raise ValueError("truncated: it holds fewer bytes than its pixels need")
    elif page.compression in _DEFLATE:
        _check_inflated(page)
    elif page.compression != tifffile.COMPRESSION.PACKBITS:
        kind = getattr(page.compression, "name", page.compression)
        raise ValueError(f"compressed by {kind}; of such TIFF files Deflate, PackBits and uncompressed ones are read")


def _check_inflated(page: tifffile.TiffPage) -> None:
    """Refuse a file that becomes more than its pixels when it is inflated, which tifffile does without a limit."""
    most = math.prod(page.chunks) * page.dtype.itemsize
    handle = page.parent.filehandle
    for begin, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        handle.seek(begin)
        try:
            inflated = zlib.decompressobj().decompress(handle.read(length), most + 1)
        except zlib.error as error:
            raise ValueError(f"damaged ({error})") from error
        if len(inflated) > most:
            raise ValueError("a strip or tile holds more than its pixels")


@contextmanager
def _quiet() -> Iterator[None]:
    """Let tifffile not log what is wrong with a file."""

    def none(record: object) -> bool:
        return False

    logger = tifffile.logger()
    logger.addFilter(none)
    try:
        yield
    finally:
        logger.removeFilter(none)
