"""Training patches: random crops of HR images, each batch a pure function of the seed and the step."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from andfast.data.images import DataError, ImageError, image_size, read_image
from andfast.data.listing import Listing, SkippedFile, listed, no_images_message
from andfast.data.paired_folders import list_hr_folder
from andfast.data.workers import SourceDataset, SourceLoader
from andfast.utils.formatting import counted
from andfast.utils.rng import batch_positions

# The streams of random numbers that are drawn from one seed.
_ORDER, _CROP, _REPLACEMENT = range(3)
# Those of weighted folders lie beyond the streams of camera pairs.
_FOLDERS, _FIRST_FOLDER = 100, 101

_ROUND = 10_000

LEAST_SHARE = 1 / _ROUND
"""The least share of patches that a folder may have."""


class Source(Protocol):
    """An HR image to crop patches from."""

    @property
    def name(self) -> str:
        """Its name for messages."""

    def read(self) -> np.ndarray:
        """The image, uint8 (H, W, 3) RGB; a `np.memmap` if reading is cheap. ImageError if it cannot be read."""


@dataclass(frozen=True)
class ImageFile:
    """An image file, decoded by each read; `folder` is the number of the folder that it was found in."""

    path: Path
    folder: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> np.ndarray:
        return read_image(self.path)


@dataclass(frozen=True, eq=False)
class ImageArray:
    """An image in memory, uint8 (H, W, 3)."""

    name: str
    array: np.ndarray

    def __post_init__(self) -> None:
        if self.array.dtype != np.uint8 or self.array.ndim != 3 or self.array.shape[2] != 3:
            raise ValueError(f"{self.name}: an image is uint8 (H, W, 3), not {self.array.dtype} {self.array.shape}")

    def read(self) -> np.ndarray:
        return self.array


class Failure(NamedTuple):
    """A source that could not be read, and a sentence that names it and the cause."""

    name: str
    reason: str


class Scan(NamedTuple):
    """The usable image files, the unusable ones, and what the listing skipped."""

    sources: list[ImageFile]
    skipped: list[Failure]
    passed_over: list[SkippedFile]


def scan_images(folders: Sequence[Path], min_size: int) -> Scan:
    """Find the images in `folders` of at least `min_size` pixels a side, from their headers only.

    An element of `folders` may be an image, too. A file found twice, through links or folders, counts once. LR images
    beside a folder of HR images are skipped (`list_hr_folder`).

    Raises:
        DataError: a folder does not exist, or there is no usable image.
    """
    folders = [Path(folder) for folder in folders]
    sources, skipped, passed_over = [], [], []
    found: dict[str, ImageFile] = {}
    for index, folder in enumerate(folders):
        listing = Listing([folder], []) if folder.is_file() else list_hr_folder(folder)
        for path in listing.paths:
            found.setdefault(os.path.realpath(path), ImageFile(path, index))
        passed_over += listing.passed_over
    for source in found.values():
        path = source.path
        try:
            height, width = image_size(path)
            if min(height, width) < min_size:
                raise ImageError(f"{path}: {too_small(height, width, min_size)}")
        except ImageError as error:
            skipped.append(Failure(str(path), str(error)))
        else:
            sources.append(source)
    if not sources:
        where = ", ".join(str(folder) for folder in folders) or "no folder was given"
        raise DataError(
            f"no usable image in: {where}. Wanted: image files, {min_size} x {min_size} pixels or more."
            + (_skipped(skipped) if found else f" Found: {no_images_message(passed_over)}.")
        )
    return Scan(sources, skipped, passed_over)


class PatchBatches(SourceDataset):
    """The batches of a training run: item `step` is the batch of that step.

    An item is a pair: the patches, uint8 (batch, 3, patch, patch) RGB, and a list of `Failure`, one for each source
    that could not be read and was replaced by another.

    An item depends only on the seed, the step and the sources, so a run may stop and resume at any step, with any
    number of workers. Numbering the patches of a run from 0 (`step * batch + position`), patch k comes from source
    `order[k % n]`, where n is the number of sources and `order` a permutation drawn for each epoch `k // n`: every
    source is used once an epoch (with `weights`, of its folder: see `WeightedOrder`). Crop, flip and rotation are drawn
    for each patch. The numbers are raw output of NumPy's Philox generator, which, unlike its distributions, is the same
    in all versions.

    With `world` processes, process `rank` has its part of the batch of `world * batch` patches that one process would
    make, which ends with the `mixed` patches of all processes.

    Args:
        sources: the images, each at least `patch` pixels high and wide. Their order matters: sort them.
        patch: height and width of a patch in pixels.
        batch: patches a batch.
        seed: a non-negative integer.
        flip: mirror each patch with probability 1/2.
        rotate: rotate each patch by 0, 90, 180 or 270 degrees, equally likely.
        cache_mib: memory for decoded images in each worker, in MiB. If all images fit, each worker decodes them once.
        rank: index of this process, 0 <= rank < world.
        world: number of processes.
        mixed: the last patches of the batch that `attack.mix` uses.
        weights: the shares of patches from each folder, in any unit; empty: every source has the same.
        folders: for `weights`, the number of each source's folder.

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
        weights: Sequence[float] = (),
        folders: Sequence[int] = (),
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
        self._order = WeightedOrder(folders, weights, seed) if weights else Shuffled(len(sources), seed, _ORDER)

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
        """The image for patch `number`; adds sources that cannot be read to `failures`."""
        image = self._read(self._order[number], failures)
        if image is not None:
            return image
        # From a random source onwards, each is tried once.
        start = int(random_numbers(1, self.seed, _REPLACEMENT, number)[0] % len(self.sources))
        for attempt in range(len(self.sources)):
            image = self._read((start + attempt) % len(self.sources), failures)
            if image is not None:
                return image
        raise DataError(
            f"none of {counted(len(self.sources), 'image')} can be read.{_skipped(list(failures.values()))}"
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
        down, right, mirror, turns = (int(value) for value in random_numbers(4, self.seed, _CROP, number))
        top = down % (image.shape[0] - self.patch + 1)
        left = right % (image.shape[1] - self.patch + 1)
        # Copied row by row, in the order of memory or disk; reading column by column would cost far more.
        crop = np.ascontiguousarray(image[top : top + self.patch, left : left + self.patch])
        return flip_and_rotate(crop, mirror if self.flip else 0, turns if self.rotate else 0)


def random_numbers(count: int, seed: int, *key: int) -> np.ndarray:
    """`count` random 64-bit numbers for a seed and a key, as uint64: the same in all NumPy versions."""
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)).random_raw(count)


