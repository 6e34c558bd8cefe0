"""Blur kernels, one an image, and filtering with them.

Gaussian kernels, two generalisations with sharper or flatter tops, and the ideal low-pass: the families of Real-ESRGAN
(Wang et al. 2021, Sec 3.1 and 3.3), whose generalised ones are from Liu et al. 2020, "Estimating Generalized Gaussian
Blur Kernels for Out-of-Focus Image Deblurring".
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Below it a Gaussian's weight beside the centre underflows in float32; exactly 0 would divide by zero.
_LEAST_SIGMA = 0.01


def squared_distance(
    size: int, sigma_x: Tensor, sigma_y: Tensor, angle: Tensor | None = None, centre: float = 0.0
) -> Tensor:
    """Squared distance of the taps from the centre, in standard deviations: (B, size, size) float32.

    Args:
        size: of the kernels, odd.
        sigma_x, sigma_y: (B,), standard deviations in pixels along the two axes.
        angle: (B,), of these axes to the image's, in radians; None: 0.
        centre: of the kernel, in pixels right of and below the middle tap.
    """
    y, x = _offsets(size, sigma_x.device, centre)
    cos, sin = (1.0, 0.0) if angle is None else (angle.cos()[:, None, None], angle.sin()[:, None, None])
    sigma_x, sigma_y = (sigma.clamp(min=_LEAST_SIGMA)[:, None, None] for sigma in (sigma_x, sigma_y))
    return ((cos * x + sin * y) / sigma_x) ** 2 + ((cos * y - sin * x) / sigma_y) ** 2


def gaussian(squared: Tensor, beta: Tensor | None = None) -> Tensor:
    """exp(-d^(2 beta) / 2), d^2 from `squared_distance`: Gaussian for beta 1 (None), sharper below, flatter above."""
    return torch.exp(-0.5 * (squared if beta is None else squared ** beta[:, None, None]))


def plateau(squared: Tensor, beta: Tensor) -> Tensor:
    """1 / (1 + d^(2 beta)), as `gaussian`: a flat top with long flanks."""
    return 1 / (1 + squared ** beta[:, None, None])


def sinc(size: int, cutoff: Tensor) -> Tensor:
    """The ideal low-pass in two dimensions, which rings: w J1(w r) / (2 pi r), (B, size, size).

    `cutoff` is w, (B,), in radians a pixel; pi is the highest frequency along the axes.
    """
    y, x = _offsets(size, cutoff.device)
    radius = (x**2 + y**2).sqrt()
    cutoff = cutoff[:, None, None]
    at_centre = cutoff**2 / (4 * math.pi)
    ring = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius.clamp(min=1))
    return torch.where(radius == 0, at_centre, ring)


def cut(kernels: Tensor, widths: Tensor) -> Tensor:
    """Zero the kernels (B, k, k) outside their widths (B,), odd numbers, and normalise their sums to 1."""
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


def filter_images(images: Tensor, kernels: Tensor) -> Tensor:
    """Filter each image (B, C, H, W) with its own kernel (B, k, k); borders are mirrored at the outermost pixels.

    Equivalent to `scipy.ndimage.correlate(image, kernel, mode="mirror")` for each image and channel.

    Raises:
        ValueError: the shapes do not fit, or k is even.
    """
    if kernels.ndim != 3 or len(kernels) != len(images) or kernels.shape[1] != kernels.shape[2]:
        raise ValueError(f"kernels have shape {tuple(kernels.shape)}; wanted (B, k, k) with B = {len(images)}")
    if kernels.shape[-1] % 2 == 0:
        raise ValueError(f"kernels are {kernels.shape[-1]} wide; they need a middle tap, so an odd width")
    channels, (height, width) = images.shape[1], images.shape[2:]
    margin = kernels.shape[-1] // 2
    rows, columns = _mirrored(height, margin, images.device), _mirrored(width, margin, images.device)
    padded = images[:, :, rows[:, None], columns]
    weight = kernels.to(images.dtype).repeat_interleave(channels, dim=0)[:, None]
    return F.conv2d(padded.flatten(0, 1)[None], weight, groups=len(weight))[0].unflatten(0, (-1, channels))


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur each image (B, C, H, W) with its own Gaussian; borders are mirrored at the outermost pixels.

    Args:
        sigma: (B,), standard deviations in pixels; 0 leaves an image unchanged.
        largest: an upper bound of sigma; kernels end at four times that, or at the size of a small image.
    """
    radius = min(math.ceil(4 * largest), min(images.shape[-2:]) - 1)
    offset = torch.arange(-radius, radius + 1, device=images.device)
    taps = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-2)[:, None]) ** 2)
    taps = (taps / taps.sum(dim=1, keepdim=True)).to(images.dtype)
    # Images as channels, because each has its own kernel.
    blurred = F.pad(images, (radius,) * 4, mode="reflect").transpose(0, 1)
    blurred = F.conv2d(blurred, taps[:, None, None, :], groups=len(images))
    return F.conv2d(blurred, taps[:, None, :, None], groups=len(images)).transpose(0, 1).contiguous()


def _mirrored(length: int, margin: int, device: torch.device) -> Tensor:
    """Indices of a side with mirrored margins; `F.pad` mirrors only once, which is not enough for small images."""
    period = max(2 * (length - 1), 1)
    index = torch.arange(-margin, length + margin, device=device) % period
    return torch.minimum(index, period - index) if length > 1 else torch.zeros_like(index)
