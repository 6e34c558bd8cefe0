"""HR patches as sharp as cameras' photographs are: most cameras' pixels are finer than what their lenses draw."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.training.randomness import step_generator

# The stream of each step's random numbers; the adversary and `Mixer` have others.
_SOFTEN = 2


def soften(hr: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur each image with a Gaussian of its own; beyond the borders it goes on mirrored at the outermost pixels.

    Args:
        hr: (B, C, H, W).
        sigma: (B,), standard deviations in pixels; 0 leaves an image as it is.
        largest: no sigma is larger; kernels end at four times that, or where a small image does.

    Returns:
        (B, C, H, W), of `hr`'s type.
    """
    radius = min(math.ceil(4 * largest), min(hr.shape[-2:]) - 1)
    offset = torch.arange(-radius, radius + 1, device=hr.device)
    taps = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-2)[:, None]) ** 2)
    taps = (taps / taps.sum(dim=1, keepdim=True)).to(hr.dtype)
    # Images as channels: every one has a kernel of its own.
    blurred = F.pad(hr, (radius,) * 4, mode="reflect").transpose(0, 1)
    blurred = F.conv2d(blurred, taps[:, None, None, :], groups=len(hr))
    return F.conv2d(blurred, taps[:, None, :, None], groups=len(hr)).transpose(0, 1).contiguous()


def soften_patches(hr: Tensor, widths: tuple[float, float], seed: int, step: int) -> Tensor:
    """`soften` by widths drawn uniformly from a range, each step's the same whenever it is made.

    Args:
        hr: (B, C, H, W).
        widths: (low, high), standard deviations in pixels.
        seed: of the run.
        step: from 0.
    """
    low, high = widths
    drawn = torch.rand(len(hr), generator=step_generator(seed, step, torch.device("cpu"), _SOFTEN))
    return soften(hr, (low + (high - low) * drawn).to(hr.device), high)
