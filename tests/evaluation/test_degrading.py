"""LR images made by a stated degradation."""

import numpy as np
import pytest
from study_images import photograph

from andfast.degradation.camera import CameraSettings, bicubic_lr, camera_like
from andfast.evaluation.degrading import name_seed, parse_degradation


def test_it_is_the_simulated_camera():
    hr = photograph(0, 67)
    degradation = parse_degradation("blur=1.5, noise=10,jpeg=60", seed=3)
    lr, original = degradation(hr, 4, "a")
    assert np.array_equal(original, hr[:64, :64])
    expected = camera_like(hr[:64, :64].copy(), 4, name_seed("a 3"), blur_sigma=1.5, noise_sigma=10, jpeg_quality=60)
    assert np.array_equal(lr, expected)
    assert degradation.settings() == {
        "downscaling": "mean of the pixels", "blur_sigma": 1.5, "noise_sigma": 10, "jpeg_quality": 60, "seed": 3
    }  # fmt: skip
    assert not np.array_equal(lr, degradation(hr, 4, "b")[0])  # another image has other noise
    assert not np.array_equal(lr, parse_degradation("blur=1.5,noise=10,jpeg=60")(hr, 4, "a")[0])


def test_what_is_left_out_is_moderate():
    assert parse_degradation("noise=0").camera == CameraSettings(noise_sigma=0)


def test_bicubic():
    hr = photograph(1, 66)
    degradation = parse_degradation("bicubic")
    assert np.array_equal(degradation(hr, 4, "a")[0], bicubic_lr(hr[:64, :64].copy(), 4))
    assert degradation.settings() == {"downscaling": "bicubic, antialiased (Pillow)"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "''; wanted blur=SIGMA"),
        ("haze=3", "'haze'; wanted blur"),
        ("blur=much", "could not convert string to float: 'much'"),
        ("blur=1,blur=2", "blur twice"),
        ("jpeg=96", "a JPEG quality of 1 to 95"),
        ("noise=-1", "sigmas >= 0"),
        ("jpeg=60.5", "invalid literal"),
    ],
)
def test_others_are_refused(text, message):
    with pytest.raises(ValueError, match=f"--degrade {text}.*") as caught:
        parse_degradation(text)
    assert message in str(caught.value)
