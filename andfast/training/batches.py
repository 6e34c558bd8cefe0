"""The batches of a run: HR patches and camera pairs as the data workers read them, and their preparation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from andfast.attack import BSRGAN, Bicubic, RealESRGAN
from andfast.attack.baselines import Simulated
from andfast.data.pair_patches import PairPatches
from andfast.data.pairs import Pair
from andfast.data.patches import Failure, PatchBatches
from andfast.data.workers import SourceDataset
from andfast.degradation.blur_kernels import gaussian_blur
from andfast.degradation.noise import add_sensor_noise
from andfast.ops.blur_pool import blur_pool
from andfast.training.config import Config
from andfast.training.distributed import World
from andfast.utils.rng import batch_positions, step_generator

# Streams of a step's random numbers, independent of each other and of the adversary's, which has no number.
_MIX, _BLUR = 1, 2

_SIMULATED: dict[str, Simulated] = {"bicubic": Bicubic(), "bsrgan": BSRGAN(), "real_esrgan": RealESRGAN()}


class _Folder(NamedTuple):
    name: str


class TrainingBatches(SourceDataset):
    """Item `step` is the batch of that step, a function of seed and step: ((patches, pairs), failures).

    `patches` and `failures` are those of `PatchBatches`; `pairs` is None, or after the warm-up the HR and LR patches of
    camera pairs.
    """

    def __init__(self, patches: PatchBatches, pairs: PairPatches | None, config: Config) -> None:
        # If a worker ends while it reads pairs, the message names their folder.
        super().__init__([*patches.sources, _Folder(str(config.attack.mix.pairs))])
        self._patches, self._pairs, self._warmup = patches, pairs, config.train.warmup

    def __getitem__(self, step: int) -> tuple[tuple[Tensor, tuple[Tensor, Tensor] | None], list[Failure]]:
        self._patches.on_reading = self.on_reading
        patches, failures = self._patches[step]
        if self._pairs is None or step < self._warmup:
            return (patches, None), failures
        with self.reading(len(self.sources) - 1):
            return (patches, self._pairs(step)), failures


def make_pair_patches(config: Config, pairs: Sequence[Pair], world: World) -> PairPatches | None:
    """The patches of the camera pairs that are mixed in (`attack.mix.pairs`); None without pairs.

    Raises:
        DataError: a pair is smaller than the patches; the message names it.
    """
    if not pairs:
        return None
    return PairPatches(
        pairs,
        scale=config.scale,
        patch=config.train.patch_size,
        batch=config.mixed,
        seed=config.seed,
        flip=config.data.flip,
        rotate=config.data.rotate,
        cache_mib=config.data.cache_mib,
        rank=world.rank,
        world=world.size,
    )


def to_images(patches: Tensor, device: torch.device) -> Tensor:
    """Patches of bytes as float images in [0, 1] on the device, without waiting for the copy."""
    return patches.to(device, non_blocking=True).float() / 255


def blur_hr(hr: Tensor, config: Config, step: int, world: World) -> Tensor:
    """Blur HR images, (B, C, H, W), by `data.soften`: seed and step determine the width for each image."""
    if config.data.soften is None:
        return hr
    low, high = config.data.soften
    rng = step_generator(config.seed, step, torch.device("cpu"), _BLUR)
    positions = batch_positions(len(hr), config.mixed, world.rank, world.size)
    uniform = torch.rand(world.size * len(hr), generator=rng)[positions]
    return gaussian_blur(hr, (low + (high - low) * uniform).to(hr.device), high)


@torch.no_grad()
def mixed_images(
    hr: Tensor, pairs: tuple[Tensor, Tensor] | None, config: Config, step: int, world: World
) -> tuple[Tensor, Tensor]:
    """HR and LR images for the part of the batch that is not attacked, by `attack.mix.method`.

    Args:
        hr: (B, 3, H, W) in [0, 1], the last images of this process's batch.
        pairs: patches of camera pairs, which the method pairs needs and which replace `hr`.
        config, step, world: of this process; seed and step determine the random choices.
    """
    if config.mix_method == "pairs":
        if pairs is None:
            raise ValueError("the settings mix in camera pairs, and the batch has none")
        return to_images(pairs[0], hr.device), to_images(pairs[1], hr.device)
    rng = step_generator(config.seed, step, hr.device, _MIX, rank=world.rank, size=world.size)
    if config.mix_method == "clean":
        lr = blur_pool(hr, config.scale)
    else:
        lr = _SIMULATED[config.mix_method].degrade(hr, config.scale, rng)
    return hr, lr if config.attack.mix.noise is None else add_sensor_noise(lr, config.attack.mix.noise, rng)
