"""TIFF files, read in all usual layouts of their samples, and written.

tifffile reads the fields. Lossless compression (LZW, Deflate, PackBits and others) is undone by Pillow's libtiff as if
the bytes were a gray image, and the samples are put together here: planes, tiles, any number of channels, 16 bits.
JPEG, fax and YCbCr images are left to libtiff alone.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import tifffile
from PIL import Image, ImageFile, TiffImagePlugin

from andfast.data.exif import add_to_tiff, byte_order_of, exif_of_tiff, orientation_of
from andfast.data.picture import (
    Opened,
    Picture,
    bytes_at,
    divide_by_alpha,
    eight_bits,
    make_opened,
    picture_of,
    picture_of_image,
)

# Tags.
_WIDTH, _HEIGHT, _BITS, _FILL_ORDER, _ORIENTATION, _PALETTE, _INKS = 256, 257, 258, 266, 274, 320, 332
_EXTRAS, _FORMAT, _XMP, _ICC, _LENGTHS, _SUBSAMPLING = 338, 339, 700, 34675, (279, 325), 530

# PhotometricInterpretation: the channels of colour, and the bits that are read.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _INDICES, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_KINDS = {
    _WHITE_IS_ZERO: (1, (1, 2, 4, 8, 16)),
    _BLACK_IS_ZERO: (1, (1, 2, 4, 8, 16)),
    _RGB: (3, (8, 16)),
    _INDICES: (1, (1, 2, 4, 8)),
    _CMYK: (4, (8, 16)),
    _YCBCR: (3, (8,)),
}

# Values of ExtraSamples, PlanarConfiguration, SampleFormat and Predictor.
_MULTIPLIED, _ALPHA, _APART, _UNSIGNED, _PLAIN, _DIFFERENCES = 1, 2, 2, 1, 1, 2
_REDUCED_OR_MASK = 1 | 4  # bits of NewSubfileType
_FORMATS = {2: "signed", 3: "floating-point"}

# Compression: those that use the predictor, all that are unpacked as gray, and those left to libtiff.
_RAW, _PREDICTED = 1, (5, 8, 32946, 34925, 50000)  # LZW, Deflate under two numbers, LZMA, Zstandard
_PACKED = (*_PREDICTED, 32773)  # PackBits
_FACSIMILE, _JPEG = (2, 3, 4), (6, 7)

_SHORT, _LONG, _LONG8 = 3, 4, 16  # types of fields
_LARGEST_SMALL = 2**31  # bytes of pixels that are not written as BigTIFF
_LARGEST_PART = 2**24  # bytes of a strip or tile, where the image is smaller
_REVERSED = np.array([int(f"{value:08b}"[::-1], 2) for value in range(256)], np.uint8)


def write_tiff(path: Path, pixels: np.ndarray, icc: bytes | None, exif: bytes | None = None) -> None:
    """Write pixels (H, W, C) of uint8 or uint16, gray or RGB with alpha or without, their colour profile and EXIF data.

    Of the first directory of EXIF data what describes a photograph is written.
    """
    channels = pixels.shape[2]
    with tifffile.TiffWriter(path, bigtiff=pixels.nbytes > _LARGEST_SMALL, byteorder=byte_order_of(exif)) as file:
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
    if exif:
        add_to_tiff(path, exif)


def open_tiff(file: BinaryIO) -> Opened:
    """Read the fields of the first image of a TIFF file, of one that is no reduced copy and no mask if possible.

    Raises:
        ValueError: they are damaged, or the image is of an unsupported kind.
    """
    file.seek(0)
    with _quiet():
        try:
            pages = tifffile.TiffFile(file).pages
            page = next((page for page in pages if not page.subfiletype & _REDUCED_OR_MASK), pages.first)
        except Exception as error:
            raise ValueError("damaged: its fields cannot be read") from error
        _check_kind(page)
        _check_packing(page)
        tags = page.tags
        icc, turn, xmp = (tags.valueof(code) for code in (_ICC, _ORIENTATION, _XMP))
        width, height = int(page.imagewidth), int(page.imagelength)
    if turn not in range(1, 9):
        turn = orientation_of(None, xmp if isinstance(xmp, bytes) else None)
    profile = icc if isinstance(icc, bytes) else None

    def decode() -> Picture:
        return replace(decode_pixels(), exif=exif_of_tiff(file))

    def decode_pixels() -> Picture:
        with _quiet():
            if _left_to_libtiff(page):
                return picture_of_image(_decode_by_libtiff(file, page), profile, turn)
            samples = _samples(file, page)
            if page.photometric == _CMYK:
                inks = eight_bits(samples[..., :4])
                return picture_of_image(Image.frombytes("CMYK", (width, height), inks.tobytes()), profile, turn)
            return picture_of(_pixels(page, samples), profile, turn)

    return make_opened(width, height, turn, decode)


def _check_kind(page: tifffile.TiffPage) -> None:
    """Refuse unsupported kinds of pixels."""
    bits, formats = (_values(page, code) for code in (_BITS, _FORMAT))
    channels, kind = page.samplesperpixel, int(page.photometric)
    if formats != {_UNSIGNED}:
        raise ValueError(f"{_FORMATS.get(max(formats), 'other than unsigned')} pixels, whose range is not known")
    colours, depths = _KINDS.get(kind, (0, ()))
    known = bits in [{depth} for depth in depths if depth >= 8 or channels == 1]
    # More channels than colours and alpha come from satellites and microscopes; beside RGB they can be ignored.
    alike = colours <= channels and (channels <= colours + 1 or kind in (_RGB, _CMYK))
    if not known or not alike or (kind == _CMYK and page.tags.valueof(_INKS, 1) != 1):
        wide = " and ".join(map(str, sorted(bits)))
        raise ValueError(
            f"{channels} channels of {wide} bits, photometric interpretation {kind}; read are gray and RGB of up to 16 "
            "bits, with alpha or without, palettes and CMYK"
        )
    if kind == _CMYK and _values(page, _EXTRAS) & {_ALPHA, _MULTIPLIED} and page.tags.valueof(_EXTRAS) is not None:
        raise ValueError("CMYK with alpha, which is not read")
    if kind == _YCBCR and page.tags.valueof(_SUBSAMPLING) == (4, 4):  # libtiff errs in the last block of a row
        raise ValueError("chroma subsampled 4 x 4, which is not read")
    if page.imagedepth != 1:
        raise ValueError(f"a volume, {page.imagedepth} pixels deep")


def _check_packing(page: tifffile.TiffPage) -> None:
    """Refuse unsupported compression and layouts."""
    bits, channels = page.bitspersample, page.samplesperpixel
    packing = getattr(page.compression, "name", page.compression)
    if _left_to_libtiff(page):
        apart = page.planarconfig == _APART and channels > 1
        if apart or channels != _KINDS[page.photometric][0] or bits != (1 if page.compression in _FACSIMILE else 8):
            where = "in planes, " if apart else ""
            kind = f"photometric interpretation {int(page.photometric)}"
            raise ValueError(f"{channels} channels of {bits} bits, {kind}, {where}compressed by {packing}: not read so")
    elif page.compression not in (_RAW, *_PACKED):
        raise ValueError(f"compressed by {packing}, which is not read")
    elif page.compression in _PREDICTED and page.predictor not in ((_PLAIN, _DIFFERENCES) if bits >= 8 else (_PLAIN,)):
        raise ValueError(f"predictor {int(page.predictor)} of {bits} bits, which is not read")


def _values(page: tifffile.TiffPage, code: int) -> set[int]:
    """The different values of a field with one value a channel; 1 if it is missing."""
    found = page.tags.valueof(code, 1)
    return set(found) if isinstance(found, tuple) else {found}


def _left_to_libtiff(page: tifffile.TiffPage) -> bool:
    return page.photometric == _YCBCR or page.compression in (*_FACSIMILE, *_JPEG)


def _pixels(page: tifffile.TiffPage, samples: np.ndarray) -> np.ndarray:
    """Samples (H, W, channels) as gray or RGB, with alpha if a channel is alpha."""
    bits = page.bitspersample
    colours, most = _KINDS[page.photometric][0], 2**bits - 1
    pixels = samples[..., :colours]
    if page.photometric == _INDICES:
        pixels = _palette(page)[pixels[..., 0]]
    if page.photometric == _WHITE_IS_ZERO:
        pixels = most - pixels
    if bits < 8 and page.photometric != _INDICES:
        pixels = pixels * np.uint8(255 // most)
    extras = page.tags.valueof(_EXTRAS, _ALPHA)  # some programs omit the field and mean alpha
    extras = (extras if isinstance(extras, tuple) else (extras,))[: samples.shape[2] - colours]
    place = next((place for place, extra in enumerate(extras) if extra in (_ALPHA, _MULTIPLIED)), None)
    if place is None:
        return pixels
    beside = samples[..., colours + place : colours + place + 1]
    if extras[place] == _MULTIPLIED:
        return divide_by_alpha(np.concatenate([pixels, beside], axis=2))
    return np.concatenate([pixels, beside], axis=2)


def _palette(page: tifffile.TiffPage) -> np.ndarray:
    """uint8 (2**bits, 3)."""
    count = 2**page.bitspersample
    values = np.array(page.tags.valueof(_PALETTE)).reshape(3, count).T
    # Of 16 bits by the standard, of 8 in files of some programs, as libtiff knows.
    return (values if values.max() < 256 else values // 256).astype(np.uint8)


def _samples(file: BinaryIO, page: tifffile.TiffPage) -> np.ndarray:
    """All stored samples, uint8 or uint16 (H, W, channels)."""
    grid = _grid(page)
    parts = _check_parts(file, page, grid)
    count = grid.down * grid.across
    planes = [_plane(file, page, grid, parts[first : first + count]) for first in range(0, len(parts), count)]
    return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)


class _Grid(NamedTuple):
    """The strips or tiles of a page: size of one in pixels, how many there are, channels in each, bytes of a row."""

    high: int
    wide: int
    down: int
    across: int
    planes: int
    channels: int
    line: int


def _grid(page: tifffile.TiffPage) -> _Grid:
    planes = page.samplesperpixel if page.planarconfig == _APART else 1
    channels = page.samplesperpixel // planes
    if page.is_tiled:
        high, wide = page.tilelength, page.tilewidth
    else:
        high, wide = min(page.rowsperstrip, page.imagelength), page.imagewidth
    if not high or not wide:
        raise ValueError("damaged: its strips or tiles have no pixels")
    down, across = -(-page.imagelength // high), -(-page.imagewidth // wide)
    return _Grid(high, wide, down, across, planes, channels, -(-wide * channels * page.bitspersample // 8))


def _check_parts(file: BinaryIO, page: tifffile.TiffPage, grid: _Grid) -> list[tuple[int, int]]:
    """Places and lengths of the strips or tiles; ValueError if some are missing or huge."""
    size = file.seek(0, io.SEEK_END)
    count, needed = grid.down * grid.across * grid.planes, grid.high * grid.line
    whole = page.imagelength * page.imagewidth * page.samplesperpixel * page.bitspersample // 8
    if needed > max(whole, _LARGEST_PART):
        raise ValueError("its strips or tiles are larger than the image")
    places, lengths = page.dataoffsets, page.databytecounts
    if page.compression == _RAW and not any(page.tags.valueof(code) for code in _LENGTHS):  # as old programs write it
        lengths = [min(needed, size - place) for place in places]
    if not len(places) == len(lengths) == count:
        raise ValueError("it has more or fewer strips or tiles than its size needs")
    parts = list(zip(places, lengths, strict=True))
    if any(length <= 0 or begin + length > size for begin, length in parts):
        raise ValueError("truncated, or its strips or tiles are not where it says")
    return parts


def _plane(file: BinaryIO, page: tifffile.TiffPage, grid: _Grid, parts: list[tuple[int, int]]) -> np.ndarray:
    """The samples of one plane, or of the only one: (H, W, channels)."""
    high, wide, down, across, _, channels, line = grid
    height, width, bits = page.imagelength, page.imagewidth, page.bitspersample
    rows = down * across * high if page.is_tiled else height
    order = page.tags.valueof(_FILL_ORDER, 1)
    if page.compression == _RAW:
        needed = [min(high, rows - high * index) * line for index in range(len(parts))]
        if any(length < wanted for (_, length), wanted in zip(parts, needed, strict=True)):
            raise ValueError("truncated: it holds fewer bytes than its pixels need")
        stored = [bytes_at(file, begin, wanted) for (begin, _), wanted in zip(parts, needed, strict=True)]
        data = np.frombuffer(bytearray().join(stored), np.uint8)
        data = _REVERSED[data] if order == 2 else data
    else:
        packed = [bytes_at(file, *part) for part in parts]
        data = _unpack(packed, int(page.compression), order, high, rows, line)
    if bits < 8:
        shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
        values = (data.reshape(rows, line)[..., None] >> shifts & (2**bits - 1)).reshape(rows, -1)[:, : wide * channels]
    else:
        values = data.view(f"{page.parent.byteorder}u{bits // 8}").astype(f"u{bits // 8}", copy=False)
    values = values.reshape(rows, wide, channels)
    if page.compression in _PREDICTED and page.predictor == _DIFFERENCES:
        values = np.cumsum(values, axis=1, dtype=values.dtype)
    if page.is_tiled:
        tiles = values.reshape(down, across, high, wide, channels).swapaxes(1, 2)
        values = tiles.reshape(down * high, across * wide, channels)[:height, :width]
    return values


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep tifffile from logging what is wrong with a file."""

    def drop(record: object) -> bool:
        return False

    logger = tifffile.logger()
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


