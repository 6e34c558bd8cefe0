"""A folder of decoded images on disk, shared by later runs and, through memory maps, by all workers.

Decoding a photograph takes many times as long as cropping a patch. The folder holds one file per image, `<digest>.u8`:
a line of text (`_Header`), then the pixels, uint8 RGB, row by row. A patch is a strided copy from a memory map, which
reads only the rows that it needs.

The digest is that of the image file's path, size and time of change, and of the decoder's version: a changed image gets
another file. Files are written whole, so a killed process loses only the images that it was decoding. The process that
makes the cache holds `lock`.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import mmap
import os
import re
import shutil
import sys
import zlib
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL
from PIL import features
from tqdm import tqdm

from andfast.data.images import DataError, ImageError, image_size, read_image
from andfast.data.listing import listed
from andfast.data.patches import ImageFile, Source
from andfast.data.suffixes import AVIF_SUFFIXES, HEIF_SUFFIXES
from andfast.data.workers import Each, SourceLoader
from andfast.utils.files import remove_unfinished, written_whole
from andfast.utils.formatting import counted
from andfast.utils.locks import LOCK_FILE, locked
from andfast.utils.optional import version

logger = logging.getLogger(__name__)

_FORMAT = 3  # to be raised when `read_image` returns other pixels than before
_PIXELS = re.compile(r"[0-9a-f]{32}\.u8")
_OLD_INDEX = "index.jsonl"  # of formats 1 and 2
_OWN_FILES = re.compile(rf"{LOCK_FILE}|{re.escape(_OLD_INDEX)}|{_PIXELS.pattern}|\.([0-9a-f]{{32}}|index)-.*")
_LONGEST_HEADER = 2**16
_BLOCK = 4096  # files take whole blocks on a disk

_UNKNOWN, _VERIFIED, _DAMAGED = range(3)  # states of stored pixels
# Errors of network shares without memory maps.
_CANNOT_MAP = {errno.EINVAL, errno.ENODEV, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class _Key(NamedTuple):
    """What the pixels of an image file depend on."""

    path: str
    size: int
    mtime_ns: int
    decoder: str

    @property
    def decoder_today(self) -> str:
        return _decoder(Path(self.path).suffix.lower())

    @property
    def file_name(self) -> str:
        return hashlib.blake2b(json.dumps(self).encode(), digest_size=16).hexdigest() + ".u8"


class _Header(NamedTuple):
    """The first line of a stored image, after the checksum of that line."""

    key: _Key
    height: int
    width: int
    crc32: int


@dataclass(frozen=True, eq=False)
class CachedImage:
    """The image file `path`, whose decoded pixels are in `stored`.

    `states`, uint8, is shared by all processes of a run; element `index` is the state of this image's pixels.
    """

    path: Path
    stored: Path
    states: np.ndarray
    index: int

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> np.ndarray:
        """A memory map of the pixels (an array on disks without maps), verified by the first read of a run.

        Damaged pixels are reported and removed, and the image file is decoded instead.
        """
        if self.states[self.index] != _DAMAGED:
            try:
                return self._map()
            except (OSError, ValueError) as error:
                self._discard(error)
        return read_image(self.path)

    def _map(self) -> np.ndarray:
        with self.stored.open("rb") as file:
            header, offset = _read_header(file), file.tell()
            shape = (header.height, header.width, 3)
            try:
                pixels = np.memmap(file, np.uint8, "r", offset, shape)
            except OSError as error:
                if error.errno not in _CANNOT_MAP:
                    raise
                pixels = np.fromfile(self.stored, np.uint8, offset=offset).reshape(shape)
        if self.states[self.index] == _UNKNOWN:
            if zlib.crc32(pixels) != header.crc32:
                raise ValueError("its checksum is wrong")
            self.states[self.index] = _VERIFIED
        return pixels

    def _discard(self, error: Exception) -> None:
        self.states[self.index] = _DAMAGED
        if isinstance(error, ValueError):  # an OSError (missing, too many open files) says nothing about the content
            with suppress(OSError):
                self.stored.unlink()
        reason = error.strerror if isinstance(error, OSError) else error
        # Not tqdm.write: in a worker its lock may be held by a thread that was not forked along.
        with suppress(OSError, ValueError):  # a closed stderr must not end the run
            print(
                f"{self.stored} cannot be used ({reason}): {self.path} is decoded each time instead, and the next run "
                "stores it again",
                file=sys.stderr,
                flush=True,
            )


def cache_images(folder: str | os.PathLike[str], images: Sequence[ImageFile], workers: int) -> list[Source]:
    """Make or update the cache in `folder`, and return a source that reads from it for each image.

    The sources have the same names, pixels and errors. Only images that are new or changed, by size or time of change,
    are decoded, by `workers` processes, or by this one for 0. Images that cannot be decoded, or change meanwhile, are
    returned unchanged. If killed, the next call continues. Of several processes, one works and the others wait. Pixels
    of deleted or changed images are removed; those of other images are kept, so that sets of images can share a cache.

    Raises:
        DataError: `folder` holds other files, cannot be written, or has too little space; a worker died.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_other_files(folder)
        with locked(folder, wait=True):
            keys = {image: key for image in images if (key := _key(image.path)) is not None}
            valid = _remove_stale(folder, {key.file_name for key in keys.values()})
            missing = {image: key for image, key in keys.items() if key.file_name not in valid}
            stored = {image: folder / key.file_name for image, key in keys.items()}
            for image in missing.keys() - _decode(folder, missing, workers):
                del stored[image]
    except OSError as error:
        raise DataError(f"image cache {folder}: {error.strerror or error}") from error
    # Forked workers share it with this process, without using shared memory; spawned workers have copies.
    states = np.frombuffer(mmap.mmap(-1, max(len(images), 1)), np.uint8)
    return [
        CachedImage(image.path, stored[image], states, index) if image in stored else image
        for index, image in enumerate(images)
    ]


