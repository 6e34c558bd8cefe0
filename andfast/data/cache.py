"""A cache of decoded images on disk, made once, for all later runs and, by way of memory maps, for all workers.

To decode a photograph takes many times as long as to cut a patch from it. A cache folder holds:

- `<digest>.u8`, the pixels of an image: uint8 RGB, row by row, no header. A patch is then a strided copy from a memory
  map: the rows that it spans are read, all other rows are not, and the operating system keeps what was read once
  for all processes. Whole rows, not tiles: a file is one plain array that anything can open, and in memory, where a
  set that is trained on for long should fit, tiles would gain nothing. The digest is that of the image file's content
  and of the decoder, so a name always means the same pixels: equal images are stored once, an image that was
  changed gets another file, and renaming a finished file into place is all that writing takes to be safe.
- `index.jsonl`, a journal of two kinds of facts: which content an image file has (as long as its size and time of
  change are the same), and what pixels a content decodes to. Each line has its own checksum and counts by itself,
  so whatever kills the process costs the images that were being decoded and nothing else.
- `lock`, held by the process that makes the cache; the operating system lets go of it when that process ends.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from andfast.data.cache_index import INDEX_FILE, FileFact, Index, PixelsFact, decoder, tell
from andfast.data.cached_image import UNKNOWN, CachedImage, UnreadableImage
from andfast.data.images import DataError, ImageError, image_size
from andfast.data.patches import ImageFile, Source
from andfast.data.workers import Each, SourceLoader
from andfast.utils.files import written_whole
from andfast.utils.locks import LOCK_FILE, locked

_PIXELS = re.compile(r"[0-9a-f]{32}\.u8")
# What `written_whole` leaves behind when it is killed.
_LEFT_OVER = re.compile(r"\.([0-9a-f]{32}-.*\.u8|index-.*\.jsonl)")
_BLOCK = 4096  # files take whole blocks on a disk

_Result = TypeVar("_Result")


def cache_images(folder: str | os.PathLike[str], images: Sequence[ImageFile], workers: int) -> list[Source]:
    """The same images, to be read from the cache in `folder`, which is made or brought up to date first.

    Reading them gives what reading the files gives, to the bit, and the same errors. An image is decoded only if no
    file of the same content has been before; a file whose size or time of change is another than last time is
    looked at again. Killed at any moment, the next call goes on from there. Of several processes that call it at once
    for one folder, one works and the others wait. Pixels are removed once their image file is gone or has changed;
    those of folders that are not asked for now are kept, so several sets of images can share a cache.

    Progress, and what was found damaged and made anew, is told on stderr.

    Args:
        folder: the cache, made if it is not there. Nothing but a cache may be in it.
        images: the image files.
        workers: processes that decode; 0: this one.

    Returns:
        A source for each image, in the same order and of the same name. What could not be opened, or changed
        meanwhile, is not in the cache and stays as it is.

    Raises:
        DataError: `folder` holds other files, cannot be written, or has too little space; a worker died.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_other_files(folder)
        with locked(folder, wait=True, log=tell), Index(folder) as index:
            _read_contents(index, images, workers)
            _reclaim(index, images)
            _decode(index, images, workers)
            return _sources(index, images)
    except OSError as error:
        raise DataError(f"image cache {folder}: {error.strerror or error}") from error


def _refuse_other_files(folder: Path) -> None:
    known = {INDEX_FILE, LOCK_FILE}
    others = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name not in known and not _PIXELS.fullmatch(entry.name) and not _LEFT_OVER.fullmatch(entry.name)
    )
    if others:
        raise DataError(
            f"image cache {folder}: holds {_first(others)}, which is no part of a cache; give a new or an empty folder"
        )


def _key(image: ImageFile) -> str:
    return os.path.abspath(image.path)


def _read_contents(index: Index, images: Sequence[ImageFile], workers: int) -> None:
    """Take the digest of every file that is new, or not as it was; forget those that cannot be read."""
    changed = []
    for image in dict.fromkeys(images):
        known = index.files.get(_key(image))
        if known is None or known[:2] != _stamp(image.path):
            changed.append(image)
    digest = partial(_digest, decoder=decoder())
    with closing(_each(digest, changed, workers, "looking at images for the cache")) as found:
        for image, file in found:
            if file is not None:
                index.add_file(_key(image), file)
            else:
                index.files.pop(_key(image), None)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change, or None if the file cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _digest(image: ImageFile, decoder: str) -> FileFact | None:
    stamp = _stamp(image.path)
    digest = hashlib.blake2b(decoder.encode(), digest_size=16)
    try:
        with image.path.open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    except OSError:  # whoever reads the image will say so
        return None
    return None if stamp is None else FileFact(*stamp, digest.hexdigest())


