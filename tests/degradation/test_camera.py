"""The camera-like degradation against SciPy's filter, Pillow's JPEG and plain statistics."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from andfast.degradation.camera import CameraSettings, bicubic_lr, camera_like, crop_to_multiple, gaussian_blur


@pytest.fixture
def hr():
    noise = np.random.default_rng(0).uniform(0, 255, (48, 64, 3))
    return gaussian_filter(noise * 3 - 255, (1.5, 1.5, 0)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [0, 0.4, 1.0, 2.0, 5.5])
def test_blur_is_that_of_scipy(hr, sigma):
    image = hr.astype(np.float64)
    np.testing.assert_allclose(gaussian_blur(image, sigma), gaussian_filter(image, (sigma, sigma, 0)), atol=1e-9)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_without_noise_it_is_blur_area_average_and_jpeg(hr, scale):
    hr = crop_to_multiple(hr, scale)
    blurred = gaussian_filter(hr.astype(np.float64), (2, 2, 0))
    rows, columns = hr.shape[0] // scale, hr.shape[1] // scale
    expected = np.empty((rows, columns, 3), np.uint8)
    for row in range(rows):
        for column in range(columns):
            square = blurred[row * scale : (row + 1) * scale, column * scale : (column + 1) * scale]
            expected[row, column] = np.rint(square.mean((0, 1)))
    file = io.BytesIO()
    Image.fromarray(expected).save(file, "JPEG", quality=70)
    np.testing.assert_array_equal(camera_like(hr, scale, 0, 2.0, 0.0, 70), np.asarray(Image.open(file)))


def test_it_is_a_function_of_the_seed(hr):
    np.testing.assert_array_equal(camera_like(hr, 4, 7), camera_like(hr, 4, 7))
    assert (camera_like(hr, 4, 7) != camera_like(hr, 4, 8)).any()
    settings = CameraSettings(noise_sigma=0)
    np.testing.assert_array_equal(camera_like(hr, 4, 7, **vars(settings)), camera_like(hr, 4, 8, noise_sigma=0))


def test_noise_has_the_deviation_asked_for():
    gray = np.full((512, 512, 3), 128, np.uint8)
    noisy = camera_like(gray, 2, 0, noise_sigma=20.0, jpeg_quality=95)
    # On luma, since JPEG halves the resolution of chroma. Independent noise adds up by squares, and this much
    # of it outweighs JPEG's own.
    luma = noisy @ np.array([0.299, 0.587, 0.114])
    assert luma.std() == pytest.approx(20 * np.linalg.norm([0.299, 0.587, 0.114]), rel=0.03)
    assert luma.mean() == pytest.approx(128, abs=0.2)


def test_clean_image_is_pillows_bicubic(hr):
    np.testing.assert_array_equal(bicubic_lr(hr, 1), hr)
    expected = np.asarray(Image.fromarray(hr).resize((16, 12), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(bicubic_lr(hr, 4), expected)


def test_default_is_moderate_on_a_photograph():
    from skimage.data import chelsea
    from skimage.metrics import peak_signal_noise_ratio

    hr = crop_to_multiple(chelsea(), 4)
    assert 28 < peak_signal_noise_ratio(bicubic_lr(hr, 4), camera_like(hr, 4, 0)) < 34


@pytest.mark.parametrize("degrade", [bicubic_lr, lambda hr, scale: camera_like(hr, scale, 0)])
def test_wrong_images_are_refused(hr, degrade):
    with pytest.raises(ValueError, match="multiple of the scale 5"):
        degrade(hr, 5)
    with pytest.raises(ValueError, match="uint8"):
        degrade(hr / 255, 4)


def test_wrong_settings_are_refused(hr):
    with pytest.raises(ValueError, match="JPEG quality"):
        camera_like(hr, 4, 0, jpeg_quality=0)
    with pytest.raises(ValueError, match="sigmas"):
        CameraSettings(blur_sigma=-1)
