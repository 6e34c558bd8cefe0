"""Training patches: random crops of HR images, each batch a pure function of the seed and the step."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from andfast.data.images import DataError, ImageError, image_size, read_image
from andfast.data.listing import Listing, SkippedFile, no_images_message
from andfast.data.paired_folders import list_hr_folder
from andfast.data.workers import SourceDataset, SourceLoader
from andfast.utils.rng import batch_positions

# The streams of random numbers that are drawn from one seed.
_ORDER, _CROP, _REPLACEMENT = range(3)

_NAMED_AT_MOST = 5  # how many files an error message names


class Source(Protocol):
    """An HR image to crop patches from."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def read(self) -> np.ndarray:
        """The image, uint8 (H, W, 3) RGB; raises ImageError if there is none to be had.

        A `np.memmap` says that reading costs next to nothing and takes no memory of the process's own.
        """


@dataclass(frozen=True)
class ImageFile:
    """An image file, decoded each time that it is read."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> np.ndarray:
        return read_image(self.path)


@dataclass(frozen=True, eq=False)
class ImageArray:
    """An image in memory.

    Raises:
        ValueError: `array` is not uint8 (H, W, 3).
    """

    name: str
    array: np.ndarray

    def __post_init__(self) -> None:
        if self.array.dtype != np.uint8 or self.array.ndim != 3 or self.array.shape[2] != 3:
            raise ValueError(f"{self.name}: an image is uint8 (H, W, 3), not {self.array.dtype} {self.array.shape}")

    def read(self) -> np.ndarray:
        return self.array


class Failure(NamedTuple):
    """A source that gave no patch, and why: a sentence that names it."""

    name: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """What `scan_images` found: the usable files, each skipped one with the reason, which names it, and other files."""

    paths: list[Path]
    skipped: list[tuple[Path, str]]
    passed_over: list[SkippedFile]

    @property
    def sources(self) -> list[ImageFile]:
        return [ImageFile(path) for path in self.paths]


def scan_images(folders: Sequence[Path], min_size: int) -> Scan:
    """Find the images in `folders` and below them that can give patches, from their headers only.

    Args:
        folders: folders of images, and images; a file found in two ways, by links or folders, counts once. LR images
            in a folder beside one of HR images (`list_hr_folder`) are passed over.
        min_size: the least height and width in pixels, the patch's.

    Raises:
        DataError: a folder does not exist, or none of them holds a usable image.
    """
    folders = [Path(folder) for folder in folders]
    paths, skipped, passed_over = [], [], []
    found: dict[str, Path] = {}
    for folder in folders:
        listing = Listing([folder], []) if folder.is_file() else list_hr_folder(folder)
        for path in listing.paths:
            found.setdefault(os.path.realpath(path), path)
        passed_over += listing.passed_over
    for path in found.values():
        try:
            height, width = image_size(path)
        except ImageError as error:
            skipped.append((path, str(error)))
            continue
        if min(height, width) < min_size:
            skipped.append((path, f"{path}: {too_small(height, width, min_size)}"))
        else:
            paths.append(path)
    if not paths:
        where = ", ".join(str(folder) for folder in folders) or "no folder was given"
        raise DataError(
            f"no usable image in: {where}. Wanted: image files, {min_size} x {min_size} pixels or more."
            + (_listed([reason for _, reason in skipped]) if found else f" Found: {no_images_message(passed_over)}.")
        )
    return Scan(paths, skipped, passed_over)


class PatchBatches(SourceDataset):
    """The batches of a training run: item `step` is the whole batch of that step.

    An item is a pair: the patches, uint8 tensor (batch, 3, patch, patch) RGB, and a list of `Failure`, one
    for each source that could not be read while the batch was made (others took its place).

    An item depends on nothing but the seed, the step and the sources, so a run may stop and resume at any
    step, with any number of workers. Numbering the patches of a run from 0 (`step * batch + position`), patch
    k comes from source `order[k % n]`, where n is the number of sources and `order` a permutation drawn anew
    for each epoch `k // n`: every source is seen once an epoch. Crop, flip and rotation are drawn for each
    patch. The numbers are raw output of NumPy's Philox generator, which, unlike its distributions, is the
    same in all versions.

    With `world` processes, the batch of process `rank` is its part of the batch that one process would make
    of `world * batch` patches. The last `mixed` ones of each are a part by itself: the batch that one process would
    make ends with those of all processes.

    Args:
        sources: the images, each at least `patch` pixels high and wide. Their order matters: sort them.
        patch: height and width of a patch in pixels.
        batch: patches a batch.
        seed: a non-negative integer.
        flip: mirror each patch with probability 1/2.
        rotate: turn each patch by 0, 90, 180 or 270 degrees, equally likely.
        cache_mib: how much memory (MiB) each worker may fill with decoded images. Decoding costs much more
            than cropping; when all images fit, each worker decodes them once.
        rank: index of this process, 0 <= rank < world.
        world: number of processes.
        mixed: patches of a batch that are used for something else (`attack.mix`).

    Raises:
        DataError: there are no sources; when indexed: none of them can be read.
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        patch: int,
        batch: int,
        seed: int = 0,
        flip: bool = True,
        rotate: bool = True,
        cache_mib: float = 512,
        rank: int = 0,
        world: int = 1,
        mixed: int = 0,
    ) -> None:
        if not sources:
            raise DataError("no image to train on: the list of sources is empty")
        if patch < 1 or batch < 1 or seed < 0 or cache_mib < 0 or not 0 <= rank < world or not 0 <= mixed <= batch:
            raise ValueError(
                "wanted patch >= 1, batch >= 1, seed >= 0, cache_mib >= 0, 0 <= rank < world and 0 <= mixed <= batch, "
                f"not {patch=}, {batch=}, {seed=}, {cache_mib=}, {rank=}, {world=}, {mixed=}"
            )
        super().__init__(sources)
        self.patch, self.batch, self.seed = patch, batch, seed
        self.flip, self.rotate = flip, rotate
        self._places, self._whole = batch_positions(batch, mixed, rank, world), world * batch
        self._images = RecentImages(int(cache_mib * 2**20))
        self._unreadable: dict[int, Failure] = {}
        self._order = Shuffled(len(sources), seed, _ORDER)

    def __getitem__(self, step: int) -> tuple[Tensor, list[Failure]]:
        if step < 0:
            raise IndexError(f"steps count from 0, not {step}")
        patches = np.empty((self.batch, 3, self.patch, self.patch), np.uint8)
        failures: dict[str, Failure] = {}
        for position, place in enumerate(self._places):
            number = step * self._whole + place
            patches[position] = self._crop(self._image(number, failures), number).transpose(2, 0, 1)
        return torch.from_numpy(patches), list(failures.values())

    def _image(self, number: int, failures: dict[str, Failure]) -> np.ndarray:
        """The image that patch `number` is cut from; adds sources that cannot be read to `failures`."""
        image = self._read(self._order[number], failures)
        if image is not None:
            return image
        # From a random source onwards, each is tried once: that ends, whatever the state of the files.
        start = int(self._random(1, _REPLACEMENT, number)[0] % len(self.sources))
        for attempt in range(len(self.sources)):
            image = self._read((start + attempt) % len(self.sources), failures)
            if image is not None:
                return image
        raise DataError(
            f"none of the {len(self.sources)} images can be read."
            + _listed([failure.reason for failure in failures.values()])
        )

    def _read(self, index: int, failures: dict[str, Failure]) -> np.ndarray | None:
        if index in self._unreadable:
            failure = self._unreadable[index]
            failures[failure.name] = failure
            return None
        image = self._images.get(index)
        if image is not None:
            return image
        source = self.sources[index]
        try:
            with self.reading(index):
                image = source.read()
            if min(image.shape[:2]) < self.patch:
                raise ImageError(f"{source.name}: {too_small(*image.shape[:2], self.patch)}")
        except ImageError as error:
            failures[source.name] = self._unreadable[index] = Failure(source.name, str(error))
            return None
        if not isinstance(image, np.memmap):
            self._images.put(index, image)
        return image

    def _crop(self, image: np.ndarray, number: int) -> np.ndarray:
        down, right, mirror, turns = (int(value) for value in self._random(4, _CROP, number))
        top = down % (image.shape[0] - self.patch + 1)
        left = right % (image.shape[1] - self.patch + 1)
        # Copied row by row, as it lies in memory or on disk; to walk down its columns there would cost far more.
        crop = np.ascontiguousarray(image[top : top + self.patch, left : left + self.patch])
        return flip_and_rotate(crop, mirror if self.flip else 0, turns if self.rotate else 0)

    def _random(self, count: int, *key: int) -> np.ndarray:
        return random_numbers(count, self.seed, *key)


