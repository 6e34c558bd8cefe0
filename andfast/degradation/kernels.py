"""Blur kernels, one an image: Gaussian ones, two generalisations with sharper or flatter tops, and the ideal low-pass.

The families of Real-ESRGAN (Wang et al. 2021, Sec 3.1 and 3.3), whose generalised ones are from Liu et al. 2020,
"Estimating Generalized Gaussian Blur Kernels for Out-of-Focus Image Deblurring".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Below it a Gaussian's weight beside the centre is no float32; exactly 0 would divide by zero.
_LEAST_SIGMA = 0.01


def squared_distance(
    size: int, sigma_x: Tensor, sigma_y: Tensor, angle: Tensor | None = None, centre: float = 0.0
) -> Tensor:
    """Squared distance of the taps from the centre, in standard deviations: what all Gaussian families are made of.

    Args:
        size: of the kernels, odd.
        sigma_x, sigma_y: (B,), standard deviations in pixels along the two axes.
        angle: (B,), how far these axes are turned from the image's, in radians; None: not.
        centre: where the middle lies, in pixels right of and below the middle tap.

    Returns:
        (B, size, size) float32.
    """
    y, x = _offsets(size, sigma_x.device, centre)
    cos, sin = (1.0, 0.0) if angle is None else (angle.cos()[:, None, None], angle.sin()[:, None, None])
    sigma_x, sigma_y = (sigma.clamp(min=_LEAST_SIGMA)[:, None, None] for sigma in (sigma_x, sigma_y))
    return ((cos * x + sin * y) / sigma_x) ** 2 + ((cos * y - sin * x) / sigma_y) ** 2


def gaussian(squared: Tensor, beta: Tensor | None = None) -> Tensor:
    """exp(-d^(2 beta) / 2) with d^2 from `squared_distance`: Gaussian for beta 1, sharper below, flatter above.

    Args:
        squared: (B, k, k).
        beta: (B,); None: 1.
    """
    return torch.exp(-0.5 * (squared if beta is None else squared ** beta[:, None, None]))


def plateau(squared: Tensor, beta: Tensor) -> Tensor:
    """1 / (1 + d^(2 beta)) with d^2 from `squared_distance`: a flat top with long flanks. Arguments as `gaussian`."""
    return 1 / (1 + squared ** beta[:, None, None])


def sinc(size: int, cutoff: Tensor) -> Tensor:
    """The ideal low-pass in two dimensions, which rings: w J1(w r) / (2 pi r).

    Args:
        size: of the kernels, odd.
        cutoff: (B,), w in radians a pixel; pi is the highest frequency along the axes.
    """
    y, x = _offsets(size, cutoff.device)
    radius = (x**2 + y**2).sqrt()
    cutoff = cutoff[:, None, None]
    at_centre = cutoff**2 / (4 * math.pi)
    ring = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius.clamp(min=1))
    return torch.where(radius == 0, at_centre, ring)


def cut(kernels: Tensor, widths: Tensor) -> Tensor:
    """The kernels (B, k, k) without what lies outside their own widths (B,), odd numbers; weights then sum to 1."""
    y, x = _offsets(kernels.shape[-1], kernels.device)
    inside = torch.maximum(x.abs(), y.abs()) <= (widths[:, None, None] - 1) / 2
    kernels = kernels * inside
    return kernels / kernels.sum(dim=(1, 2), keepdim=True)


def _offsets(size: int, device: torch.device, centre: float = 0.0) -> tuple[Tensor, Tensor]:
    """Rows and columns of the taps, from the centre: (size, 1) and (1, size)."""
    if size % 2 == 0:
        raise ValueError(f"size is {size}; a kernel has a middle tap, so it must be odd")
    along = torch.arange(size, device=device) - (size // 2 + centre)
    return along[:, None], along[None, :]
