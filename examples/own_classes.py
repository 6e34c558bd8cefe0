"""A network, a loss and a degradation of one's own for `python -m andfast.train`, as docs/guide.md uses them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from andfast.attack import Simulated


class Residual(nn.Module):
    """A few convolutions that correct bilinear interpolation. `scale` comes from the setting of that name.

    Args:
        scale: the factor.
        features, depth: from `generator.options`.
    """

    def __init__(self, scale: int, features: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = [nn.Conv2d(3, features, 3, padding=1), nn.GELU()]
        for _ in range(depth):
            layers += [nn.Conv2d(features, features, 3, padding=1), nn.GELU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(features, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.scale, mode="bilinear", antialias=False) + self.body(x)


class Gradients:
    """The L1 distance of differences between neighbouring pixels, for each image."""

    def __call__(self, restored: Tensor, hr: Tensor) -> Tensor:
        error = restored - hr
        return sum(error.diff(dim=dim).abs().mean(dim=(1, 2, 3)) for dim in (2, 3))


class Dusk(Simulated):
    """Dark, noisy images, without an adversary.

    Args:
        strength: the standard deviation of the noise, from `attack.options`.
    """

    def __init__(self, strength: float = 0.05) -> None:
        self.strength = strength

    def degrade(self, hr: Tensor, scale: int, rng: torch.Generator | None = None) -> Tensor:
        lr = F.avg_pool2d(hr, scale) / 2
        return (lr + self.strength * torch.randn(lr.shape, generator=rng, device=lr.device)).clamp(0, 1)