def _reclaim(index: Index, images: Sequence[ImageFile]) -> None:
    """Forget images that are gone and pixels that nobody needs or that are not whole; remove all files of neither."""
    wanted = {_key(image) for image in images}
    # Where a file's folder is gone as well, a disk may just not be mounted.
    gone = [
        path
        for path in index.files
        if path not in wanted and not os.path.lexists(path) and os.path.isdir(os.path.dirname(path))
    ]
    for path in gone:
        del index.files[path]
    used = {file.digest for file in index.files.values()}
    unused = [digest for digest in index.pixels if digest not in used]
    sizes = {}
    for entry in os.scandir(index.folder):
        if _PIXELS.fullmatch(entry.name) or _LEFT_OVER.fullmatch(entry.name):
            with suppress(FileNotFoundError):  # a worker may outlive a killed process by seconds, and end its file
                sizes[entry.name] = entry.stat().st_size
    broken = {
        digest: _name(digest)
        for digest, pixels in index.pixels.items()
        if digest in used and not isinstance(pixels, str) and sizes.get(_name(digest)) != pixels.bytes
    }
    for digest in [*unused, *broken]:
        del index.pixels[digest]
    if broken:
        tell(f"image cache {index.folder}: not whole, and made anew: {_first(list(broken.values()))}")
    if gone or unused or broken:
        index.compact()
    kept = {_name(digest) for digest, pixels in index.pixels.items() if not isinstance(pixels, str)}
    for name in sizes.keys() - kept:
        (index.folder / name).unlink(missing_ok=True)


def _name(digest: str) -> str:
    return f"{digest}.u8"


def _decode(index: Index, images: Sequence[ImageFile], workers: int) -> None:
    """Store the pixels of every content that is not known yet."""
    missing: dict[str, ImageFile] = {}
    for image in images:
        file = index.files.get(_key(image))
        if file is not None and file.digest not in index.pixels:
            missing.setdefault(file.digest, image)
    if not missing:
        return
    needed = _check_space(index.folder, missing.values())
    files = {image: index.files[_key(image)] for image in missing.values()}
    store = partial(_store, folder=index.folder, files=files, needed=needed)
    with closing(_each(store, list(files), workers, "decoding images into the cache")) as found:
        for image, pixels in found:
            if pixels is not None:
                index.add_pixels(files[image].digest, pixels)


def _check_space(folder: Path, images: Iterable[ImageFile]) -> int:
    """How many bytes the pixels of `images` take; raises DataError if there are not as many."""
    needed = 0
    for image in images:
        with suppress(ImageError):  # of which nothing will be stored
            height, width = image_size(image.path)
            needed += -(-3 * height * width // _BLOCK) * _BLOCK
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        tell(f"image cache {folder}: how much space is free is not known ({error.strerror or error})")
        return needed
    if needed > free:
        raise DataError(
            f"image cache {folder}: it needs {needed / 2**30:.2f} GiB more, and {free / 2**30:.2f} GiB are free; give "
            "a folder on a larger disk, or train without a cache"
        )
    return needed


def _store(image: ImageFile, folder: Path, files: dict[ImageFile, FileFact], needed: int) -> PixelsFact | str | None:
    """Decode an image and store it; returns what to note of it, None if that may be different another time."""
    file = files[image]
    try:
        found = image.read()
    except ImageError as error:
        if _is_passing(error.__cause__):
            return None
        found = str(error).removeprefix(f"{image.path}: ")
    if _stamp(image.path) != file[:2]:  # it was written to since the digest was taken
        return None
    if isinstance(found, str):
        return found
    try:
        with written_whole(folder / _name(file.digest)) as temporary:
            temporary.write_bytes(found.data)
    except OSError as error:
        space = f"all of it needs {needed / 2**30:.2f} GiB"
        with suppress(OSError):
            space += f", {shutil.disk_usage(folder).free / 2**30:.2f} GiB are free"
        raise DataError(
            f"image cache {folder}: {error.strerror or error} while storing {image.path}; {space}. "
            "What is stored is whole, and the next run goes on from there"
        ) from error
    return PixelsFact(*found.shape[:2], zlib.crc32(found))


def _is_passing(cause: BaseException | None) -> bool:
    """Whether a file could not be decoded for a reason outside of it."""
    return isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None)


def _sources(index: Index, images: Sequence[ImageFile]) -> list[Source]:
    # Forked workers share it with this process: a map of no file, which counts for no limit on shared memory. Where
    # workers are spawned, each finds out for itself.
    states = np.frombuffer(mmap.mmap(-1, max(len(images), 1)), np.uint8)
    states[:] = UNKNOWN
    sources: list[Source] = []
    for position, image in enumerate(images):
        file = index.files.get(_key(image))
        pixels = None if file is None else index.pixels.get(file.digest)
        if pixels is None:
            sources.append(image)
        elif isinstance(pixels, str):
            sources.append(UnreadableImage(image.path, pixels))
        else:
            stored = index.folder / _name(file.digest)
            shape = (pixels.height, pixels.width, 3)
            sources.append(CachedImage(image.path, stored, shape, pixels.crc32, states, position))
    left = [source.name for source in sources if isinstance(source, ImageFile)]
    if left:
        tell(f"image cache {index.folder}: could not be opened, or changed meanwhile, and not stored: {_first(left)}")
    return sources


def _each(
    function: Callable[[ImageFile], _Result], images: Sequence[ImageFile], workers: int, what: str
) -> Iterator[tuple[ImageFile, _Result]]:
    """Each image and `function` of it, with a progress bar."""
    if not images:
        return
    bar = tqdm(
        total=len(images),
        desc=what,
        unit="image",
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )
    loader = SourceLoader(Each(function, images), range(len(images)), min(workers, len(images)))
    # Closed also when something is raised: workers that still wait to be asked would keep this process from ending.
    with bar, closing(iter(loader)) as results:
        for image, result in zip(images, results, strict=True):
            yield image, result
            bar.update()


def _first(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
