"""PSNR, plain and in the super-resolution field's usual form: on Y, 8 bits, borders cut off."""

from __future__ import annotations

import torch
from torch import Tensor

SSIM_WINDOW = 11
"""Height and width of SSIM's window, in pixels."""

_WINDOW_SIGMA = 1.5


def to_y(rgb: Tensor) -> Tensor:
    """Luma of `rgb`, (..., 3, H, W) in [0, 1], by ITU-R BT.601 as in MATLAB's `rgb2ycbcr`: in [16, 235], not rounded.

    The luma of YIQ over the full range (0.299 R + 0.587 G + 0.114 B) gives a PSNR smaller by 20 log10(255 / 219) =
    1.32 dB.
    """
    red, green, blue = rgb.unbind(-3)
    return 65.481 * red + 128.553 * green + 24.966 * blue + 16


def psnr_y(a: Tensor, b: Tensor, border: int) -> Tensor:
    """PSNR in dB between the Y channels of two images as they would be saved: clamped and rounded to 8 bits.

    Args:
        a, b: float tensors (3, H, W) or (B, 3, H, W), RGB in [0, 1].
        border: pixels to cut off each side first; usually the scale factor.

    Returns:
        float64 tensor, (B,) or () for a single image; inf where the images are identical.

    Raises:
        TypeError: a tensor is not of a floating-point type.
        ValueError: the shapes differ or are not images, or the border leaves nothing.
    """
    _check(a, b)
    inside = _inside(a, border)
    difference = to_y(_eight_bits(a[inside])) - to_y(_eight_bits(b[inside]))
    return _decibels(difference.square().mean(dim=(-2, -1)), peak=255.0)


def ssim_y(a: Tensor, b: Tensor, border: int) -> Tensor:
    """SSIM between the Y channels of two images as they would be saved: clamped and rounded to 8 bits.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004): windows of
    11 x 11 pixels weighted by a Gaussian of sigma 1.5, all inside the image; K1 0.01, K2 0.03, a range of 255.

    Args:
        a, b, border: as for `psnr_y`; the border must leave a window.

    Returns:
        float64 tensor, (B,) or () for a single image, at most 1; 1 where the images are identical.

    Raises:
        TypeError, ValueError: as for `psnr_y`.
    """
    _check(a, b)
    a, b = (to_y(_eight_bits(image[_inside(image, border, least=SSIM_WINDOW)])) for image in (a, b))
    mean_a, mean_b, square_a, square_b, product = _windowed(torch.stack([a, b, a * a, b * b, a * b]))
    variances = square_a - mean_a.square() + square_b - mean_b.square()
    covariance = product - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean(dim=(-2, -1))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB over all pixels of images (C, H, W) or (B, C, H, W), for a peak of 1, without rounding or clamping.

    Results and errors are those of `psnr_y`; `a` and `b` may have any number of channels.
    """
    _check(a, b, channels=None)
    return _decibels((a.double() - b.double()).square().mean(dim=(-3, -2, -1)), peak=1.0)


def _inside(image: Tensor, border: int, least: int = 1) -> tuple:
    """The index of all but the border, which must leave `least` pixels of height and width."""
    height, width = image.shape[-2:]
    if border < 0 or min(height, width) - 2 * border < least:
        left = "nothing" if least == 1 else f"less than {least} x {least}"
        raise ValueError(f"a border of {border} leaves {left} of {height} x {width} pixels")
    return ..., slice(border, height - border), slice(border, width - border)


def _windowed(maps: Tensor) -> Tensor:
    """Gaussian means over all whole windows: (..., H, W) -> (..., H - 10, W - 10)."""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / _WINDOW_SIGMA).square())
    taps = (weights / weights.sum()).tolist()
    for dim in (-2, -1):
        count = maps.shape[dim] - SSIM_WINDOW + 1
        means = taps[0] * maps.narrow(dim, 0, count)
        for offset, tap in enumerate(taps[1:], start=1):
            means.add_(maps.narrow(dim, offset, count), alpha=tap)
        maps = means
    return maps


def _eight_bits(image: Tensor) -> Tensor:
    return (image.double().clamp(0, 1) * 255).round() / 255


def _decibels(mean_square: Tensor, peak: float) -> Tensor:
    return 10 * torch.log10(peak**2 / mean_square)


def _check(a: Tensor, b: Tensor, channels: int | None = 3) -> None:
    if not (a.is_floating_point() and b.is_floating_point()):
        raise TypeError(f"images are floating-point tensors, not {a.dtype} and {b.dtype}")
    if a.shape != b.shape or a.ndim not in (3, 4) or channels not in (None, a.shape[-3]):
        raise ValueError(
            f"wanted two images of one shape, (C, H, W) or (B, C, H, W), not {tuple(a.shape)} and {tuple(b.shape)}"
        )