class Shuffled:
    """An endless sequence of the numbers below `count`: all of them in a random order, then in another, and so on."""

    def __init__(self, count: int, seed: int, key: int) -> None:
        self._count, self._seed, self._key = count, seed, key
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, number: int) -> int:
        epoch, place = divmod(number, self._count)
        if epoch != self._epoch:
            # Sorting random 64-bit numbers gives a uniform permutation; stable, should two be the same.
            numbers = random_numbers(self._count, self._seed, self._key, epoch)
            self._epoch, self._order = epoch, np.argsort(numbers, kind="stable")
        return int(self._order[place])


class WeightedOrder:
    """An endless sequence of the numbers of sources, of which folders have given shares.

    In each round of 10,000 numbers a folder has its share, in random places; its own sources come in the order of
    `Shuffled`. So each element follows from its place, and each source of a folder is used equally often.

    Args:
        folders: the number of each source's folder.
        weights: the shares of folders 0, 1, ..., in any unit, each at least `LEAST_SHARE` of their sum.
        seed: a non-negative integer.

    Raises:
        ValueError: a weight is too small, or a folder has no source.
    """

    def __init__(self, folders: Sequence[int], weights: Sequence[float], seed: int) -> None:
        if not min(weights) >= LEAST_SHARE * sum(weights):
            raise ValueError(f"wanted weights of at least {LEAST_SHARE:g} of their sum, not {list(weights)}")
        ends = np.floor(_ROUND * np.cumsum(weights) / sum(weights) + 0.5).astype(int)
        self._counts = np.diff(ends, prepend=0)
        self._sources = [np.flatnonzero(np.array(folders) == folder) for folder in range(len(weights))]
        if not all(map(len, self._sources)):
            raise ValueError("wanted a source in each folder that has a weight")
        self._orders = [Shuffled(len(own), seed, _FIRST_FOLDER + folder) for folder, own in enumerate(self._sources)]
        self._places = Shuffled(_ROUND, seed, _FOLDERS)
        self._round = -1
        self._folders = self._ranks = np.empty(0, np.int64)

    def __getitem__(self, number: int) -> int:
        round_, place = divmod(number, _ROUND)
        if round_ != self._round:
            slots = np.repeat(np.arange(len(self._counts)), self._counts)
            self._folders = slots[[self._places[round_ * _ROUND + place] for place in range(_ROUND)]]
            self._ranks = np.empty(_ROUND, np.int64)
            for folder, count in enumerate(self._counts):
                self._ranks[self._folders == folder] = np.arange(count)
            self._round = round_
        folder = self._folders[place]
        return int(self._sources[folder][self._orders[folder][round_ * self._counts[folder] + self._ranks[place]]])


def flip_and_rotate(crop: np.ndarray, mirror: int, turns: int) -> np.ndarray:
    """A view of `crop` (H, W, 3), mirrored if `mirror` is odd, then rotated by `turns` quarter turns."""
    return np.rot90(crop[:, ::-1] if mirror % 2 else crop, turns % 4)


class PatchLoader(SourceLoader):
    """A `SourceLoader` of `PatchBatches` that reports each unreadable source only the first time."""

    def __iter__(self) -> Iterator[tuple[Tensor, list[Failure]]]:
        named: set[str] = set()
        for patches, failures in super().__iter__():
            new = [failure for failure in failures if failure.name not in named]
            named.update(failure.name for failure in new)
            yield patches, new


def make_loader(
    batches: SourceDataset, start_step: int, stop_step: int, workers: int, pin_memory: bool = False
) -> PatchLoader:
    """A loader of the batches of steps `start_step` to `stop_step` (exclusive); other arguments as for `SourceLoader`.

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


def _skipped(failures: Sequence[Failure]) -> str:
    reasons = [failure.reason for failure in failures]
    return f" Skipped, {len(reasons)} in all: {listed(reasons, '; ')}" if reasons else ""