def _unpack(parts: list[bytes], compression: int, fill_order: int, high: int, rows: int, line: int) -> np.ndarray:
    """Decompress strips or tiles by giving libtiff a TIFF file that has them as the strips of a gray image.

    Each part but the last has `high` rows of `line` bytes; all parts have `rows`. Returns uint8 (rows * line,).

    Raises:
        ValueError: a part is damaged or too short.
    """
    count, entries = len(parts), 10
    lists = 16 + 8 + 20 * entries + 8  # where the lists of the parts' places and lengths begin
    places = list(accumulate(map(len, parts), initial=lists + 16 * count))[:-1]
    lengths = [len(part) for part in parts]
    alone = count == 1  # then the values are in the fields, without lists
    fields = [
        (256, _LONG, 1, line),
        (257, _LONG, 1, rows),
        (258, _SHORT, 1, 8),
        (259, _SHORT, 1, compression),
        (262, _SHORT, 1, 1),
        (266, _SHORT, 1, fill_order),
        (273, _LONG8, count, places[0] if alone else lists),
        (277, _SHORT, 1, 1),
        (278, _LONG, 1, high),
        (279, _LONG8, count, lengths[0] if alone else lists + 8 * count),
    ]
    head = struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, entries)
    head += b"".join(struct.pack("<HHQQ", *field) for field in fields) + bytes(8)
    head += struct.pack(f"<{2 * count}Q", *places, *lengths)
    return np.array(_load(_LibtiffImage(io.BytesIO(b"".join([head, *parts]))))).reshape(-1)


