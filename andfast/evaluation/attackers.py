"""Adversaries that measure a model: the worst LR images they find within a budget, and weaker searches beside them.

A budget is the least PSNR of an LR image against the clean one, which is HR pooled or downsampled bicubically. All
adversaries maximise what is reported, the squared error of the restored luma, for each image separately.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.attack import PGD, AdversarialNoise, RandomDeviation
from andfast.attack.base import SearchResult, bicubic_downsample
from andfast.attack.budget import by_image
from andfast.degradation.blur_kernels import cut, filter_images, gaussian, gaussian_blur, squared_distance
from andfast.degradation.jpeg import jpeg
from andfast.degradation.network import DegradationNetwork
from andfast.losses import Objective
from andfast.metrics import psnr, to_y
from andfast.ops.theta_layout import ScaleFactors

FOUND, SHORT, RANDOM = "found", "short", "random"
"""The searches of an adversary: the full one, one by fewer steps, and one by random draws."""

# Deviations of about this norm bring LR images to 27 dB; the error of small ones is proportional to it. Slopes have a
# scale factor of 50.
_RADIUS, _RADIUS_OF_SLOPES, _RADIUS_DB = 0.2, 2.0, 27.0
# Random deviations begin outside of every budget, which then shrinks them.
_RANDOM_RADIUS = 30.0
_SHORT_STEPS, _RANDOM_DRAWS = 5, 8


@dataclass(frozen=True)
class Effort:
    """How long adversaries search.

    Attributes:
        steps: gradient steps.
        restarts: searches by gradients, from the clean image and then from random starts.
        generations: rounds of the search for cameras, of `population` cameras for each image.
    """

    steps: int = 20
    restarts: int = 2
    generations: int = 8
    population: int = 8


def luma_error(restore: Callable[[Tensor], Tensor], border: int) -> Objective:
    """The mean squared error of restored luma, for each image, without `border` pixels at each side: as in PSNR-Y."""

    def objective(lr: Tensor, hr: Tensor) -> Tensor:
        inside = (..., slice(border, hr.shape[-2] - border), slice(border, hr.shape[-1] - border))
        difference = to_y(restore(lr).float().clamp(0, 1)[inside]) - to_y(hr[inside])
        return difference.square().mean(dim=(-2, -1))

    return objective


class Attacker(ABC):
    """An adversary; `name` is what results call it."""

    name: str

    def __call__(
        self, objective: Objective, hr: Tensor, scale: int, budget_db: float, effort: Effort, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Search for the worst LR images.

        Args:
            objective: of a model, as `luma_error`.
            hr: (B, 3, H, W) in [0, 1], H and W multiples of `scale`.
            budget_db: the least PSNR of an LR image.
            rng: for random choices, on hr's device.

        Returns:
            `FOUND`, `SHORT` and `RANDOM`, each with LR images (B, 3, H / scale, W / scale) in [0, 1].
        """
        searches = self._searches(objective, hr, scale, budget_db, effort, rng)
        return {search: _worst(objective, hr, list(images)) for search, images in searches.items()}

    @abstractmethod
    def _searches(
        self, objective: Objective, hr: Tensor, scale: int, budget_db: float, effort: Effort, rng: torch.Generator
    ) -> dict[str, Iterable[Tensor]]:
        """The LR images that each search tried last, of which the worst count."""


@torch.no_grad()
def _worst(objective: Objective, hr: Tensor, candidates: list[Tensor]) -> Tensor:
    result = SearchResult()
    for lr in candidates:
        result.keep_worst(objective(lr, hr), lr, lr.flatten(1))
    return result.lr


class NetworkAttacker(Attacker):
    """The degradation network F (Sec 3), each image with its own: PGD within the budget, without another ball.

    Args:
        group: "conv", "noise" or "slope" searches this group of parameters alone; None: all.
    """

    def __init__(self, group: str | None = None) -> None:
        self.name = "F" if group is None else f"F:{group}"
        groups = ("conv", "noise", "slope")
        self._radius = _RADIUS_OF_SLOPES if group == "slope" else _RADIUS
        self._factors = ScaleFactors(**{other: math.inf for other in groups if group not in (None, other)})

    def _searches(
        self, objective: Objective, hr: Tensor, scale: int, budget_db: float, effort: Effort, rng: torch.Generator
    ) -> dict[str, Iterable[Tensor]]:
        network = DegradationNetwork(scale, len(hr)).to(hr.device)
        network.reset_identity(tuple(hr.shape[-2:]), rng)
        budget = (budget_db, budget_db)
        radius = self._radius * 10 ** ((_RADIUS_DB - budget_db) / 20)

        def ascend(steps: int, step: float, random_start: float = 0.0) -> Tensor:
            attack = PGD(
                steps=steps, step_size=step, epsilon=math.inf, scale_factors=self._factors, psnr_range=budget,
                random_start=random_start,
            )  # fmt: skip
            return attack(network, hr, objective, rng).lr

        def draw() -> Tensor:
            attack = RandomDeviation(epsilon=_RANDOM_RADIUS, scale_factors=self._factors, psnr_range=budget)
            return attack(network, hr, objective, rng).lr

        # Long steps reach far within the budget, short ones end nearer to a maximum.
        return {
            FOUND: (
                ascend(effort.steps, radius / (4 if start % 2 else 1), 0.5 if start else 0.0)
                for start in range(effort.restarts)
            ),
            SHORT: (ascend(_SHORT_STEPS, radius) for _ in range(1)),
            RANDOM: (draw() for _ in range(_RANDOM_DRAWS)),
        }


