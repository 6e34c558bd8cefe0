"""What an image cache (`andfast.data.cache`) knows, kept in a journal that survives whatever kills its writer."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import PIL
from PIL import features
from tqdm import tqdm

from andfast.utils.files import write_text

INDEX_FILE = "index.jsonl"
# To be raised whenever `read_image` gives other pixels than before.
_FORMAT = 2


class FileFact(NamedTuple):
    """An image file as it was when its digest was taken."""

    size: int
    mtime_ns: int
    digest: str


class PixelsFact(NamedTuple):
    """What a content decodes to."""

    height: int
    width: int
    crc32: int

    @property
    def bytes(self) -> int:
        return 3 * self.height * self.width


class Index:
    """What a cache knows; whoever opens it must hold the cache's lock.

    Attributes:
        folder: the cache.
        files: each image file's content, by its absolute path: with several folders of images, no shorter name
            would tell their files apart.
        pixels: what each content decodes to, by its digest; a text: why it does not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileFact] = {}
        self.pixels: dict[str, PixelsFact | str] = {}
        self._path = folder / INDEX_FILE
        self._header = ["andfast image cache", decoder()]
        if not self._load():
            self._rewrite()
        self._journal = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()

    def add_file(self, path: str, file: FileFact) -> None:
        self.files[path] = file
        self._append(["file", path, *file])

    def add_pixels(self, digest: str, pixels: PixelsFact | str) -> None:
        self.pixels[digest] = pixels
        self._append(_pixels_record(digest, pixels))

    def compact(self) -> None:
        """Leave what no longer counts out of the journal."""
        self._journal.close()
        self._rewrite()
        self._journal = self._path.open("a", encoding="utf-8")

    def _rewrite(self) -> None:
        records = [
            self._header,
            *(["file", path, *file] for path, file in self.files.items()),
            *(_pixels_record(digest, pixels) for digest, pixels in self.pixels.items()),
        ]
        write_text(self._path, "".join(map(_line, records)))

    def _append(self, record: list[Any]) -> None:
        self._journal.write(_line(record))
        self._journal.flush()  # to the operating system, which outlives this process

    def _load(self) -> bool:
        """Take over the journal; returns whether it can be appended to as it is."""
        if not self._path.exists():
            return False
        *lines, cut_off = self._path.read_bytes().split(b"\n")
        header, *records = [_record(line) for line in lines] or [None]
        if header != self._header:
            made_by = f"made by {header[1]}, now it is {self._header[1]}" if header else "damaged"
            tell(f"{self._path} is {made_by}; all images are decoded anew")
            return False
        for record in records:
            if record is None:
                continue
            kind, key, *values = record
            if kind == "file":
                self.files[key] = FileFact(*values)
            else:
                self.pixels[key] = PixelsFact(*values) if kind == "pixels" else values[0]
        damaged = records.count(None)
        if damaged:
            tell(f"{self._path} is damaged in {damaged} lines; the images that they are about are looked at again")
        superseded = len(records) - len(self.files) - len(self.pixels)
        return not damaged and not cut_off and not superseded


def _pixels_record(digest: str, pixels: PixelsFact | str) -> list[Any]:
    return ["unreadable", digest, pixels] if isinstance(pixels, str) else ["pixels", digest, *pixels]


def _line(record: list[Any]) -> str:
    text = json.dumps(record)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _record(line: bytes) -> list[Any] | None:
    """What `_line` wrote, or None if the line is not whole."""
    checksum, _, text = line.partition(b" ")
    return json.loads(text) if checksum == b"%08x" % zlib.crc32(text) else None


def decoder() -> str:
    """Whatever decides what pixels a file gives."""
    libraries = " ".join(f"{name} {features.version(name)}" for name in ("libjpeg_turbo", "webp", "libtiff"))
    return f"format {_FORMAT}, Pillow {PIL.__version__} with {libraries}"


def tell(message: str) -> None:
    """Say something on stderr, beside a progress bar."""
    tqdm.write(message, file=sys.stderr)
