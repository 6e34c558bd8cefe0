"""EXIF data, and the same directories in TIFF files: what of them still holds for an upright result of another size."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from andfast.data.picture import bytes_at

_SHORT, _LONG, _LONG8 = 3, 4, 16
# Bytes of a value by its type; the last three are of large TIFF files.
_TYPE_SIZES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1, 16: 8, 17: 8, 18: 8,
}  # fmt: skip
_OF_LARGE_FILES = (16, 17, 18)
_LARGEST = 2**24  # bytes of a value that is read

_ORIENTATION = 0x0112
_DIRECTORIES = (0x8769, 0x8825)  # of the exposure and of the place
# Tags of sizes, places and the storage of pixels, of other directories, and of what is kept elsewhere (profile) or not
# at all (XMP).
_OF_THE_FILE = frozenset({
    _ORIENTATION, *_DIRECTORIES, 0x00FE, 0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x0111, 0x0115, 0x0116, 0x0117, 0x011C,
    0x0140, 0x0142, 0x0143, 0x0144, 0x0145, 0x014A, 0x0152, 0x0153, 0x0201, 0x0202, 0x0211, 0x0212, 0x0213, 0x02BC,
    0x8773, 0x9214, 0xA002, 0xA003, 0xA005, 0xA20E, 0xA20F, 0xA210, 0xA214,
})  # fmt: skip

_DESCRIPTION, _RESOLUTION, _UNIT = 0x010E, (0x011A, 0x011B, 0x0128), 0x0128
# The other tags of the first directory that say the same in TIFF files: camera, resolution, program, date, author,
# computer, copyright, rating, and Windows' texts.
_OF_TIFF = frozenset({
    0x010F, 0x0110, *_RESOLUTION, 0x0131, 0x0132, 0x013B, 0x013C, 0x8298, 0x4746, 0x4749, *range(0x9C9B, 0x9CA0),
})  # fmt: skip

_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


def orientation_of(exif: bytes | None, xmp: bytes | None = None) -> int:
    """EXIF's orientation of a stored image, 1 to 8; 1 if the metadata is damaged."""
    found = None
    if (data := _read(_file_of(exif))) and (entry := data.first.get(_ORIENTATION)):
        found = int.from_bytes(entry.value[: 2 if entry.kind == _SHORT else 4], data.layout.byte_order)
    if found is None and xmp and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found if found in range(1, 9) else 1


def carried_exif(exif: bytes | None) -> bytes | None:
    """EXIF data without what an upright result of another size changes: orientation, sizes, places and the thumbnail.

    Date, camera, place, resolution and the rest stay as they are, byte for byte, but for what lies outside of the data.
    None if nothing is left.
    """
    return _block(_read(_file_of(exif)))


def exif_of_tiff(file: BinaryIO) -> bytes | None:
    """What `carried_exif` gives for the first directory of a TIFF file and for those of the exposure and the place.

    Of the first one only the tags that describe a photograph are kept. A description is not: programs store sizes in
    it (ImageJ, OME). Neither is a resolution without a unit, which tells of the shape of pixels only.
    """
    data = _read(file)
    if data is None:
        return None
    first = {tag: entry for tag, entry in data.first.items() if tag in _OF_TIFF}
    if _UNIT in first and int.from_bytes(first[_UNIT].value[:2], data.layout.byte_order) == 1:
        first = {tag: entry for tag, entry in first.items() if tag not in _RESOLUTION}
    return _block(data._replace(first=first))


def byte_order_of(exif: bytes | None) -> str:
    """The byte order of EXIF data, "<" or ">"; "<" without any."""
    data = _read(_file_of(exif))
    return data.layout.order if data else "<"


def add_to_tiff(path: Path, exif: bytes) -> None:
    """Add EXIF data to a TIFF file of the same byte order: its first directory is written anew at its end."""
    given = _read(_file_of(exif))
    if given is None:
        return
    with open(path, "r+b") as file:
        own = _read(file)
        assert own is not None
        first = {tag: entry for tag, entry in given.first.items() if tag in _OF_TIFF or tag == _DESCRIPTION}
        without = _RESOLUTION if first.keys() & set(_RESOLUTION) else ()
        first = {tag: entry for tag, entry in own.first.items() if tag not in without} | first
        place = file.seek(0, io.SEEK_END)
        place += file.write(bytes(-place % 8))
        file.write(_packed(_Data(own.layout, first, given.inside), place))
        file.seek(own.layout.first)
        file.write(struct.pack(f"{own.layout.order}{own.layout.word}", place))


class _Layout(NamedTuple):
    """How directories are stored: struct's letters of the byte order, of their length, and of lengths and places.

    `first` is where the place of the first directory is stored.
    """

    order: str
    count: str = "H"
    word: str = "I"
    first: int = 4

    @property
    def byte_order(self) -> str:
        return "little" if self.order == "<" else "big"

    @property
    def size(self) -> int:
        """Bytes of lengths and places, and of the values that stand in an entry itself."""
        return struct.calcsize(self.word)