def _decode_by_libtiff(file: BinaryIO, page: tifffile.TiffPage) -> Image.Image:
    _check_parts(file, page, _grid(page))
    file.seek(0)
    image = _LibtiffImage(file)
    image.seek(page.index)
    size = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
    if size != (page.imagewidth, page.imagelength):
        raise ValueError("damaged: it has two different sizes")
    if page.photometric == _YCBCR and page.compression == _RAW:  # which Pillow itself would take for RGB
        image.tile = [("libtiff", (0, 0, *size), 0, ("RGBX", "raw", False, image.tag_v2.offset))]
        image.use_load_libtiff = True
    return _load(image)


def _load(image: Image.Image) -> Image.Image:
    """Decode the pixels; ValueError if they are damaged."""
    try:
        image.load()
    except OSError as error:
        raise ValueError(f"truncated or damaged ({error})") from error
    return image


class _LibtiffImage(TiffImagePlugin.TiffImageFile):
    def load_prepare(self) -> None:
        # Pillow refuses large images, or warns of them, by a setting of the whole process.
        self._size = getattr(self, "_tile_size", self.size)
        self.im = Image.core.new(self.mode, self.size)
        ImageFile.ImageFile.load_prepare(self)

    def load_end(self) -> None:
        pass  # where Pillow turns the image upright
