"""BSRGAN's degradation: blurs, downsampling, noise and JPEG in a random order (Zhang et al. 2021).

"Designing a Practical Degradation Model for Deep Blind Image Super-Resolution". The numbers are those of its code,
`degradation_bsrgan` in https://github.com/cszn/BSRGAN (utils/utils_blindsr.py), which the names of its functions
below refer to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.degradation.blur_kernels import cut, filter_images, gaussian, squared_distance
from andfast.degradation.chain import MODES, Draws, check_scale, resize
from andfast.degradation.jpeg import jpeg
from andfast.degradation.noise import add_gaussian, correlated, grey_or_colour


@dataclass(frozen=True)
class BSRGANSettings:
    """The published numbers. Where a range grows with the scale s it is given as (value at 0, increase per s).

    Attributes:
        halve_first: probability that images are halved before everything else (at scale 4; `scale2_prob`).
        halve_antialiased: probability that this is done by MATLAB's bicubic filter, else by a plain interpolation.
        anisotropic: probability that a blur is anisotropic (`add_blur`).
        variance: largest variance of an anisotropic blur along its axes, 4 + 1 s pixels^2 (`wd2`).
        sigma: largest standard deviation of an isotropic blur, 2 + 0.2 s pixels (`wd`).
        widths: of the blur kernels, odd numbers in this range.
        resize_down: probability that the first downsampling is an interpolation, to 1 / U(1, 2 s) of the size; else it
            takes every s-th pixel of blurred images.
        strided_sigma: range of that blur's standard deviation in pixels, the upper end times s.
        strided_width: of that blur's kernel.
        noise: range of the noise's standard deviation, whole numbers of 255 (`add_Gaussian_noise`).
        noise_colour, noise_grey: probabilities of independent noise in the channels, and of one for all; else it is
            correlated between them, with variances along random axes of up to the square of the upper end of `noise`.
        jpeg_inside: probability of the JPEG that is shuffled with the rest.
        jpeg_quality: range of both JPEGs' qualities, whole numbers (`add_JPEG_noise`).
    """

    halve_first: float = 0.25
    halve_antialiased: float = 0.5
    anisotropic: float = 0.5
    variance: tuple[float, float] = (4.0, 1.0)
    sigma: tuple[float, float] = (2.0, 0.2)
    widths: tuple[int, int] = (7, 25)
    resize_down: float = 0.75
    strided_sigma: tuple[float, float] = (0.1, 0.6)
    strided_width: int = 25
    noise: tuple[int, int] = (2, 25)
    noise_colour: float = 0.4
    noise_grey: float = 0.4
    jpeg_inside: float = 0.9
    jpeg_quality: tuple[int, int] = (30, 95)


@torch.no_grad()
def bsrgan(
    hr: Tensor, scale: int, rng: torch.Generator | None = None, settings: BSRGANSettings | None = None
) -> Tensor:
    """Degrade like BSRGAN, without the sensor's processing (its ISP model is a set of trained networks).

    Two blurs, two downsamplings, noise and JPEG are shuffled, the second downsampling after the first; a last JPEG
    follows. The order, the sizes and the interpolations are drawn once for the batch, everything else for each image.
    Correlated noise has the intended covariance; the published code takes the absolute values of its entries, which
    need not be a covariance.

    Args:
        hr: (B, 3, H, W) in [0, 1], H and W multiples of `scale`, else a ValueError is raised.
        scale: any whole number from 1 up; 1 repairs the size that the first downsampling changed.
        rng: on hr's device; None for torch's own.
        settings: None for the published ones.

    Returns:
        (B, 3, H / scale, W / scale) float32 in [0, 1], multiples of 1/255, without gradients.
    """
    check_scale(hr, scale)
    chain = _Chain(hr, scale, Draws(len(hr), hr.device, rng), settings or BSRGANSettings())
    return chain.run()


class _Chain:
    """The images between the stages."""

    def __init__(self, hr: Tensor, scale: int, draws: Draws, settings: BSRGANSettings) -> None:
        self.images, self.draws, self.settings = hr.float(), draws, settings
        self.size = (hr.shape[2] // scale, hr.shape[3] // scale)
        # The factor that is left.
        self.scale = scale

    def run(self) -> Tensor:
        host = self.draws.host
        if self.scale == 4 and host.random() < self.settings.halve_first:
            self._halve()
        stages = [self._blur, self._blur, self._shrink, self._to_size, self._noise, self._jpeg_inside]
        host.shuffle(stages)
        first, second = sorted((stages.index(self._shrink), stages.index(self._to_size)))
        stages[first], stages[second] = self._shrink, self._to_size
        for stage in stages:
            stage()
        return self._jpeg()

    def _halve(self) -> None:
        height, width = self.images.shape[2:]
        size = (height // 2, width // 2)
        if self.draws.host.random() < self.settings.halve_antialiased:
            images = F.interpolate(self.images, size=size, mode="bicubic", antialias=True)
        else:
            images = self._resized(size)
        self.images, self.scale = images.clamp(0, 1), 2

    def _blur(self) -> None:
        draws, settings = self.draws, self.settings
        variance, sigma = (start + per_scale * self.scale for start, per_scale in (settings.variance, settings.sigma))
        anisotropic = draws.chance(settings.anisotropic)
        along, across = draws.uniform(0, variance).sqrt(), draws.uniform(0, variance).sqrt()
        alike = draws.uniform(0, sigma)
        low, high = settings.widths
        squared = squared_distance(
            high,
            torch.where(anisotropic, along, alike),
            torch.where(anisotropic, across, alike),
            draws.uniform(0, torch.pi),
        )
        widths = low + 2 * draws.integers(0, (high - low) // 2)
        self.images = filter_images(self.images, cut(gaussian(squared), widths))

    def _shrink(self) -> None:
        """The first downsampling, to any size."""
        draws, settings, scale = self.draws, self.settings, self.scale
        if draws.host.random() < settings.resize_down:
            factor = draws.host.uniform(1, 2 * scale)
            height, width = self.images.shape[2:]
            images = self._resized((int(height / factor), int(width / factor)))
        else:
            low, high = settings.strided_sigma
            sigma = draws.uniform(low, high * scale)
            # Centred between the pixels that a pixel stands for, of which the first is the one taken.
            squared = squared_distance(settings.strided_width, sigma, sigma, centre=(scale - 1) / 2)
            kernels = gaussian(squared)
            kernels = kernels / kernels.sum(dim=(1, 2), keepdim=True)
            images = filter_images(self.images, kernels)[:, :, ::scale, ::scale]
        self.images = images.clamp(0, 1)

    def _to_size(self) -> None:
        """The second downsampling, to the size of the LR image (from a smaller one it is an upsampling)."""
        self.images = self._resized(self.size).clamp(0, 1)

    def _resized(self, size: tuple[int, int]) -> Tensor:
        return resize(self.images, size, self.draws.host.choice(MODES))

    def _noise(self) -> None:
        draws, settings = self.draws, self.settings
        low, high = settings.noise
        sigma = draws.integers(low, high) / 255
        kind = draws.uniform(0, 1)
        plain = grey_or_colour(sigma, grey=kind < settings.noise_grey)
        variances = torch.stack([draws.uniform(0, (high / 255) ** 2) for _ in range(3)], dim=1)
        axes = torch.stack([draws.uniform(0, 1) for _ in range(9)], dim=1).unflatten(1, (3, 3))
        is_plain = kind < settings.noise_grey + settings.noise_colour
        mixing = torch.where(is_plain[:, None, None], plain, correlated(variances, axes))
        self.images = add_gaussian(self.images, mixing, draws.rng)

    def _jpeg(self) -> Tensor:
        return jpeg(self.images, self.draws.integers(*self.settings.jpeg_quality))

    def _jpeg_inside(self) -> None:
        chosen = self.draws.chance(self.settings.jpeg_inside)
        self.images = torch.where(chosen[:, None, None, None], self._jpeg(), self.images)