_LAYOUTS = {
    b"II*\0": _Layout("<"),
    b"MM\0*": _Layout(">"),
    b"II+\0": _Layout("<", "Q", "Q", 8),
    b"MM\0+": _Layout(">", "Q", "Q", 8),
}


class _Entry(NamedTuple):
    """An entry of a directory, its value as it is stored."""

    tag: int
    kind: int
    count: int
    value: bytes


class _Data(NamedTuple):
    """The entries of the first directory by tag, and by their tags the directories that it points to."""

    layout: _Layout
    first: dict[int, _Entry]
    inside: dict[int, dict[int, _Entry]]


def _file_of(exif: bytes | None) -> BinaryIO:
    return io.BytesIO((exif or b"").removeprefix(b"Exif\0\0"))


def _read(file: BinaryIO) -> _Data | None:
    """All whole entries of EXIF data or of a TIFF file; None for anything else."""
    start = bytes_at(file, 0, 16)
    layout = _LAYOUTS.get(start[:4])
    if layout is None or len(start) < layout.first + layout.size:
        return None
    first = _entries(file, layout, start[layout.first :][: layout.size])
    inside = {tag: _entries(file, layout, first[tag].value) for tag in _DIRECTORIES if tag in first}
    return _Data(layout, first, inside)


def _entries(file: BinaryIO, layout: _Layout, pointer: bytes) -> dict[int, _Entry]:
    """The whole entries of the directory that begins where `pointer` says, by tag."""
    order, count, word, _ = layout
    place = int.from_bytes(pointer[: layout.size], layout.byte_order)
    head = bytes_at(file, place, struct.calcsize(count))
    if len(head) < struct.calcsize(count):
        return {}
    length = 4 + 2 * layout.size
    table = bytes_at(file, place + len(head), length * min(int.from_bytes(head, layout.byte_order), 2**16))
    found: dict[int, _Entry] = {}
    for start in range(0, len(table) - length + 1, length):
        tag, kind, values, far = struct.unpack_from(f"{order}HH{word}{word}", table, start)
        size = _TYPE_SIZES.get(kind, 0) * values
        if not 0 < size <= _LARGEST:
            continue
        near = table[start + length - layout.size : start + length]
        value = near[:size] if size <= layout.size else bytes_at(file, far, size)
        if len(value) == size:
            found.setdefault(tag, _Entry(tag, kind, values, value))
    return found


def _block(data: _Data | None) -> bytes | None:
    """EXIF data of what is kept, None if that is nothing."""
    if data is None:
        return None
    inside = {tag: kept for tag, entries in data.inside.items() if (kept := _kept(entries))}
    kept = _Data(_Layout(data.layout.order), _kept(data.first), inside)
    if not kept.first and not inside:
        return None
    mark = {"<": b"II*\0", ">": b"MM\0*"}[kept.layout.order]
    return b"Exif\0\0" + mark + struct.pack(f"{kept.layout.order}I", 8) + _packed(kept, 8)


def _kept(entries: dict[int, _Entry]) -> dict[int, _Entry]:
    return {
        tag: entry for tag, entry in entries.items() if tag not in _OF_THE_FILE and entry.kind not in _OF_LARGE_FILES
    }


def _packed(data: _Data, start: int) -> bytes:
    """The first directory, at the place `start`, then the others, each followed by its longer values."""
    layout, kind = data.layout, _LONG8 if data.layout.size == 8 else _LONG
    # Pointers do not change the first one's length.
    pointers = {tag: _Entry(tag, kind, 1, bytes(layout.size)) for tag in data.inside}
    place, others = start + len(_directory(data.first | pointers, layout, start)), b""
    for tag, entries in data.inside.items():
        pointer = struct.pack(f"{layout.order}{layout.word}", place + len(others))
        pointers[tag] = _Entry(tag, kind, 1, pointer)
        others += _directory(entries, layout, place + len(others))
    return _directory(data.first | pointers, layout, start) + others


def _directory(entries: dict[int, _Entry], layout: _Layout, start: int) -> bytes:
    """A directory at the place `start`, without another one after it, and its longer values."""
    order, count, word, _ = layout
    head, values = struct.pack(f"{order}{count}", len(entries)), b""
    place = start + len(head) + (4 + 2 * layout.size) * len(entries) + layout.size
    for entry in sorted(entries.values()):
        stored = entry.value.ljust(layout.size, b"\0")
        if len(entry.value) > layout.size:
            stored = struct.pack(f"{order}{word}", place + len(values))
            values += entry.value + b"\0" * (len(entry.value) % 2)
        head += struct.pack(f"{order}HH{word}", entry.tag, entry.kind, entry.count) + stored
    return head + bytes(layout.size) + values
