"""Measures of differences, on images whose measures are known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from andfast.metrics.differences import BANDS, Differences, dc_share, spectrum, table


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


def test_pairs_are_compared_with_the_clean_image():
    """An HR image of 2 x 2 squares, whose mean is known without any pooling but at their borders."""
    found = Differences(2)
    hr = torch.full((3, 32, 48), 0.5)
    found.add(hr + 0.1, hr[:, ::2, ::2])
    assert found.values["PSNR to the clean LR image, dB"] == [pytest.approx(20, abs=1e-4)]
    assert found.values["DC share of the difference"] == [pytest.approx(1)]
    # Nothing but a constant has no spectrum; nor has an image that is flat.
    assert len(found.values) == 2
    wave = torch.cos(math.pi * torch.arange(24) * 5.5 / BANDS).expand(3, 16, 24)
    found.add(hr, hr[:, ::2, ::2] + 0.1 * wave)
    rings = [found.values[f"difference: power in ring {ring + 1} of {BANDS}"] for ring in range(BANDS)]
    assert np.argmax(rings) == 5
    assert sum(ring[0] for ring in rings) == pytest.approx(1)
    assert found.images == 2


def test_images_alone_have_a_spectrum_alone():
    found = Differences(2)
    found.add(None, white(32))
    assert list(found.values) == [f"image: power in ring {ring + 1} of {BANDS}" for ring in range(BANDS)]


def test_the_clean_image_has_a_psnr_alone():
    found = Differences(2)
    hr = torch.full((3, 32, 48), 0.5)
    found.add(hr, hr[:, ::2, ::2])
    assert found.values == {"PSNR to the clean LR image, dB": [math.inf]}


def test_the_table_has_medians_and_ranges():
    first, second = Differences(2), Differences(2)
    first.images, second.images = 11, 1
    first.values = {"a": [float(value) for value in range(11)], "b": [0.5]}
    second.values = {"a": [0.000123]}
    lines = table({"one": first, "two": second}).splitlines()
    assert lines[0] == "| | one | two |"
    assert lines[2] == "| images | 11 | 1 |"
    assert lines[3] == "| a | 5 (1 to 9) | 0.00012 |"
    assert lines[4] == "| b | 0.5 | |"