def random_numbers(count: int, seed: int, *key: int) -> np.ndarray:
    """`count` random numbers of 64 bits that belong to a seed and a key, as uint64: the same in all NumPy versions."""
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)).random_raw(count)


def permutation(count: int, seed: int, *key: int) -> np.ndarray:
    """The numbers below `count` in a random order that belongs to a seed and a key."""
    # Sorting random numbers of 64 bits gives a uniform permutation; stable, should two be the same.
    return np.argsort(random_numbers(count, seed, *key), kind="stable")


class Shuffled:
    """Which of `count` things, from 0, is the next, endlessly: all of them in a random order, then in another one.

    Args:
        count: how many.
        seed, key: what the orders belong to.
    """

    def __init__(self, count: int, seed: int, key: int) -> None:
        self._count, self._seed, self._key = count, seed, key
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, number: int) -> int:
        epoch, place = divmod(number, self._count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self._count, self._seed, self._key, epoch)
        return int(self._order[place])


def flip_and_rotate(crop: np.ndarray, mirror: int, turns: int) -> np.ndarray:
    """A view of `crop` (H, W, 3), mirrored for an odd `mirror`, then turned by so many quarters."""
    return np.rot90(crop[:, ::-1] if mirror % 2 else crop, turns % 4)


class PatchLoader(SourceLoader):
    """Yields the items of `PatchBatches` in order, naming each unreadable source only the first time.

    Raises:
        DataError: when iterated: no source can be read, or a worker died; the message names the files.
    """

    def __iter__(self) -> Iterator[tuple[Tensor, list[Failure]]]:
        named: set[str] = set()
        for patches, failures in super().__iter__():
            new = [failure for failure in failures if failure.name not in named]
            named.update(failure.name for failure in new)
            yield patches, new


