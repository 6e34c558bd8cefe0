"""Images of a batch that another degradation than the adversary's made, or a camera (`attack.mix`)."""

from __future__ import annotations

import torch
from torch import Tensor

from andfast.attack import BSRGAN, Bicubic, RealESRGAN
from andfast.attack.simulated import Simulated
from andfast.data.pair_patches import PairPatches
from andfast.data.pairs import find_pairs
from andfast.ops.blur_pool import blur_pool
from andfast.training.config import Config
from andfast.training.distributed import World
from andfast.utils.rng import step_generator

_SIMULATED: dict[str, Simulated] = {"bicubic": Bicubic(), "bsrgan": BSRGAN(), "real_esrgan": RealESRGAN()}
# The stream of each step's random numbers; the adversary has another, and so neither changes the other's.
_MIX = 1


class Mixer:
    """What takes the places of the last images of a batch.

    Args:
        config: the process's settings.
        device: where the images are wanted.
        world: the processes, of which each takes its places of the whole batch.

    Attributes:
        images: how many places of a batch are taken.

    Raises:
        DataError: `attack.mix.pairs` holds no pairs, or too small ones; the message names them.
    """

    def __init__(self, config: Config, device: torch.device, world: World) -> None:
        self._world = world
        self.images, self.method = config.mixed, config.mix_method
        self._scale, self._seed, self._device = config.scale, config.seed, device
        self._pairs = None
        if self.images and self.method == "pairs":
            data = config.data
            self._pairs = PairPatches(
                find_pairs(config.attack.mix.pairs, config.scale),
                scale=config.scale,
                patch=config.train.patch_size,
                batch=self.images,
                seed=config.seed,
                flip=data.flip,
                rotate=data.rotate,
                cache_mib=data.cache_mib,
                rank=world.rank,
                world=world.size,
            )

    @torch.no_grad()
    def __call__(self, hr: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """HR and LR images of a step, both float in [0, 1].

        Args:
            hr: (`images`, 3, H, W) in [0, 1], those that stand in these places: pairs bring others.
            step: from 0; with the seed it is all that random choices hang on.
        """
        if self._pairs is not None:
            both = (patches.to(self._device, non_blocking=True).float() / 255 for patches in self._pairs(step))
            return tuple(both)
        if self.method == "clean":
            return hr, blur_pool(hr, self._scale)
        rank, size = self._world.rank, self._world.size
        random = step_generator(self._seed, step, hr.device, _MIX, rank=rank, size=size)
        return hr, _SIMULATED[self.method].degrade(hr, self._scale, random)
