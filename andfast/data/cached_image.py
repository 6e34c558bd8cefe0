"""Images whose pixels lie in a cache (`andfast.data.cache`): sources that need not be decoded."""

from __future__ import annotations

import errno
import sys
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from andfast.data.images import ImageError, read_image

#: What is known of an image's pixels.
UNKNOWN, SOUND, DAMAGED = range(3)

# What shares answer that have no memory maps.
_CANNOT_MAP = {errno.EINVAL, errno.ENODEV, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@dataclass(frozen=True, eq=False)
class CachedImage:
    """An image file whose pixels are in a cache.

    Attributes:
        path: the image file.
        pixels: the file in the cache.
        shape: (H, W, 3).
        crc32: checksum of the pixels.
        states: uint8, one element an image, shared by all processes of a run: what is known of the pixels.
        index: which element is this image's.
    """

    path: Path
    pixels: Path
    shape: tuple[int, int, int]
    crc32: int
    states: np.ndarray
    index: int

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> np.ndarray:
        """A memory map of the pixels, whose checksum is looked at the first time that any process wants them.

        Where a share has no memory maps, it is an array. Pixels that are damaged are named, removed, and never given
        out: the file is decoded instead.
        """
        if self.states[self.index] != DAMAGED:
            try:
                return self._mapped()
            except (OSError, ValueError) as error:  # a map longer than its file is a ValueError, too
                self._give_up(error)
        return read_image(self.path)

    def _mapped(self) -> np.ndarray:
        try:
            pixels = np.memmap(self.pixels, np.uint8, "r", shape=self.shape)
        except OSError as error:
            if error.errno not in _CANNOT_MAP:
                raise
            pixels = np.fromfile(self.pixels, np.uint8).reshape(self.shape)
        if self.states[self.index] == UNKNOWN:
            if zlib.crc32(pixels) != self.crc32:
                raise ValueError("its checksum is wrong")
            self.states[self.index] = SOUND
        return pixels

    def _give_up(self, error: Exception) -> None:
        self.states[self.index] = DAMAGED
        reason = error
        if isinstance(error, OSError):  # not there, or no more files may be open: it says nothing about its content
            reason = error.strerror
        else:
            with suppress(OSError):
                self.pixels.unlink()
        # Not by tqdm.write: in a worker, its lock may be held by a thread that was not forked along.
        with suppress(OSError, ValueError):  # what nobody hears ends no work
            print(
                f"{self.pixels} cannot be used ({reason}): {self.path} is decoded each time instead, and the next run "
                "mends the cache",
                file=sys.stderr,
                flush=True,
            )


@dataclass(frozen=True)
class UnreadableImage:
    """An image file of which it is known that it cannot be decoded, and why."""

    path: Path
    reason: str

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> np.ndarray:
        raise ImageError(f"{self.path}: {self.reason}")