class NoiseAttacker(Attacker):
    """Additive noise on the bicubic LR image."""

    name = "noise"

    def _searches(
        self, objective: Objective, hr: Tensor, scale: int, budget_db: float, effort: Effort, rng: torch.Generator
    ) -> dict[str, Iterable[Tensor]]:
        clean = bicubic_downsample(hr, scale)
        network = DegradationNetwork(scale)  # only its scale is used

        def ascend(steps: int, random_start: float = 0.0) -> Tensor:
            attack = AdversarialNoise(steps, (budget_db, budget_db), random_start)
            return attack(network, hr, objective, rng).lr

        def draw() -> Tensor:
            noise = torch.randn(clean.shape, generator=rng, device=hr.device)
            error = noise.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            return (clean + noise / error * 10 ** (-budget_db / 20)).clamp(0, 1)

        return {
            FOUND: (ascend(effort.steps, 0.5 if start else 0.0) for start in range(effort.restarts)),
            SHORT: (ascend(_SHORT_STEPS) for _ in range(1)),
            RANDOM: (draw() for _ in range(_RANDOM_DRAWS)),
        }


class CameraAttacker(Attacker):
    """A camera of a few settings, searched without gradients: an evolution of the worst one found.

    Blur of two widths and a direction, gamma, sharpening, noise and JPEG; the image is what its pixels average. All
    settings but the direction are scaled towards none until the LR image is within its budget.
    """

    name = "camera"
    # Of the settings in `_photograph`, all in [0, 1].
    _COUNT, _DIRECTION = 8, 2
    _HALVINGS = 7

    def _searches(
        self, objective: Objective, hr: Tensor, scale: int, budget_db: float, effort: Effort, rng: torch.Generator
    ) -> dict[str, Iterable[Tensor]]:
        low = (hr.shape[-2] // scale, hr.shape[-1] // scale)
        noise = torch.randn(len(hr), 3, *low, generator=rng, device=hr.device)
        clean = F.avg_pool2d(hr, scale)

        def uniform(*size: int) -> Tensor:
            return torch.rand(*size, generator=rng, device=hr.device)

        def draw() -> Tensor:
            return uniform(len(hr), self._COUNT) * (uniform(len(hr), self._COUNT) < 0.5)

        @torch.no_grad()
        def photograph(settings: Tensor) -> Tensor:
            return self._within(settings, hr, clean, noise, scale, budget_db)

        @torch.no_grad()
        def evolve() -> Iterable[Tensor]:
            result = SearchResult()
            for number in range(effort.generations * effort.population):
                tried = draw()
                if number >= effort.population:  # the first generation is random
                    worst = result.variable
                    moved = worst + 0.25 * torch.randn(worst.shape, generator=rng, device=hr.device)
                    tried = torch.where(uniform(*worst.shape) < 0.4, moved.clamp(0, 1), worst)
                image = photograph(tried)
                result.keep_worst(objective(image, hr), image, tried)
            yield result.lr

        return {
            FOUND: evolve(),
            SHORT: (photograph(draw()) for _ in range(effort.population)),
            RANDOM: (photograph(draw()) for _ in range(_RANDOM_DRAWS)),
        }

    def _within(
        self, settings: Tensor, hr: Tensor, clean: Tensor, noise: Tensor, scale: int, budget_db: float
    ) -> Tensor:
        """The images of cameras whose settings are as large a part of `settings` as the budget allows."""
        lowest, part, result = torch.zeros(len(hr), device=hr.device), torch.ones(len(hr), device=hr.device), clean
        for halving in range(self._HALVINGS):
            image = self._photograph(settings, part, hr, noise, scale)
            allowed = psnr(image, clean) >= budget_db
            lowest, result = torch.where(allowed, part, lowest), torch.where(by_image(allowed, image), image, result)
            width = 0.5 ** (halving + 1)
            part = torch.where(lowest == 1, lowest, torch.where(allowed, part + width, part - width))
        return result

    def _photograph(self, settings: Tensor, part: Tensor, hr: Tensor, noise: Tensor, scale: int) -> Tensor:
        scaled = settings * part[:, None]
        along, across, _, darker, brighter, sharpening, noisy, compressed = scaled.unbind(1)
        radius = min(math.ceil(3 * 1.5 * scale), min(hr.shape[-2:]) - 1)
        size = 2 * radius + 1
        distance = squared_distance(
            size, 1.5 * scale * along, 1.5 * scale * across, math.pi * settings[:, self._DIRECTION]
        )
        kernels = cut(gaussian(distance), torch.full((len(hr),), float(size), device=hr.device))
        lr = F.avg_pool2d(filter_images(hr, kernels), scale).clamp(0, 1)
        lr = lr ** torch.exp(0.5 * (darker - brighter))[:, None, None, None]
        soft = gaussian_blur(lr, torch.ones(len(hr), device=hr.device), largest=1.0)
        lr = lr + 2 * sharpening[:, None, None, None] * (lr - soft)
        lr = (lr + 25 / 255 * noisy[:, None, None, None] * noise).clamp(0, 1)
        files = jpeg(lr, 95 - 85 * compressed)
        # The weakest JPEG is a step, too: halved chroma.
        return torch.where(by_image(compressed > 0.02, lr), files, lr)


ATTACKERS: dict[str, Callable[[], Attacker]] = {
    "F": NetworkAttacker,
    **{f"F:{group}": lambda group=group: NetworkAttacker(group) for group in ("conv", "noise", "slope")},
    "noise": NoiseAttacker,
    "camera": CameraAttacker,
}
"""The adversaries by the names that the command takes."""
