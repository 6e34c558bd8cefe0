"""What the paper compares its adversary with (Table 2): random deviations, adversarial noise, simulated LR images."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.attack.base import ImageAttack, NetworkAttack, SearchResult, bicubic_downsample, by_network
from andfast.attack.budget import SearchInputs, check_range
from andfast.attack.pgd import PGD, random_direction, shrink_random
from andfast.degradation.bsrgan import bsrgan
from andfast.degradation.lens import Lens
from andfast.degradation.network import DegradationNetwork
from andfast.degradation.real_esrgan import real_esrgan
from andfast.losses import Objective
from andfast.ops import projected_step
from andfast.ops.theta_layout import ScaleFactors
from andfast.utils.rng import draw_rows


@dataclass
class RandomDeviation(NetworkAttack):
    """A random deviation in the same budget: no adversary (Table 2, "synthetic data augmentation").

    Each network moves by epsilon in the scaled norm, in a uniformly drawn direction, and is then shrunk into its
    LR-PSNR budget.

    Cost: two passes forward through F, one more for every try that a budget refuses, and two through G.

    Args:
        epsilon, scale_factors, psnr_range, lens: as for `PGD`; epsilon is finite.
    """

    epsilon: float = PGD.epsilon
    scale_factors: ScaleFactors = field(default_factory=ScaleFactors)
    psnr_range: tuple[float, float] | None = PGD.psnr_range
    lens: Lens | None = None

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon is {self.epsilon}; it must be positive and finite")
        check_range(self.psnr_range)

    def _draw(self, network: DegradationNetwork, rng: torch.Generator | None) -> Tensor:
        return self.epsilon * random_direction(network, self.inv_scale(network), rng)

    def _search(self, inputs: SearchInputs, objective: Objective) -> SearchResult:
        network, hr = inputs.network, inputs.hr
        delta, lr = shrink_random(inputs, inputs.drawn, self.epsilon)
        result = SearchResult()
        with torch.no_grad():
            result.losses.append(by_network(objective(network(inputs.input), hr), network.num_networks))
            result.keep_last(lr, delta, by_network(objective(lr, hr), network.num_networks))
        return result


@dataclass
class AdversarialNoise(ImageAttack):
    """Adversarial additive noise on the bicubic LR image (Table 2, "adversarial noise training"), perhaps of a `lens`.

    Projected gradient ascent on the noise of each image, in the 2-norm ball that its LR-PSNR budget allows; the steps
    are twice the radius long in all.

    Args:
        steps: gradient steps.
        psnr_range: as for `PGD`.
        random_start: the share, in [0, 1), of the squared error allowed that Gaussian noise uses before the search.
        lens: that HR images pass before they are downsampled, drawn anew for each; None: no lens, as in the paper.
    """

    steps: int = 5
    psnr_range: tuple[float, float] = (22.0, 36.0)
    random_start: float = 0.0
    lens: Lens | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")
        if not 0 <= self.random_start < 1:
            raise ValueError(f"random_start is {self.random_start}; it must be in [0, 1)")
        check_range(self.psnr_range)

    def _search(self, inputs: SearchInputs, objective: Objective) -> SearchResult:
        clean, hr = inputs.clean, inputs.hr
        radius = (clean[0].numel() ** 0.5 * 10 ** (-inputs.budget_db / 20))[:, None]
        noise = torch.zeros_like(clean).flatten(1)
        if self.random_start:
            size = clean[0].numel()
            drawn = draw_rows(
                lambda rows: torch.randn(rows, size, device=hr.device, generator=inputs.rng), len(hr), inputs.rng
            )
            noise = self.random_start**0.5 * radius * F.normalize(drawn)
        inv_scale = torch.ones(noise.shape[1], device=hr.device)
        result = SearchResult()
        for _ in range(self.steps):
            lr = (clean + noise.view_as(clean)).clamp(0, 1).requires_grad_()
            loss = objective(lr, hr)
            (gradient,) = torch.autograd.grad(loss.sum(), lr)
            result.keep_worst(loss.detach(), lr.detach(), noise)
            # In units of its radius every image's ball is the unit ball.
            noise = radius * projected_step(noise / radius, gradient.flatten(1), inv_scale, 2 / self.steps, 1.0)
        with torch.no_grad():
            lr = (clean + noise.view_as(clean)).clamp(0, 1)
            result.keep_worst(objective(lr, hr), lr, noise)
        return result


class Simulated(ImageAttack):
    """LR images drawn from a fixed distribution: no adversary, no network, no budget, and no pass through G.

    `losses` is empty, `loss_before` and `loss_after` are None; `distance` is that from the bicubic LR image.
    """

    psnr_range: ClassVar[None] = None

    @abstractmethod
    def degrade(self, hr: Tensor, scale: int, rng: torch.Generator | None = None) -> Tensor:
        """Degrade `hr` (B, 3, H, W) in [0, 1] to (B, 3, H / scale, W / scale) in [0, 1].

        Args:
            hr, scale: H and W are multiples of `scale`, else a ValueError is raised.
            rng: for random choices, on hr's device; None for torch's own.
        """

    def _search(self, inputs: SearchInputs, objective: Objective) -> SearchResult:
        lr = self.degrade(inputs.hr, inputs.network.scale, inputs.rng)
        result = SearchResult()
        result.keep_last(lr, (lr - inputs.clean).flatten(1))
        return result


@dataclass
class Bicubic(Simulated):
    """Bicubic downsampling (Table 2, "classical SR training")."""

    def degrade(self, hr: Tensor, scale: int, rng: torch.Generator | None = None) -> Tensor:
        return bicubic_downsample(hr, scale)


@dataclass
class BSRGAN(Simulated):
    """Shuffled blurs, downsamplings, noise and JPEG: see `andfast.degradation.bsrgan`."""

    def degrade(self, hr: Tensor, scale: int, rng: torch.Generator | None = None) -> Tensor:
        return bsrgan(hr, scale, rng)


@dataclass
class RealESRGAN(Simulated):
    """Blur, resizing, noise and JPEG twice, and ringing: see `andfast.degradation.real_esrgan`."""

    def degrade(self, hr: Tensor, scale: int, rng: torch.Generator | None = None) -> Tensor:
        return real_esrgan(hr, scale, rng)
