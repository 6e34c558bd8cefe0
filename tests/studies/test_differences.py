"""Measures of differences, on images whose measures are known."""

import pytest
import torch
from torch import Tensor

from studies.measures import BANDS, dc_share, spectrum


def white(size: int, seed: int = 0, sigma: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sigma * torch.randn(3, size, size, dtype=torch.float64, generator=generator)


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
