"""Patches of camera-captured pairs: the same crop of both images, each batch a function of the seed and the step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from andfast.data.images import DataError, image_size, read_image
from andfast.data.pairs import Pair, common_size
from andfast.data.patches import RecentImages, Shuffled, flip_and_rotate, random_numbers, too_small

# Streams of random numbers beside those of the HR patches (`andfast.data.patches`).
_ORDER, _CROP = 3, 4


class PairPatches:
    """Batches of aligned patches: crops on whole LR pixels, both of a pair mirrored and rotated alike.

    Order, random numbers and arguments are as for `PatchBatches`; `patch`, the height and width of the HR patches, is a
    multiple of `scale`.

    Raises:
        DataError: a pair is smaller than the patches; when called: an image cannot be read. The message names it.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        scale: int,
        patch: int,
        batch: int,
        seed: int = 0,
        flip: bool = True,
        rotate: bool = True,
        cache_mib: float = 512,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        # Height and width of the LR images after cutting: see `andfast.data.pairs.fitted`.
        self._sizes = [common_size(image_size(pair.hr), image_size(pair.lr), scale) for pair in pairs]
        for pair, (height, width) in zip(pairs, self._sizes, strict=True):
            if min(height, width) * scale < patch:
                raise DataError(f"{pair.hr}: {too_small(height * scale, width * scale, patch)}")
        self.pairs, self.scale, self.patch, self.batch = list(pairs), scale, patch, batch
        self.seed, self.flip, self.rotate = seed, flip, rotate
        self.rank, self.world = rank, world
        self._images = RecentImages(int(cache_mib * 2**20))
        self._order = Shuffled(len(self.pairs), seed, _ORDER)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: HR and LR patches, uint8 (batch, 3, patch, patch) and (batch, 3, patch / scale, ...)."""
        low = self.patch // self.scale
        hr = np.empty((self.batch, 3, self.patch, self.patch), np.uint8)
        lr = np.empty((self.batch, 3, low, low), np.uint8)
        for position in range(self.batch):
            number = (step * self.world + self.rank) * self.batch + position
            pair = self._order[number]
            down, right, mirror, turns = (int(value) for value in random_numbers(4, self.seed, _CROP, number))
            mirror, turns = mirror if self.flip else 0, turns if self.rotate else 0
            whole_hr, whole_lr = self._read(2 * pair), self._read(2 * pair + 1)
            top, left = down % (whole_lr.shape[0] - low + 1), right % (whole_lr.shape[1] - low + 1)
            for image, patches, scale in ((whole_hr, hr, self.scale), (whole_lr, lr, 1)):
                rows, columns = (slice(scale * start, scale * (start + low)) for start in (top, left))
                patches[position] = flip_and_rotate(image[rows, columns], mirror, turns).transpose(2, 0, 1)
        return torch.from_numpy(hr), torch.from_numpy(lr)

    def _read(self, index: int) -> np.ndarray:
        """The HR image of pair index // 2 if `index` is even, else its LR image."""
        image = self._images.get(index)
        if image is None:
            pair, (height, width) = self.pairs[index // 2], self._sizes[index // 2]
            if index % 2:
                image = read_image(pair.lr)[:height, :width]
            else:
                image = read_image(pair.hr)[: self.scale * height, : self.scale * width]
            self._images.put(index, image)
        return image
