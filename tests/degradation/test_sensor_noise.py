"""Noises by their statistics."""

import numpy as np
import pytest
import torch
from adversaries import seeded
from scipy import stats

from andfast.degradation.noise import add_gaussian, add_poisson, add_sensor_noise, correlated, grey_or_colour

SIZE = 256


def covariance(noise: torch.Tensor) -> np.ndarray:
    return np.cov(noise.flatten(1).double().numpy())


def test_gaussian_noise_has_each_image_s_deviation_in_grey_or_colour():
    images, sigma = torch.full((3, 3, SIZE, SIZE), 0.5), torch.tensor([0.02, 0.05, 0.1])
    noise = add_gaussian(images, grey_or_colour(sigma, torch.tensor([False, True, False])), seeded()) - images
    for one, deviation, grey in zip(noise, sigma.tolist(), (False, True, False), strict=True):
        expected = deviation**2 * (np.ones((3, 3)) if grey else np.eye(3))
        # 65,536 pixels: a standard error of 0.6%.
        np.testing.assert_allclose(covariance(one), expected, atol=0.03 * deviation**2)
        assert abs(one.mean()) < 4 * deviation / SIZE
        # White: neighbours know nothing of each other.
        neighbours = np.corrcoef(one[0, :, 1:].flatten(), one[0, :, :-1].flatten())[0, 1]
        assert abs(neighbours) < 0.02
    assert torch.equal(noise[1, 0], noise[1, 2])


def test_sensor_noise_has_a_uniform_deviation_for_each_image_and_is_grey_for_some():
    count, low, high = 400, 3.0, 9.0
    images = torch.full((count, 3, 32, 32), 0.5)
    noise = 255 * (add_sensor_noise(images, (low, high), seeded()) - images).double()
    deviation = noise.std(dim=(1, 2, 3)).numpy()
    assert stats.kstest(deviation, stats.uniform(low, high - low).cdf).pvalue > 0.01
    grey = (noise[:, 0] == noise[:, 2]).flatten(1).all(dim=1).double().mean().item()
    assert abs(grey - 0.4) < 4 * (0.24 / count) ** 0.5


def test_correlated_noise_has_the_covariance_of_its_axes():
    variances, axes = torch.tensor([[1e-3, 4e-3, 0.0]]), torch.rand(1, 3, 3, generator=seeded(5))
    mixing = correlated(variances, axes)
    basis = np.linalg.qr(axes[0].double().numpy())[0]
    expected = basis @ np.diag(variances[0].double().numpy()) @ basis.T
    np.testing.assert_allclose(mixing[0] @ mixing[0].T, expected, atol=1e-8)
    images = torch.full((1, 3, SIZE, SIZE), 0.5)
    noise = add_gaussian(images, mixing, seeded()) - images
    np.testing.assert_allclose(covariance(noise[0]), expected, atol=1e-4)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_shot_noise_grows_with_the_light(strength):
    # 256 levels, so 256 units: a variance of light / 256.
    light = torch.arange(256).div(255).expand(1, 3, SIZE, 256)
    noise = add_poisson(light, torch.tensor([strength]), torch.tensor([False]), seeded()) - light
    for level in (64, 128):
        found = noise[0, :, :, level].var().item()
        assert found == pytest.approx(strength**2 * level / 255 / 256, rel=0.15)
    assert abs(noise[0, :, :, 100].mean()) < 0.01
    between = np.corrcoef(noise[0, 0].flatten(), noise[0, 1].flatten())[0, 1]
    assert abs(between) < 0.02


def test_grey_shot_noise_is_the_brightness_s():
    image = torch.tensor([0.6, 0.2, 0.4])[:, None, None].expand(2, 3, 64, 64)
    # So weak that nothing is clamped.
    noise = add_poisson(image, torch.full((2,), 0.05), torch.tensor([True, False]), seeded()) - image
    torch.testing.assert_close(noise[0, 1], noise[0, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(noise[0, 2], noise[0, 0], atol=1e-6, rtol=0)
    assert noise[0].std() > 0.01
    assert not torch.allclose(noise[1, 2], noise[1, 1], atol=1e-3)


def test_an_image_of_few_levels_counts_in_few_units():
    # Three levels, so four units: the noise of a pixel is a multiple of a quarter.
    image = torch.tensor([0.2, 0.6, 0.8]).repeat(1, 3, 8, 8)
    noisy = add_poisson(image, torch.ones(1), torch.tensor([False]), seeded())
    quarters = noisy * 4
    torch.testing.assert_close(quarters, quarters.round(), atol=1e-5, rtol=0)
    assert noisy.unique().numel() > 3


def test_noise_stays_in_range_and_follows_the_seed():
    image, one = torch.rand(1, 3, 16, 16), torch.tensor([1.0])
    for add in (
        lambda seed: add_gaussian(image, grey_or_colour(one, one > 2), seeded(seed)),
        lambda seed: add_poisson(image, 3 * one, one > 2, seeded(seed)),
    ):
        noisy = add(1)
        assert noisy.min() >= 0
        assert noisy.max() <= 1
        assert torch.equal(noisy, add(1))
        assert not torch.equal(noisy, add(2))