def make_loader(
    batches: SourceDataset, start_step: int, stop_step: int, workers: int, pin_memory: bool = False
) -> PatchLoader:
    """A loader of the batches of steps `start_step` to `stop_step` (exclusive), in order.

    Args:
        batches: what to load.
        start_step: first step, from 0.
        stop_step: the step after the last.
        workers: processes that decode and crop ahead of the training, four batches each; 0 does it in this
            process, when asked. Each has a cache of its own.
        pin_memory: put batches where a CUDA device can fetch them while it computes.

    Raises:
        ValueError: `workers` or a step is negative, or `stop_step` lies before `start_step`.
    """
    if workers < 0 or not 0 <= start_step <= stop_step:
        raise ValueError(
            f"wanted workers >= 0 and 0 <= start_step <= stop_step, not {workers=}, {start_step=}, {stop_step=}"
        )
    return PatchLoader(batches, range(start_step, stop_step), workers, pin_memory)


class RecentImages:
    """The most recently used images, up to `capacity` bytes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._images: OrderedDict[int, np.ndarray] = OrderedDict()

    def get(self, index: int) -> np.ndarray | None:
        if index not in self._images:
            return None
        self._images.move_to_end(index)
        return self._images[index]

    def put(self, index: int, image: np.ndarray) -> None:
        if image.nbytes > self.capacity:
            return
        self._images[index] = image
        self.size += image.nbytes
        while self.size > self.capacity:
            self.size -= self._images.popitem(last=False)[1].nbytes


def too_small(height: int, width: int, wanted: int) -> str:
    return f"{height} x {width} pixels, smaller than the {wanted} x {wanted} wanted"


def _listed(reasons: Sequence[str]) -> str:
    """`reasons` as the end of a message, the first few of them in full."""
    if not reasons:
        return ""
    more = len(reasons) - _NAMED_AT_MOST
    return f" Skipped, {len(reasons)} in all: " + "; ".join(
        [*reasons[:_NAMED_AT_MOST], *([f"and {more} more"] if more > 0 else [])]
    )
