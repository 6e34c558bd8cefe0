"""Measures of how a degraded LR image differs from the clean one, to compare cameras and adversaries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from andfast.attack.base import bicubic_downsample
from andfast.metrics import psnr
from andfast.ops.blur_pool import blur_pool
from studies.camera_kernels import Kernel, KernelFit, inside

FREQUENCIES = tuple(index / 8 for index in range(9))

#: Rings that a spectrum is divided into.
BANDS = 8


@dataclass(frozen=True)
class Measures:
    """Measures of an LR image or crop.

    The clean LR image is the pooled HR image. "Difference" means: LR image - clean LR image; "residual": LR image - the
    result of the linear kernel that explains it best.

    Attributes:
        psnr: of the LR image to the clean one, dB.
        psnr_bicubic: of the LR image to the bicubic-downsampled HR image, dB.
        dc_share: the share of the squared difference that is the colours' means.
        spectrum: the rest of the squared difference in `BANDS` rings of equal width up to Nyquist, summing to one.
        gain, offset: of the kernel.
        shift: length of the kernel's shift in HR pixels.
        width: the kernel's standard deviation in HR pixels, the mean of both axes.
        response: the kernel's contrast at `FREQUENCIES`, in units of the LR image's Nyquist frequency.
        response_half, response_full: the kernel's contrast at half of Nyquist, and at Nyquist.
        residual_psnr: of the LR image to the kernel's result, dB.
        tone_share: the share of the squared residual that a cubic tone curve for each colour explains.
        neighbour_correlation: of the residual, lag one, the mean of both axes.
        colour_correlation: of the residual, the mean of the three pairs of colours.
        level_correlation: of the residual's size with the clean image's level.
        gradient_correlation: of the residual's size with the size of the clean image's gradient.
        flat_noise: standard deviation of the residual in the quarter of pixels with the least gradient, in 8-bit units.
    """

    psnr: float
    psnr_bicubic: float
    dc_share: float
    spectrum: tuple[float, ...]
    gain: float
    offset: float
    shift: float
    width: float
    response: tuple[float, ...]
    response_half: float
    response_full: float
    residual_psnr: float
    tone_share: float
    neighbour_correlation: float
    colour_correlation: float
    level_correlation: float
    gradient_correlation: float
    flat_noise: float


def measure(hr: Tensor, lr: Tensor, kernel: Kernel | None = None) -> Measures:
    """Measure an LR image.

    Args:
        hr: (3, H, W) in [0, 1].
        lr: (3, H/s, W/s) in [0, 1].
        kernel: for the residual; None: the image's own.

    Raises:
        ValueError: the sizes do not fit, the LR image is the clean one, or it has no contrast.
    """
    hr, lr = hr.double(), lr.double()
    scale = hr.shape[-1] // lr.shape[-1]
    clean = blur_pool(hr[None], scale)[0]
    if torch.equal(clean, lr):
        raise ValueError("the LR image is the clean one: there is no difference to measure")
    if kernel is None:
        fit = KernelFit(scale)
        fit.add(hr, lr)
        kernel = fit.solve()
    explained = kernel(hr)
    residual = inside(lr, scale) - explained
    size = residual.abs().mean(0)
    cut = inside(clean, scale)
    gradient = gradient_size(cut)
    flat = gradient <= gradient.quantile(0.25)
    return Measures(
        psnr=psnr(lr, clean).item(),
        psnr_bicubic=psnr(lr, bicubic_downsample(hr[None], scale)[0]).item(),
        dc_share=dc_share(lr - clean),
        spectrum=tuple(spectrum(lr - clean).tolist()),
        gain=kernel.gain,
        offset=kernel.offset,
        shift=sum(each**2 for each in kernel.shift) ** 0.5,
        width=sum(kernel.width) / 2,
        response=tuple(kernel.response(frequency) for frequency in FREQUENCIES),
        response_half=kernel.response(0.5),
        response_full=kernel.response(1.0),
        residual_psnr=psnr(inside(lr, scale), explained).item(),
        tone_share=tone_share(residual, explained),
        neighbour_correlation=neighbour_correlation(residual),
        colour_correlation=colour_correlation(residual),
        level_correlation=correlation(size, cut.mean(0)),
        gradient_correlation=correlation(size, gradient),
        flat_noise=255 * residual[:, flat].std(dim=1, correction=0).square().mean().sqrt().item(),
    )


def gradient_size(image: Tensor) -> Tensor:
    """(C, h, w) -> (h, w): the gradient's length in the mean of the colours, by central differences."""
    rows, columns = torch.gradient(image.mean(0))
    return (rows**2 + columns**2).sqrt()


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation over all values; 0 if one of the two is constant."""
    a, b = a.flatten() - a.mean(), b.flatten() - b.mean()
    norm = (a.norm() * b.norm()).item()
    return (a @ b).item() / norm if norm > 0 else 0.0


def neighbour_correlation(noise: Tensor) -> float:
    """(C, h, w): the correlation of each pixel with the next one, the mean of both axes, without the colours' means."""
    noise = noise - noise.mean(dim=(1, 2), keepdim=True)
    return (correlation(noise[:, :, 1:], noise[:, :, :-1]) + correlation(noise[:, 1:], noise[:, :-1])) / 2


def colour_correlation(noise: Tensor) -> float:
    """(3, h, w): the mean correlation of the three pairs of colours."""
    return sum(correlation(noise[a], noise[b]) for a, b in ((0, 1), (0, 2), (1, 2))) / 3


def tone_share(residual: Tensor, level: Tensor) -> float:
    """(C, h, w) each: the share of the squared residual that a cubic of the level, one for each colour, explains."""
    left = 0.0
    for values, levels in zip(residual.flatten(1), level.flatten(1), strict=True):
        powers = torch.stack([levels**power for power in range(4)], dim=1)
        fitted = powers @ torch.linalg.lstsq(powers, values[:, None], driver="gelsd").solution
        left += (values - fitted[:, 0]).square().sum().item()
    return 1 - left / residual.square().sum().item()


def dc_share(difference: Tensor) -> float:
    """(C, h, w): the share of the sum of squares that is due to the colours' means."""
    return (difference.mean(dim=(1, 2)).square().sum() / difference.square().mean(dim=(1, 2)).sum()).item()


def spectrum(difference: Tensor, bands: int = BANDS) -> Tensor:
    """(C, h, w) -> (bands,): the power without the mean, in rings of equal width up to Nyquist; shares that sum to one.

    A Hann window prevents high frequencies from differences between opposite borders. Frequencies beyond Nyquist, in
    the corners, are ignored.
    """
    height, width = difference.shape[1:]
    rows, columns = (torch.hann_window(size, periodic=False).to(difference) for size in (height, width))
    centred = difference - difference.mean(dim=(1, 2), keepdim=True)
    power = torch.fft.fft2(centred * torch.outer(rows, columns)).abs().square().sum(0)
    y, x = torch.meshgrid(torch.fft.fftfreq(height), torch.fft.fftfreq(width), indexing="ij")
    radius = (x**2 + y**2).sqrt() / 0.5
    ring = (radius * bands).long()
    # The middle is the mean, which the window spreads within the first ring.
    kept = (ring < bands) & (radius > 0)
    shares = torch.zeros(bands).to(power).index_add_(0, ring[kept], power[kept])
    return shares / shares.sum()
