"""Real-ESRGAN's degradation: blur, resizing, noise and JPEG, twice, and ringing at last (Wang et al. 2021).

"Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data". The numbers are those of
options/train_realesrnet_x4plus.yml in https://github.com/xinntao/Real-ESRGAN; what it leaves open is in its
realesrgan/data/realesrgan_dataset.py and realesrgan/models/realesrnet_model.py, and in basicsr/data/degradations.py of
https://github.com/XPixelGroup/BasicSR, which it draws from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from andfast.degradation.blur_kernels import cut, filter_images, gaussian, plateau, sinc, squared_distance
from andfast.degradation.chain import MODES, Draws, check_scale, resize
from andfast.degradation.jpeg import jpeg
from andfast.degradation.noise import add_gaussian, add_poisson, grey_or_colour

_SIZE = 21  # of all kernels, around which narrower ones have zeros (`blur_kernel_size`)
_WIDTHS = (7, 21)  # odd numbers in this range (`kernel_range`)


@dataclass(frozen=True)
class OrderSettings:
    """One of the two rounds of degradation, by default the first. Names in brackets are the options'.

    Attributes:
        blur: probability that the round begins with a blur, for the whole batch (1; `second_blur_prob`).
        ringing: probability that a blur kernel is a sinc (`sinc_prob`).
        isotropic, generalised_isotropic, plateau_isotropic: probabilities of the families of the other kernels, and
            `anisotropic` and so on of their anisotropic kinds (`kernel_prob`).
        sigma: range of the standard deviations along the axes, in pixels (`blur_sigma`).
        generalised_beta, plateau_beta: ranges of the exponents, half of them below 1 (`betag_range`, `betap_range`).
        enlarge, shrink: probabilities of resizing up and down (`resize_prob`).
        resize: range of the factor; up from 1, down to 1 (`resize_range`).
        gaussian: probability of Gaussian noise, else it is shot noise (`gaussian_noise_prob`).
        noise: range of the Gaussian noise's standard deviation, of 255 (`noise_range`).
        shot: range of the factor on shot noise (`poisson_scale_range`).
        grey: probability that noise is the same in all channels (`gray_noise_prob`).
        jpeg_quality: range (`jpeg_range`).
    """

    blur: float = 1.0
    ringing: float = 0.1
    isotropic: float = 0.45
    anisotropic: float = 0.25
    generalised_isotropic: float = 0.12
    generalised_anisotropic: float = 0.03
    plateau_isotropic: float = 0.12
    plateau_anisotropic: float = 0.03
    sigma: tuple[float, float] = (0.2, 3.0)
    generalised_beta: tuple[float, float] = (0.5, 4.0)
    plateau_beta: tuple[float, float] = (1.0, 2.0)
    enlarge: float = 0.2
    shrink: float = 0.7
    resize: tuple[float, float] = (0.15, 1.5)
    gaussian: float = 0.5
    noise: tuple[float, float] = (1.0, 30.0)
    shot: tuple[float, float] = (0.05, 3.0)
    grey: float = 0.4
    jpeg_quality: tuple[float, float] = (30.0, 95.0)


# What differs in the second round (`blur_sigma2`, `resize_prob2` and so on).
_SECOND = OrderSettings(
    blur=0.8, sigma=(0.2, 1.5), enlarge=0.3, shrink=0.4, resize=(0.3, 1.2), noise=(1.0, 25.0), shot=(0.05, 2.5)
)


@dataclass(frozen=True)
class RealESRGANSettings:
    """The published numbers.

    Attributes:
        first, second: the two rounds.
        final_ringing: probability of a sinc filter at the end (`final_sinc_prob`).
        final_jpeg_last: probability that the last JPEG comes after it, else before.
        ringing_cutoff: least cutoff of a blur's sinc narrower than 13 pixels and of the final one, and least cutoff of
            wider blurs' ones, in radians a pixel; the largest is pi.
    """

    first: OrderSettings = field(default_factory=OrderSettings)
    second: OrderSettings = _SECOND
    final_ringing: float = 0.8
    final_jpeg_last: float = 0.5
    ringing_cutoff: tuple[float, float] = (math.pi / 3, math.pi / 5)


@torch.no_grad()
def real_esrgan(
    hr: Tensor, scale: int, rng: torch.Generator | None = None, settings: RealESRGANSettings | None = None
) -> Tensor:
    """Degrade like Real-ESRGAN, without sharpening the HR images first (its `gt_usm`) and without its pool of batches.

    As there, the sizes, the kind of noise, the second blur and the order at the end are drawn once for the batch,
    everything else for each image.

    Args:
        hr, scale, rng, settings: as for `bsrgan`.

    Returns:
        (B, 3, H / scale, W / scale) float32 in [0, 1], multiples of 1/255, without gradients.
    """
    check_scale(hr, scale)
    settings = settings or RealESRGANSettings()
    draws = Draws(len(hr), hr.device, rng)
    host, (height, width) = draws.host, hr.shape[2:]
    images = hr.float()

    images = _blurred(images, settings.first, settings.ringing_cutoff, draws)
    factor = _resize_factor(settings.first, draws)
    images = resize(images, (int(height * factor), int(width * factor)), host.choice(MODES))
    images = _noisy(images, settings.first, draws)
    images = jpeg(images, draws.uniform(*settings.first.jpeg_quality))

    images = _blurred(images, settings.second, settings.ringing_cutoff, draws)
    factor = _resize_factor(settings.second, draws)
    images = resize(images, (int(height / scale * factor), int(width / scale * factor)), host.choice(MODES))
    images = _noisy(images, settings.second, draws)

    def ringing(images: Tensor) -> Tensor:
        images = resize(images, (height // scale, width // scale), host.choice(MODES))
        return filter_images(images, _final_kernels(settings, draws)).clamp(0, 1)

    quality = draws.uniform(*settings.second.jpeg_quality)
    if host.random() < settings.final_jpeg_last:
        return jpeg(ringing(images), quality)
    return ringing(jpeg(images, quality)).mul(255).round() / 255


def _blurred(images: Tensor, settings: OrderSettings, cutoffs: tuple[float, float], draws: Draws) -> Tensor:
    if draws.host.random() >= settings.blur:
        return images
    return filter_images(images, _blur_kernels(settings, cutoffs, draws))


def _blur_kernels(settings: OrderSettings, cutoffs: tuple[float, float], draws: Draws) -> Tensor:
    """A kernel for each image, (B, 21, 21): all families are computed, at a negligible cost, and one is chosen."""
    widths = _widths(draws)
    family = draws.uniform(0, 1)
    bounds = accumulate(
        (
            settings.isotropic,
            settings.generalised_isotropic,
            settings.plateau_isotropic,
            settings.anisotropic,
            settings.generalised_anisotropic,
        )
    )
    number = torch.stack([family >= bound for bound in bounds]).sum(dim=0)
    sigma_x = draws.uniform(*settings.sigma)
    sigma_y = torch.where(number >= 3, draws.uniform(*settings.sigma), sigma_x)
    squared = squared_distance(_SIZE, sigma_x, sigma_y, draws.uniform(-math.pi, math.pi))
    kind = (number % 3)[:, None, None]
    kernels = torch.where(kind == 1, gaussian(squared, _beta(settings.generalised_beta, draws)), gaussian(squared))
    kernels = torch.where(kind == 2, plateau(squared, _beta(settings.plateau_beta, draws)), kernels)
    narrow, wide = (draws.uniform(low, math.pi) for low in cutoffs)
    rings = draws.chance(settings.ringing)[:, None, None]
    return cut(torch.where(rings, sinc(_SIZE, torch.where(widths < 13, narrow, wide)), kernels), widths)


def _beta(span: tuple[float, float], draws: Draws) -> Tensor:
    low, high = span
    return torch.where(draws.chance(0.5), draws.uniform(low, 1), draws.uniform(1, high))


def _final_kernels(settings: RealESRGANSettings, draws: Draws) -> Tensor:
    """Sinc filters, or for some images none: a single tap."""
    chosen = draws.chance(settings.final_ringing)
    cutoff = draws.uniform(settings.ringing_cutoff[0], math.pi)
    kernels = sinc(_SIZE, cutoff)
    return cut(kernels, torch.where(chosen, _widths(draws), torch.ones_like(cutoff)))


def _widths(draws: Draws) -> Tensor:
    low, high = _WIDTHS
    return low + 2 * draws.integers(0, (high - low) // 2)


def _resize_factor(settings: OrderSettings, draws: Draws) -> float:
    low, high = settings.resize
    kind = draws.host.random()
    if kind < settings.enlarge:
        return draws.host.uniform(1, high)
    return draws.host.uniform(low, 1) if kind < settings.enlarge + settings.shrink else 1.0


def _noisy(images: Tensor, settings: OrderSettings, draws: Draws) -> Tensor:
    grey = draws.chance(settings.grey)
    if draws.host.random() < settings.gaussian:
        return add_gaussian(images, grey_or_colour(draws.uniform(*settings.noise) / 255, grey), draws.rng)
    return add_poisson(images, draws.uniform(*settings.shot), grey, draws.rng)
