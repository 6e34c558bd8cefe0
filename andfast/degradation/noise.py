"""Sensor noise, each image with its own strength."""

from __future__ import annotations

import torch
from torch import Tensor

from andfast.utils.rng import draw_rows

# Rec. 601: what both OpenCV and torchvision call grey.
_GREY = (0.299, 0.587, 0.114)


def grey_or_colour(sigma: Tensor, grey: Tensor) -> Tensor:
    """The matrix that turns three unit noises into grey noise (the same in all channels) or independent colour noise.

    Args:
        sigma: (B,), standard deviation on the scale of [0, 1].
        grey: (B,) bool.

    Returns:
        (B, 3, 3), for `add_gaussian`.
    """
    colour = torch.eye(3, device=sigma.device)
    one_for_all = torch.zeros_like(colour)
    one_for_all[:, 0] = 1
    return sigma[:, None, None] * torch.where(grey[:, None, None], one_for_all, colour)


def correlated(variances: Tensor, axes: Tensor) -> Tensor:
    """The matrix that turns three unit noises into noise correlated between the channels.

    Args:
        variances: (B, 3), along the axes.
        axes: (B, 3, 3), any three independent columns, which are orthonormalised.

    Returns:
        (B, 3, 3), for `add_gaussian`: A with A A^T = U diag(variances) U^T.
    """
    # Gram and Schmidt: torch.linalg.qr waits for the device.
    basis: list[Tensor] = []
    for vector in axes.unbind(dim=-1):
        for other in basis:
            vector = vector - (vector * other).sum(dim=-1, keepdim=True) * other
        basis.append(vector / vector.norm(dim=-1, keepdim=True).clamp(min=1e-12))
    return torch.stack(basis, dim=-1) * variances.sqrt()[:, None, :]


def add_gaussian(images: Tensor, mixing: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """Add Gaussian noise of covariance A A^T over the channels, white over the pixels, and clamp to [0, 1].

    Args:
        images: (B, 3, H, W) in [0, 1].
        mixing: (B, 3, 3), A.
        rng: on their device; None for torch's own.
    """
    shape, device = images.shape[1:], images.device
    unit = draw_rows(lambda rows: torch.randn(rows, *shape, device=device, generator=rng), len(images), rng)
    return (images + (mixing @ unit.flatten(2)).view_as(images)).clamp(0, 1)


def add_sensor_noise(images: Tensor, sigma: tuple[float, float], rng: torch.Generator | None = None) -> Tensor:
    """Add Gaussian noise of a strength of its own to each image, and clamp to [0, 1].

    It is the same in all channels for 40% of the images, as in Real-ESRGAN, and independent for the others.

    Args:
        images: (B, 3, H, W) in [0, 1].
        sigma: (low, high), the standard deviation in 8-bit units, drawn uniformly.
        rng: on their device; None for torch's own.
    """
    (low, high), device = sigma, images.device
    strength, kind = draw_rows(lambda rows: torch.rand(2, rows, device=device, generator=rng), len(images), rng, dim=1)
    return add_gaussian(images, grey_or_colour((low + (high - low) * strength) / 255, kind < 0.4), rng)


def add_poisson(images: Tensor, strength: Tensor, grey: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """Add shot (Poisson) noise like Real-ESRGAN, and clamp to [0, 1].

    Full brightness is as many counts as the image has 8-bit levels, rounded up to a power of two, and the noise is
    multiplied by `strength`.

    Args:
        images: (B, 3, H, W) in [0, 1].
        strength: (B,).
        grey: (B,) bool, whether all channels have the same noise, that of the brightness.
        rng: on their device; None for torch's own.
    """
    brightness = sum(weight * plane for weight, plane in zip(_GREY, images.split(1, dim=1), strict=True))
    per_image = grey[:, None, None, None]
    light = torch.where(per_image, brightness, images).clamp(0, 1).mul(255).round() / 255
    units = _levels(light)[:, None, None, None]
    noise = torch.poisson(light * units, generator=rng) / units - light
    # For grey noise use the first channel's for all.
    noise = torch.where(per_image, noise[:, :1], noise)
    return (images + strength[:, None, None, None] * noise).clamp(0, 1)


def _levels(light: Tensor) -> Tensor:
    """(B,), the number of different 8-bit levels of each image, rounded up to a power of two."""
    levels = (light * 255).round().long().flatten(1)
    present = torch.zeros(len(light), 256, device=light.device).scatter_(1, levels, 1.0)
    return 2 ** present.sum(dim=1).log2().ceil()
