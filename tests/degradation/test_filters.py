"""A kernel for each image, and resizing, against SciPy and the interpolation's formula."""

import re

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate, gaussian_filter

from andfast.degradation.blur_kernels import filter_images, gaussian_blur
from andfast.degradation.chain import check_scale, resize


@pytest.mark.parametrize("size", [(9, 14), (5, 3), (1, 2)])
def test_every_image_is_filtered_by_its_own_kernel(size):
    random = torch.Generator().manual_seed(0)
    images, kernels = torch.rand(3, 3, *size, generator=random), torch.rand(3, 7, 7, generator=random)
    found = filter_images(images, kernels)
    for image, kernel, result in zip(images.numpy(), kernels.numpy(), found, strict=True):
        for plane, filtered in zip(image, result, strict=True):
            np.testing.assert_allclose(filtered, correlate(plane, kernel, mode="mirror"), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 3), "kernels have shape (2, 3, 3); wanted (B, k, k) with B = 3"),
        ((3, 4, 4), "kernels are 4 wide; they need a middle"),
    ],
)
def test_kernels_that_do_not_fit_are_named(shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        filter_images(torch.rand(3, 3, 8, 8), torch.ones(shape))


def cubic(distance: np.ndarray) -> np.ndarray:
    """OpenCV's INTER_CUBIC: Keys' kernel with a = -0.75."""
    a, x = -0.75, np.abs(distance)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def interpolated(row: np.ndarray, length: int, weight) -> np.ndarray:
    """A row in another length, as cv2.resize does it: pixel centres aligned, borders repeated, no antialiasing."""
    result = np.zeros(length)
    for index in range(length):
        place = (index + 0.5) * len(row) / length - 0.5
        for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            result[index] += weight(place - tap) * row[np.clip(tap, 0, len(row) - 1)]
    return result


@pytest.mark.parametrize(("mode", "weight"), [("bilinear", lambda d: np.maximum(1 - abs(d), 0)), ("bicubic", cubic)])
@pytest.mark.parametrize("length", [5, 11, 31])
def test_plain_interpolation_is_its_formula(mode, weight, length):
    row = torch.rand(20, generator=torch.Generator().manual_seed(1))
    found = resize(row.expand(1, 1, 4, 20), (4, length), mode)[0, 0, 0]
    np.testing.assert_allclose(found, interpolated(row.double().numpy(), length, weight), atol=1e-5)


def test_area_is_the_mean_over_whole_blocks():
    image = torch.rand(1, 1, 12, 18, generator=torch.Generator().manual_seed(2))
    expected = image.reshape(1, 1, 4, 3, 6, 3).mean(dim=(3, 5))
    torch.testing.assert_close(resize(image, (4, 6), "area"), expected)
    assert resize(image, (0, 6), "area").shape[2:] == (1, 6)


def test_images_without_a_whole_lr_image_are_named():
    with pytest.raises(
        ValueError, match=re.escape("(2, 3, 12, 18); it must be (B, 3, H, W), H and W multiples of the")
    ):
        check_scale(torch.rand(2, 3, 12, 18), 4)


def test_each_image_is_blurred_by_a_gaussian_of_its_own_width() -> None:
    images = torch.rand(4, 3, 40, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.0, 0.4, 1.3, 2.5], dtype=torch.float64)
    found = gaussian_blur(images, sigma, 2.5)
    for image, width, blurred in zip(images.numpy(), sigma.tolist(), found.numpy(), strict=True):
        axes = [width and gaussian_filter(channel, width, mode="mirror", radius=10) for channel in image]
        wanted = np.stack(axes) if width else image
        np.testing.assert_allclose(blurred, wanted, atol=1e-12)


def test_kernels_end_where_small_images_do() -> None:
    found = gaussian_blur(torch.full((2, 3, 4, 5), 0.3), torch.tensor([1.0, 3.0]), 3.0)
    torch.testing.assert_close(found, torch.full((2, 3, 4, 5), 0.3))
