"""LR images from degradations that look at no loss: bicubic downsampling, and what other methods train with."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from andfast.attack.base import ImageAttack, Iterates, Task, bicubic_downsample
from andfast.degradation import bsrgan, real_esrgan


class Simulated(ImageAttack):
    """No adversary, no network and no budget: LR images drawn from a distribution that is the same all through.

    There is no pass through G: what an LR image's loss is the update finds out, and the clean one's nobody. `losses`
    is empty, `loss_before` and `loss_after` are None; `distance` is how far the LR image lies from the bicubic one.
    """

    lr_psnr: ClassVar[None] = None

    @abstractmethod
    def degrade(self, hr: Tensor, scale: int, generator: torch.Generator | None = None) -> Tensor:
        """The LR images that `hr` becomes.

        Args:
            hr: (B, 3, H, W) in [0, 1].
            scale: divides H and W.
            generator: where random choices come from, a generator of hr's device; None for torch's own.

        Returns:
            (B, 3, H / scale, W / scale) in [0, 1].

        Raises:
            ValueError: H or W is not a multiple of `scale`.
        """

    def _search(self, task: Task) -> Iterates:
        lr = self.degrade(task.hr, task.network.scale, task.generator)
        iterates = Iterates()
        iterates.end(lr, (lr - task.clean).flatten(1))
        return iterates


@dataclass
class Bicubic(Simulated):
    """The LR image is bicubic-downsampled (Table 2, "classical SR training")."""

    def degrade(self, hr: Tensor, scale: int, generator: torch.Generator | None = None) -> Tensor:
        return bicubic_downsample(hr, scale)


@dataclass
class BSRGAN(Simulated):
    """Shuffled blurs, downsamplings, noise and JPEG: see `andfast.degradation.bsrgan`."""

    def degrade(self, hr: Tensor, scale: int, generator: torch.Generator | None = None) -> Tensor:
        return bsrgan(hr, scale, generator)


@dataclass
class RealESRGAN(Simulated):
    """Blur, resizing, noise and JPEG twice, and ringing: see `andfast.degradation.real_esrgan`."""

    def degrade(self, hr: Tensor, scale: int, generator: torch.Generator | None = None) -> Tensor:
        return real_esrgan(hr, scale, generator)
