"""A kernel for each image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def filter_images(images: Tensor, kernels: Tensor) -> Tensor:
    """Filter every image with a kernel of its own; beyond the borders it goes on mirrored at the outermost pixels.

    Equivalent to `scipy.ndimage.correlate(image, kernel, mode="mirror")` for each image and channel.

    Args:
        images: (B, C, H, W), however small.
        kernels: (B, k, k), k odd.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: the shapes do not fit.
    """
    if kernels.ndim != 3 or len(kernels) != len(images) or kernels.shape[1] != kernels.shape[2]:
        raise ValueError(f"kernels have shape {tuple(kernels.shape)}; for {len(images)} images wanted (B, k, k)")
    if kernels.shape[-1] % 2 == 0:
        raise ValueError(f"kernels are {kernels.shape[-1]} wide; they need a middle tap, so an odd width")
    channels, (height, width) = images.shape[1], images.shape[2:]
    margin = kernels.shape[-1] // 2
    rows, columns = _mirrored(height, margin, images.device), _mirrored(width, margin, images.device)
    padded = images[:, :, rows[:, None], columns]
    weight = kernels.to(images.dtype).repeat_interleave(channels, dim=0)[:, None]
    return F.conv2d(padded.flatten(0, 1)[None], weight, groups=len(weight))[0].unflatten(0, (-1, channels))


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur each image with a Gaussian of its own; beyond the borders it goes on mirrored at the outermost pixels.

    Args:
        images: (B, C, H, W).
        sigma: (B,), standard deviations in pixels; 0 leaves an image as it is.
        largest: no sigma is larger; kernels end at four times that, or where a small image does.

    Returns:
        (B, C, H, W), of `images`'s type.
    """
    radius = min(math.ceil(4 * largest), min(images.shape[-2:]) - 1)
    offset = torch.arange(-radius, radius + 1, device=images.device)
    taps = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-2)[:, None]) ** 2)
    taps = (taps / taps.sum(dim=1, keepdim=True)).to(images.dtype)
    # Images as channels: every one has a kernel of its own.
    blurred = F.pad(images, (radius,) * 4, mode="reflect").transpose(0, 1)
    blurred = F.conv2d(blurred, taps[:, None, None, :], groups=len(images))
    return F.conv2d(blurred, taps[:, None, :, None], groups=len(images)).transpose(0, 1).contiguous()


def _mirrored(length: int, margin: int, device: torch.device) -> Tensor:
    """Indices of a side with margins on both ends. `F.pad` mirrors once only, which small images are too small for."""
    period = max(2 * (length - 1), 1)
    index = torch.arange(-margin, length + margin, device=device) % period
    return torch.minimum(index, period - index) if length > 1 else torch.zeros_like(index)
