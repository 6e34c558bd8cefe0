"""Pillow's libtiff, which unpacks what is compressed in TIFF files."""

from __future__ import annotations

import io
import struct
from itertools import accumulate
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

_SHORT, _LONG, _LONG8 = 3, 4, 16  # types of fields


def unpack(parts: list[bytes], compression: int, fill_order: int, high: int, rows: int, line: int) -> np.ndarray:
    """What compressed strips or tiles of any samples hold: libtiff is given a file that has them as gray pixels.

    Args:
        parts: the strips or tiles of one width.
        compression, fill_order: as in the fields of TIFF.
        high: rows of each part but the last, which may have fewer.
        rows: of all parts.
        line: bytes of a row.

    Returns:
        uint8 (rows * line,).

    Raises:
        ValueError: a part is damaged, or holds less than its rows.
    """
    count, entries = len(parts), 10
    lists = 16 + 8 + 20 * entries + 8  # where they begin: of where the parts lie, and of how long they are
    places = list(accumulate(map(len, parts), initial=lists + 16 * count))[:-1]
    lengths = [len(part) for part in parts]
    alone = count == 1  # and then no list
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
    return np.array(load(_Image(io.BytesIO(b"".join([head, *parts]))))).reshape(-1)


def open_file(file: BinaryIO) -> TiffImagePlugin.TiffImageFile:
    """The first image of a TIFF file as Pillow opens it, of any number of pixels, and not turned."""
    file.seek(0)
    return _Image(file)


def decode_raw(image: TiffImagePlugin.TiffImageFile, raw_mode: str) -> None:
    """Have an image that is not compressed decoded by libtiff all the same, which makes pixels of `raw_mode`."""
    size = image.tag_v2[256], image.tag_v2[257]
    image.tile = [("libtiff", (0, 0, *size), 0, (raw_mode, "raw", False, image.tag_v2.offset))]
    image.use_load_libtiff = True


def load(image: Image.Image) -> Image.Image:
    """Decode the pixels.

    Raises:
        ValueError: they are damaged.
    """
    try:
        image.load()
    except OSError as error:
        raise ValueError(f"truncated or damaged ({error})") from error
    return image


class _Image(TiffImagePlugin.TiffImageFile):
    def load_prepare(self) -> None:
        # Pillow refuses images by their number of pixels, and warns of others, by a setting of the process.
        self._size = getattr(self, "_tile_size", self.size)
        self.im = Image.core.new(self.mode, self.size)
        ImageFile.ImageFile.load_prepare(self)

    def load_end(self) -> None:
        pass  # where Pillow turns it upright
