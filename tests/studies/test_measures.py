"""Measures of degraded images, on images whose measures are known."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from andfast.ops.blur_pool import blur_pool
from studies.measures import (
    BANDS,
    colour_correlation,
    correlation,
    dc_share,
    gradient_size,
    measure,
    neighbour_correlation,
    spectrum,
    tone_share,
)


def white(size: int, seed: int = 0, sigma: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sigma * torch.randn(3, size, size, dtype=torch.float64, generator=generator)


def photograph(size: int = 256) -> Tensor:
    """Smooth and with edges, in [0.2, 0.8]."""
    smooth = ndimage.gaussian_filter(white(size).numpy(), (0, 3, 3))
    edges = np.sign(ndimage.gaussian_filter(white(size, 1).numpy(), (0, 9, 9)))
    image = smooth / smooth.std() + edges
    return torch.from_numpy(0.2 + 0.6 * (image - image.min()) / np.ptp(image))


def test_white_noise_is_measured_as_what_it_is():
    hr = photograph()
    lr = blur_pool(hr[None], 4)[0] + white(64, 2, sigma=4 / 255)
    found = measure(hr, lr)
    assert found.psnr == pytest.approx(20 * math.log10(255 / 4), abs=0.2)
    # 256 taps are fitted to 11,000 values: a little of the noise goes into them.
    assert found.residual_psnr == pytest.approx(20 * math.log10(255 / 4), abs=0.3)
    assert found.flat_noise == pytest.approx(4, rel=0.08)
    assert found.dc_share < 0.01
    assert found.tone_share < 0.01
    assert abs(found.neighbour_correlation) < 0.05
    assert abs(found.colour_correlation) < 0.05
    assert abs(found.level_correlation) < 0.08
    assert abs(found.gradient_correlation) < 0.08


def test_noise_shared_by_colours_smooth_and_bound_to_edges():
    hr = photograph()
    clean = blur_pool(hr[None], 4)[0]
    gray = white(64, 2)[:1].expand(3, -1, -1)
    smooth = torch.from_numpy(ndimage.gaussian_filter(white(64, 2).numpy(), (0, 1, 1)))
    edges = white(64, 2) * gradient_size(clean)
    assert measure(hr, clean + 0.02 * gray).colour_correlation > 0.95
    assert measure(hr, clean + 0.05 * smooth).neighbour_correlation > 0.6
    assert measure(hr, clean + edges).gradient_correlation > 0.5


def test_blur_and_tone_are_told_from_noise():
    hr = photograph()
    blurred = torch.from_numpy(ndimage.gaussian_filter(hr.numpy(), (0, 2, 2), mode="reflect"))
    lr = blur_pool(blurred[None], 4)[0]
    found = measure(hr, lr)
    # Variances add: the pooling's 1.75, the blur's 4; the ridge leaves less than a tenth to be wished for.
    assert found.width == pytest.approx((1.75 + 4) ** 0.5, rel=0.1)
    assert found.residual_psnr > found.psnr + 10
    assert found.response_full < found.response_half < 0.8
    toned = measure(hr, blur_pool(hr[None], 4)[0] ** 1.5)
    assert toned.tone_share > 0.8
    shifted = measure(hr, blur_pool(hr[None], 4)[0] + 0.05)
    assert shifted.dc_share == pytest.approx(1)
    assert shifted.offset == pytest.approx(0.05, abs=1e-3)


def test_correlations_are_numpys():
    a, b = white(16), white(16, 1)
    assert correlation(a, b) == pytest.approx(np.corrcoef(a.flatten(), b.flatten())[0, 1])
    assert correlation(a, torch.ones_like(a)) == 0
    mixed = torch.stack([a[0], a[0], a[1]])
    pair = np.corrcoef(a[0].flatten(), a[1].flatten())[0, 1]
    assert colour_correlation(mixed) == pytest.approx((1 + 2 * pair) / 3)
    box = torch.from_numpy(ndimage.uniform_filter1d(white(256).numpy(), 2, axis=1))
    assert neighbour_correlation(box) == pytest.approx((0.5 + 0) / 2, abs=0.02)


def test_a_cubic_tone_curve_is_all_of_its_residual():
    level = torch.rand(3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    curve = 0.1 * level**3 - 0.2 * level + 0.03
    assert tone_share(curve, level) == pytest.approx(1)
    noise = white(32, 5, sigma=curve.square().mean().sqrt().item())
    assert tone_share(curve + noise, level) == pytest.approx(0.5, abs=0.05)


def test_the_clean_image_has_nothing_to_measure():
    hr = photograph(128)
    with pytest.raises(ValueError, match="no difference"):
        measure(hr, blur_pool(hr[None], 4)[0])


def test_the_spectrum_says_where_the_power_lies():
    for ring in range(1, BANDS):
        cycles = (ring + 0.5) / BANDS / 2 * 64  # in the middle of the ring
        wave = torch.cos(2 * torch.pi * cycles * torch.arange(64, dtype=torch.float64) / 64).expand(3, 64, 64)
        assert spectrum(wave + 0.3)[ring] > 0.95
    shares = spectrum(white(256))
    areas = torch.tensor([(2 * ring + 1) / BANDS**2 for ring in range(BANDS)], dtype=torch.float64)
    torch.testing.assert_close(shares, areas, rtol=0.1, atol=2e-3)


def test_dc_share_is_by_colour():
    means = torch.tensor([0.1, -0.1, 0.0]).double()[:, None, None]
    pattern = 0.1 * white(128)
    expected = 0.02 / (0.02 + 3 * 0.01)
    assert dc_share(means + pattern) == pytest.approx(expected, abs=0.02)
