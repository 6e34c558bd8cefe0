"""TIFF files: written, and read however their samples are laid out.

tifffile reads the fields. Of the samples, what is packed without losses (LZW, Deflate, PackBits and others) is unpacked
by Pillow's libtiff as if it were gray, and put together here: planes, tiles, any number of channels, 16 bits. JPEG,
facsimile and YCbCr are left to libtiff alone.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
from PIL import Image, ImageFile, TiffImagePlugin

from andfast.data.picture import Opened, Picture, eight_bits, opened, orientation_of, picture_of, picture_of_cmyk
from andfast.data.picture import pixels_of as pixels_of_image

# Fields of TIFF.
_BITS, _PHOTOMETRIC, _FILL_ORDER, _ORIENTATION, _PALETTE, _INKS = 258, 262, 266, 274, 320, 332
_EXTRAS, _FORMAT, _XMP, _ICC, _LENGTHS = 338, 339, 700, 34675, (279, 325)

# What PhotometricInterpretation says, the channels of colour that it means, and the bits that are read.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _INDICES, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _INDICES: 1, _CMYK: 4, _YCBCR: 3}
_DEPTHS = {_WHITE_IS_ZERO: (1, 2, 4, 8, 16), _BLACK_IS_ZERO: (1, 2, 4, 8, 16), _INDICES: (1, 2, 4, 8), _YCBCR: (8,)}

# What ExtraSamples, PlanarConfiguration, SampleFormat and Predictor say.
_MULTIPLIED, _ALPHA, _APART, _UNSIGNED, _PLAIN, _DIFFERENCES = 1, 2, 2, 1, 1, 2
_FORMATS = {2: "signed", 3: "floating-point"}

# Compression: those whose predictor counts, all that are unpacked like gray, and those of libtiff alone.
_RAW, _PREDICTED = 1, (5, 8, 32946, 34925, 50000)  # LZW, Deflate under two numbers, LZMA, Zstandard
_PACKED = (*_PREDICTED, 32773)  # PackBits
_FACSIMILE, _JPEG = (2, 3, 4), (6, 7)

_LARGEST_PART = 2**24  # bytes of a strip or tile, where the image is smaller
_REVERSED = np.array([int(f"{value:08b}"[::-1], 2) for value in range(256)], np.uint8)


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


def open_tiff(file: BinaryIO) -> Opened:
    """Read the fields of the first image in a TIFF file.

    Raises:
        ValueError: they are damaged, or of a kind that is not read.
    """
    file.seek(0)
    with _quiet():
        try:
            page = tifffile.TiffFile(file).pages.first
        except Exception as error:
            raise ValueError("damaged: its fields cannot be read") from error
        _check_kind(page)
        tags = page.tags
        icc, turn, xmp = (tags.valueof(code) for code in (_ICC, _ORIENTATION, _XMP))
        width, height = int(page.imagewidth), int(page.imagelength)
    if turn not in range(1, 9):
        turn = orientation_of(None, xmp if isinstance(xmp, bytes) else None)
    profile = icc if isinstance(icc, bytes) else None

    def decode() -> Picture:
        with _quiet():
            if page.photometric == _YCBCR or page.compression in (*_FACSIMILE, *_JPEG):
                _check_parts(file, page)
                image = _by_libtiff(file, page)
                if image.mode == "CMYK":
                    return picture_of_cmyk(image, profile, turn)
                return picture_of(pixels_of_image(image), profile, turn)
            samples = _samples(file, page)
            if page.photometric == _CMYK:
                inks = eight_bits(samples[..., :4])
                return picture_of_cmyk(Image.frombytes("CMYK", (width, height), inks.tobytes()), profile, turn)
            return picture_of(_pixels(page, samples), profile, turn)

    return opened(width, height, turn, decode)


def _check_kind(page: tifffile.TiffPage) -> None:
    bits, channels, kind = page.tags.valueof(_BITS, 1), page.samplesperpixel, int(page.photometric)
    bits = set(bits) if isinstance(bits, tuple) else {bits}
    formats = page.tags.valueof(_FORMAT, _UNSIGNED)
    formats = set(formats) if isinstance(formats, tuple) else {formats}
    if formats != {_UNSIGNED}:
        found = _FORMATS.get(int(max(formats)), "other than unsigned")
        raise ValueError(f"{found} pixels, whose range is not known")
    colours = _COLOURS.get(kind, 0)
    depths = _DEPTHS.get(kind, (8, 16)) if channels == 1 or kind == _CMYK or colours > 1 else (8, 16)
    # More channels than colours and alpha are those of satellites and microscopes; beside RGB they can be left out.
    if (
        not colours or len(bits) > 1 or not bits <= set(depths) or channels < colours
        or (channels > colours + 1 and kind not in (_RGB, _CMYK)) or page.tags.valueof(_INKS, 1) != 1
    ):  # fmt: skip
        wide = " and ".join(str(each) for each in sorted(bits))
        raise ValueError(
            f"{channels} channels of {wide} bits, photometric interpretation {kind}; read are gray and RGB of up to 16 "
            "bits, with alpha or without, palettes and CMYK"
        )
    apart = page.planarconfig == _APART and channels > 1
    alone = kind == _YCBCR or page.compression in (*_FACSIMILE, *_JPEG)
    if alone and (channels != colours or (page.compression in _FACSIMILE and bits != {1}) or apart):
        stored = f"{'in planes, ' if apart else ''}compressed by {_name(page)}"
        raise ValueError(
            f"{channels} channels of {max(bits)} bits, photometric interpretation {kind}, {stored}: not read so"
        )
    if not alone and page.compression not in (_RAW, *_PACKED):
        raise ValueError(f"compressed by {_name(page)}, which is not read")
    if page.compression in _PREDICTED and (
        page.predictor not in (_PLAIN, _DIFFERENCES) or (page.predictor == _DIFFERENCES and not bits <= {8, 16})
    ):
        raise ValueError(f"predictor {int(page.predictor)} of {max(bits)} bits, which is not read")
    if page.imagedepth != 1:
        raise ValueError(f"a volume, {page.imagedepth} pixels deep")


def _name(page: tifffile.TiffPage) -> str:
    return getattr(page.compression, "name", str(page.compression))


def _pixels(page: tifffile.TiffPage, samples: np.ndarray) -> np.ndarray:
    """Samples (H, W, channels) as gray or RGB, with alpha if one is told of."""
    bits = page.bitspersample
    colours, most = _COLOURS[page.photometric], 2**bits - 1
    pixels, beside = samples[..., :colours], samples[..., colours : colours + 1]
    if page.photometric == _INDICES:
        pixels = _palette(page)[pixels[..., 0]]
    if page.photometric == _WHITE_IS_ZERO:
        pixels = most - pixels
    if bits < 8 and page.photometric != _INDICES:
        pixels = pixels * np.uint8(255 // most)
    extra = page.tags.valueof(_EXTRAS, _ALPHA)  # some programs write no such field, and mean alpha
    extra = extra[0] if isinstance(extra, tuple) else extra
    if not beside.size or extra not in (_ALPHA, _MULTIPLIED):
        return pixels
    if extra == _MULTIPLIED:
        alpha = np.maximum(beside, 1).astype(np.uint32)
        whole = (pixels.astype(np.uint32) * most + alpha // 2) // alpha
        pixels = np.minimum(whole, most).astype(samples.dtype)
    return np.concatenate([pixels, beside], axis=2)


def _palette(page: tifffile.TiffPage) -> np.ndarray:
    """uint8 (2**bits, 3)."""
    count = 2**page.bitspersample
    values = np.array(page.tags.valueof(_PALETTE)).reshape(3, count).T
    # Of 16 bits by the standard, of 8 by some programs, as libtiff knows.
    return (values if values.max() < 256 else values // 256).astype(np.uint8)


def _samples(file: BinaryIO, page: tifffile.TiffPage) -> np.ndarray:
    """All that is stored for the pixels, uint8 or uint16 (H, W, channels)."""
    parts = _check_parts(file, page)
    planes = [_plane(file, page, parts[first : first + page_parts]) for first, page_parts in _each_plane(page, parts)]
    return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)


def _each_plane(page: tifffile.TiffPage, parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    count = len(parts) // _planes(page)
    return [(first, count) for first in range(0, len(parts), count)]


def _planes(page: tifffile.TiffPage) -> int:
    return page.samplesperpixel if page.planarconfig == _APART else 1


def _geometry(page: tifffile.TiffPage) -> tuple[int, int, int, int]:
    """Of the parts of a plane, strips or tiles: height and width of one, how many down and across."""
    if page.is_tiled:
        high, wide = page.tilelength, page.tilewidth
    else:
        high, wide = min(page.rowsperstrip, page.imagelength), page.imagewidth
    if not high or not wide:
        raise ValueError("damaged: its strips or tiles have no pixels")
    return high, wide, -(-page.imagelength // high), -(-page.imagewidth // wide)


def _line(page: tifffile.TiffPage) -> int:
    """Bytes of a row of a part."""
    return -(-_geometry(page)[1] * (page.samplesperpixel // _planes(page)) * page.bitspersample // 8)


def _check_parts(file: BinaryIO, page: tifffile.TiffPage) -> list[tuple[int, int]]:
    """Where the strips or tiles lie, and their bytes; refuses a file that lacks some, or that has huge ones."""
    size = file.seek(0, io.SEEK_END)
    high, _, down, across = _geometry(page)
    count, needed = down * across * _planes(page), high * _line(page)
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


def _plane(file: BinaryIO, page: tifffile.TiffPage, parts: list[tuple[int, int]]) -> np.ndarray:
    """What lies together: (H, W, channels), or one of the planes (H, W, 1)."""
    high, wide, down, across = _geometry(page)
    height, width, bits = page.imagelength, page.imagewidth, page.bitspersample
    channels, line = page.samplesperpixel // _planes(page), _line(page)
    rows = down * across * high if page.is_tiled else height
    if page.compression == _RAW:
        data = _stored(file, page, parts, [min(high, rows - high * index) * line for index in range(len(parts))])
    else:
        data = _unpacked(file, page, parts, rows, line)
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


def _stored(file: BinaryIO, page: tifffile.TiffPage, parts: list[tuple[int, int]], needed: list[int]) -> np.ndarray:
    if any(length < wanted for (_, length), wanted in zip(parts, needed, strict=True)):
        raise ValueError("truncated: it holds fewer bytes than its pixels need")
    data = bytearray()
    for (begin, _), wanted in zip(parts, needed, strict=True):
        file.seek(begin)
        data += file.read(wanted)
    values = np.frombuffer(data, np.uint8)
    return _REVERSED[values] if page.tags.valueof(_FILL_ORDER) == 2 else values


def _unpacked(
    file: BinaryIO, page: tifffile.TiffPage, parts: list[tuple[int, int]], rows: int, line: int
) -> np.ndarray:
    """The bytes of strips or tiles, `rows` of `line` each: by libtiff, from a file that has them as gray pixels."""
    fields = [
        (256, 4, [line]),
        (257, 4, [rows]),
        (258, 3, [8]),
        (259, 3, [int(page.compression)]),
        (262, 3, [_BLACK_IS_ZERO]),
        (266, 3, [page.tags.valueof(_FILL_ORDER, 1)]),
        (273, 16, []),
        (277, 3, [1]),
        (278, 4, [_geometry(page)[0]]),
        (279, 16, [length for _, length in parts]),
    ]
    place = 16 + 8 + 20 * len(fields) + 8 + 2 * 8 * len(parts)  # behind the fields and both lists
    for _, length in parts:
        fields[6][2].append(place)
        place += length
    listed = 16 + 8 + 20 * len(fields) + 8
    entries, lists = b"", b""
    for code, kind, values in fields:
        content = struct.pack(f"<{len(values)}{ {3: 'H', 4: 'I', 16: 'Q'}[kind] }", *values)
        if len(content) > 8:
            entries += struct.pack("<HHQQ", code, kind, len(values), listed + len(lists))
            lists += content
        else:
            entries += struct.pack("<HHQ", code, kind, len(values)) + content.ljust(8, b"\0")
    lists = lists.ljust(2 * 8 * len(parts), b"\0")
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + struct.pack("<Q", len(fields)) + entries + bytes(8) + lists
    data = bytearray(head)
    for begin, length in parts:
        file.seek(begin)
        data += file.read(length)
    return np.array(_load(_Image(io.BytesIO(data)))).reshape(-1)


def _by_libtiff(file: BinaryIO, page: tifffile.TiffPage) -> Image.Image:
    """The image as libtiff makes it of what is not unpacked here, not turned."""
    file.seek(0)
    image = _Image(file)
    if page.photometric == _YCBCR and page.compression == _RAW:  # which Pillow takes for RGB by itself
        size = (0, 0, page.imagewidth, page.imagelength)
        image.tile = [("libtiff", size, 0, ("RGBX", "raw", False, image.tag_v2.offset))]
        image.use_load_libtiff = True
    _load(image)
    if image.size != (page.imagewidth, page.imagelength):
        raise ValueError("damaged: it tells of two sizes")
    return image


class _Image(TiffImagePlugin.TiffImageFile):
    """A TIFF file as Pillow reads it, of any number of pixels, and not turned."""

    def load_prepare(self) -> None:
        # Pillow refuses images by their number of pixels, and warns of others, by a setting of the process.
        self._size = getattr(self, "_tile_size", self.size)
        self.im = Image.core.new(self.mode, self.size)
        ImageFile.ImageFile.load_prepare(self)

    def load_end(self) -> None:
        pass


def _load(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except OSError as error:
        raise ValueError(f"truncated or damaged ({error})") from error
    return image


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
