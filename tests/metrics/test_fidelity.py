"""PSNR and SSIM against scikit-image, which computes them on its own."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from andfast.metrics import psnr, psnr_y, ssim_y, to_y


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(4, 3, 24, 30, generator=generator)
    spread = torch.tensor([0.5, 0.1, 0.02, 0.004]).view(4, 1, 1, 1)
    return a, a + spread * torch.randn(a.shape, generator=generator)


def eight_bits(image):
    return np.rint(image.double().clamp(0, 1).numpy().transpose(1, 2, 0) * 255).astype(np.uint8)


def test_y_is_that_of_scikit_image(images):
    a = images[0].double()
    expected = rgb2ycbcr(a[0].permute(1, 2, 0).numpy())[..., 0]
    np.testing.assert_allclose(to_y(a[0]).numpy(), expected, rtol=1e-6)
    assert to_y(a).shape == (4, 24, 30)
    assert to_y(torch.ones(3, 1, 1, dtype=torch.float64)).item() == pytest.approx(235)


@pytest.mark.parametrize("border", [0, 4, 11])
def test_psnr_y_is_that_of_scikit_image(images, border):
    found = psnr_y(*images, border)
    assert found.dtype == torch.float64
    assert found.shape == (4,)
    for value, *pair in zip(found, *images, strict=True):
        a, b = (rgb2ycbcr(eight_bits(image))[border : 24 - border, border : 30 - border, 0] for image in pair)
        assert value.item() == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-6)
        assert psnr_y(*pair, border).item() == value.item()


def test_psnr_y_is_132_hundredths_of_a_db_above_that_of_yiq():
    a = torch.full((3, 8, 8), 100 / 255)
    b = torch.full((3, 8, 8), 110 / 255)  # of gray, YIQ's luma is the value itself
    yiq = peak_signal_noise_ratio(np.full((8, 8), 100.0), np.full((8, 8), 110.0), data_range=255)
    assert psnr_y(a, b, 0).item() - yiq == pytest.approx(1.32, abs=0.005)


@pytest.mark.parametrize("border", [0, 4, 6])
def test_ssim_y_is_that_of_scikit_image(images, border):
    found = ssim_y(*images, border)
    assert found.dtype == torch.float64
    assert found.shape == (4,)
    assert found[0] < 0.5 < found[3]  # nothing alike, nearly identical
    for value, *pair in zip(found, *images, strict=True):
        a, b = (rgb2ycbcr(eight_bits(image))[border : 24 - border, border : 30 - border, 0] for image in pair)
        wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        assert value.item() == pytest.approx(structural_similarity(a, b, data_range=255, **wang), abs=1e-10)
        assert ssim_y(*pair, border).item() == pytest.approx(value.item(), abs=1e-12)


def test_ssim_y_of_identical_images_is_one(images):
    a, b = images[0], images[1].clone()
    b[1] = a[1]
    assert [value == pytest.approx(1, abs=1e-12) for value in ssim_y(a, b, 2).tolist()] == [False, True, False, False]
    assert ssim_y(a[0], a[0] + 0.3 / 255 * (a[0] < 0.9), 0).item() < 1


def test_psnr_is_that_of_scikit_image(images):
    found = psnr(*images)
    assert found.dtype == torch.float64
    for value, *pair in zip(found, *images, strict=True):
        a, b = (image.double().numpy() for image in pair)
        assert value.item() == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1), abs=1e-9)


def test_identical_images_give_infinity(images):
    a, b = images[0], images[1].clone()
    b[1] = a[1]
    assert torch.isinf(psnr(a, b)).tolist() == [False, True, False, False]
    assert torch.isinf(psnr_y(a, b, 2)).tolist() == [False, True, False, False]


def test_psnr_y_sees_what_would_be_saved():
    a = torch.full((3, 8, 8), 100 / 255)
    assert torch.isinf(psnr_y(a, a + 0.4 / 255, 0))
    assert torch.isinf(psnr_y(torch.ones_like(a), torch.full_like(a, 1.5), 0))


def test_half_precision_is_measured_in_double(images):
    a, b = (image.half() for image in images)
    assert torch.equal(psnr(a, b), psnr(a.double(), b.double()))


def test_wrong_images_are_refused():
    a = torch.rand(2, 3, 8, 8)
    for metric in (psnr, lambda a, b: psnr_y(a, b, 0), lambda a, b: ssim_y(a, b, 0)):
        with pytest.raises(ValueError, match="one shape"):
            metric(a, a[:1])
        with pytest.raises(TypeError, match="uint8"):
            metric(a, (a * 255).byte())
    with pytest.raises(ValueError, match="border of 4"):
        psnr_y(a, a, 4)
    with pytest.raises(ValueError, match="border of 1 leaves less than 11 x 11"):
        ssim_y(torch.rand(3, 12, 20), torch.rand(3, 12, 20), 1)
    with pytest.raises(ValueError, match="one shape"):
        psnr_y(a[:, :1], a[:, :1], 0)
