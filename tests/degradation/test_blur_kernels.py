"""Blur kernels against their formulas, written out in NumPy."""

import math

import numpy as np
import pytest
import torch
from scipy.special import j1

from andfast.degradation.blur_kernels import cut, gaussian, plateau, sinc, squared_distance

SIGMA_X, SIGMA_Y = torch.tensor([0.3, 1.0, 3.0, 2.0]), torch.tensor([0.3, 2.5, 0.5, 2.0])
ANGLE = torch.tensor([0.0, 0.7, -2.0, 1.0])
BETA = torch.tensor([1.0, 0.5, 4.0, 1.7])


def squared_in_numpy(size: int, sigma_x: float, sigma_y: float, angle: float) -> np.ndarray:
    """d^T Sigma^-1 d for every tap, with Sigma = R diag(sigma^2) R^T."""
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.linalg.inv(rotation @ np.diag([sigma_x**2, sigma_y**2]) @ rotation.T)
    middle = size // 2
    return np.array(
        [
            [np.array([x, y]) @ inverse @ np.array([x, y]) for x in range(-middle, middle + 1)]
            for y in range(-middle, middle + 1)
        ]
    )


@pytest.mark.parametrize(
    ("ours", "formula"),
    [
        (lambda d, beta: gaussian(d), lambda d, beta: np.exp(-0.5 * d)),
        (gaussian, lambda d, beta: np.exp(-0.5 * d**beta)),
        (plateau, lambda d, beta: 1 / (d**beta + 1)),
    ],
    ids=["gaussian", "generalised", "plateau"],
)
def test_the_gaussian_families_are_their_formulas(ours, formula):
    widths = torch.tensor([7.0, 15.0, 15.0, 9.0])
    kernels = cut(ours(squared_distance(15, SIGMA_X, SIGMA_Y, ANGLE), BETA), widths)
    for kernel, *values, width in zip(kernels, SIGMA_X, SIGMA_Y, ANGLE, BETA, widths, strict=True):
        sigma_x, sigma_y, angle, beta = (float(value) for value in values)
        expected = formula(squared_in_numpy(int(width), sigma_x, sigma_y, angle), beta)
        margin = (15 - int(width)) // 2
        np.testing.assert_allclose(kernel, np.pad(expected / expected.sum(), margin), rtol=1e-4, atol=1e-7)


def test_the_low_pass_is_its_formula_and_lets_low_frequencies_through():
    cutoffs = torch.tensor([math.pi / 5, math.pi / 3, 3.0])
    kernels = cut(sinc(21, cutoffs), torch.full((3,), 21.0))
    y, x = np.mgrid[-10:11, -10:11]
    radius = np.hypot(x, y)
    for kernel, cutoff in zip(kernels, cutoffs.double().numpy(), strict=True):
        with np.errstate(invalid="ignore"):
            expected = cutoff * j1(cutoff * radius) / (2 * np.pi * radius)
        expected[10, 10] = cutoff**2 / (4 * np.pi)
        np.testing.assert_allclose(kernel, expected / expected.sum(), rtol=1e-3, atol=1e-6)
    response = np.abs(np.fft.fft2(kernels[1].numpy(), (64, 64)))
    frequency = np.hypot(*np.meshgrid(*2 * [2 * np.pi * np.fft.fftfreq(64)]))
    assert abs(response[frequency < math.pi / 6] - 1).max() < 0.2
    assert response[frequency > math.pi / 2].max() < 0.2


def test_no_width_but_the_middle_tap_is_no_blur():
    kernel = cut(sinc(21, torch.tensor([1.0])), torch.tensor([1.0]))
    assert kernel[0, 10, 10] == kernel.sum() == 1


def test_no_deviation_is_no_blur_and_no_nan():
    zero = torch.zeros(1)
    kernel = cut(gaussian(squared_distance(7, zero, zero, zero)), torch.tensor([7.0]))
    assert kernel[0, 3, 3] == kernel.sum() == 1


def test_a_centre_between_the_taps():
    sigma = torch.tensor([1.2])
    kernel = cut(gaussian(squared_distance(25, sigma, sigma, centre=1.5)), torch.tensor([25.0]))[0].double()
    along = torch.arange(-12, 13, dtype=torch.float64)
    for axis in (0, 1):
        profile = kernel.sum(dim=1 - axis)
        assert (profile * along).sum() == pytest.approx(1.5, abs=1e-4)
        assert (profile * (along - 1.5) ** 2).sum() == pytest.approx(1.2**2, rel=1e-3)


def test_even_sizes_are_refused():
    with pytest.raises(ValueError, match="size is 8; a kernel has a middle tap"):
        sinc(8, torch.ones(1))