def _refuse_other_files(folder: Path) -> None:
    others = sorted(name for name in os.listdir(folder) if not _OWN_FILES.fullmatch(name))
    if others:
        raise DataError(
            f"image cache {folder}: holds {listed(others)}, which is no part of a cache; give a new or an empty folder"
        )


@functools.cache
def _decoder(suffix: str) -> str:
    """The versions of all that decides which pixels are decoded from files with this suffix, in lower case."""
    if suffix in HEIF_SUFFIXES:
        return f"format {_FORMAT}, pillow-heif {version('pillow-heif')}"
    used = ("avif",) if suffix in AVIF_SUFFIXES else ("libjpeg_turbo", "webp", "libtiff")
    libraries = " ".join(f"{name} {features.version(name)}" for name in used)
    return f"format {_FORMAT}, Pillow {PIL.__version__} with {libraries}"


def _key(path: Path) -> _Key | None:
    """The key of an image file today, or None if it cannot be accessed."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _Key(os.path.abspath(path), status.st_size, status.st_mtime_ns, _decoder(path.suffix.lower()))


def _read_header(file: BinaryIO) -> _Header:
    """Read the header of a stored image; ValueError if it is damaged, or the file has another length."""
    checksum, _, text = file.readline(_LONGEST_HEADER).partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        raise ValueError("its header is damaged")
    key, *values = json.loads(text)
    header = _Header(_Key(*key), *values)
    if os.fstat(file.fileno()).st_size != file.tell() + 3 * header.height * header.width:
        raise ValueError("it is not whole")
    return header


def _remove_stale(folder: Path, wanted: set[str]) -> set[str]:
    """Remove damaged and unneeded pixels; return the names in `wanted` whose pixels are valid."""
    valid, damaged, decoders = set(), [], {}
    for file in sorted(path for path in folder.iterdir() if _PIXELS.fullmatch(path.name)):
        try:
            with file.open("rb") as opened:
                key = _read_header(opened).key
            if key.file_name != file.name:
                raise ValueError("it was renamed")
        except FileNotFoundError:  # discarded by a run that reads from this cache
            continue
        except ValueError:
            damaged.append(file.name)
            file.unlink(missing_ok=True)
            continue
        if file.name in wanted:
            valid.add(file.name)
        elif _is_stale(key):
            file.unlink(missing_ok=True)
            if key.decoder != key.decoder_today:
                decoders[key.decoder] = key.decoder_today
    (folder / _OLD_INDEX).unlink(missing_ok=True)
    remove_unfinished(folder)
    if damaged:
        logger.warning(f"image cache {folder}: not whole, and removed: {listed(damaged)}")
    for decoder, today in sorted(decoders.items()):
        logger.warning(f"image cache {folder} was made by {decoder}, now it is {today}; images are decoded again")
    return valid


def _is_stale(key: _Key) -> bool:
    """Whether the image file was deleted or changed, or is decoded by another version today."""
    now = _key(Path(key.path))
    if now is None and key.decoder == key.decoder_today:
        # If its folder is missing as well, a disk may just not be mounted.
        return not os.path.lexists(key.path) and os.path.isdir(os.path.dirname(key.path))
    return now != key


def _decode(folder: Path, keys: dict[ImageFile, _Key], workers: int) -> set[ImageFile]:
    """Decode images and store their pixels; returns the images that were stored."""
    if not keys:
        return set()
    needed = _check_space(folder, keys)
    images = list(keys)
    bar = tqdm(
        total=len(images),
        desc="decoding images into the cache",
        unit="image",
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )
    store = functools.partial(_store, folder=folder, keys=keys, needed=needed)
    loader = SourceLoader(Each(store, images), range(len(images)), min(workers, len(images)))
    stored = set()
    # Closed also after an error: workers that wait for requests would keep this process from ending.
    with bar, closing(iter(loader)) as results:
        for image, success in zip(images, results, strict=True):
            if success:
                stored.add(image)
            bar.update()
    if left := len(images) - len(stored):
        logger.warning(
            f"image cache {folder}: not stored: {counted(left, 'image')} that cannot be decoded or changed just now"
        )
    return stored


def _check_space(folder: Path, images: Iterable[ImageFile]) -> int:
    """The bytes that the pixels of `images` take; DataError if fewer are free."""
    needed = 0
    for image in images:
        with suppress(ImageError):  # it will not be stored
            height, width = image_size(image.path)
            needed += -(-3 * height * width // _BLOCK) * _BLOCK
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        logger.warning(f"image cache {folder}: free space is unknown ({error.strerror or error})")
        return needed
    if needed > free:
        raise DataError(
            f"image cache {folder}: it needs {needed / 2**30:.2f} GiB more, and {free / 2**30:.2f} GiB are free; give "
            "a folder on a larger disk, or train without a cache"
        )
    return needed


def _store(image: ImageFile, folder: Path, keys: dict[ImageFile, _Key], needed: int) -> bool:
    """Decode an image and store its pixels; False if it cannot be decoded or has just changed."""
    key = keys[image]
    try:
        pixels = image.read()
    except ImageError:
        return False
    if _key(image.path) != key:
        return False
    text = json.dumps(_Header(key, *pixels.shape[:2], zlib.crc32(pixels))).encode() + b"\n"
    try:
        with written_whole(folder / key.file_name) as temporary, temporary.open("wb") as file:
            file.write(b"%08x " % zlib.crc32(text) + text)
            file.write(pixels.data)
    except OSError as error:
        space = f"all of it needs {needed / 2**30:.2f} GiB"
        with suppress(OSError):
            space += f", {shutil.disk_usage(folder).free / 2**30:.2f} GiB are free"
        raise DataError(
            f"image cache {folder}: {error.strerror or error} while storing {image.path}; {space}. "
            "Images stored so far are kept, and the next run continues"
        ) from error
    return True
