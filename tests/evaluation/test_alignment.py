"""Whether LR images lie on their originals: images are moved here by known amounts."""

import numpy as np
import pytest
import skimage.data
import torch
from scipy.ndimage import shift as scipy_shift

from andfast.data.tensors import to_tensor
from andfast.evaluation.measuring import align


@pytest.fixture(scope="module")
def photograph():
    return skimage.data.astronaut()[:240, 80:320]


def blurred(image):
    """As enlarged LR images are."""
    return torch.nn.functional.avg_pool2d(image, 5, 1, 2, count_include_pad=False)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, -2), (-5, 7), (8, -8)])
def test_whole_pixels(photograph, down, right):
    whole = to_tensor(np.ascontiguousarray(photograph))
    hr = whole[..., 10:-10, 10:-10]
    moved = blurred(whole)[..., 10 - down : 230 - down, 10 - right : 230 - right]
    found = align(moved, hr, reach=8)
    assert (found.down, found.right) == (pytest.approx(down, abs=0.3), pytest.approx(right, abs=0.3))
    assert found.correlation > 0.5
    assert (found.wrong(4) is None) == (max(abs(down), abs(right)) <= 2)


def test_parts_of_pixels(photograph):
    moved = scipy_shift(photograph.astype(float), (0.6, -1.4, 0), order=3, mode="mirror").clip(0, 255)
    found = align(to_tensor(moved.round().astype(np.uint8)), to_tensor(np.ascontiguousarray(photograph)), reach=8)
    assert (found.down, found.right) == (pytest.approx(0.6, abs=0.15), pytest.approx(-1.4, abs=0.15))
    assert found.wrong(4) is None
    assert found.wrong(2) == f"{found.down:+.1f} down, {found.right:+.1f} right"


def test_another_scene(photograph):
    hr = to_tensor(np.ascontiguousarray(photograph))
    found = align(blurred(hr.flip(-1)), hr, reach=8)
    assert found.wrong(4).startswith("not the same scene (correlation 0.")


def test_images_without_details_are_aligned():
    flat = torch.full((1, 3, 40, 50), 0.3)
    assert align(flat, flat, reach=4) == (0, 0, 1)
    assert align(flat, flat, reach=4).wrong(4) is None


def test_small_images_have_an_alignment(photograph):
    hr = to_tensor(np.ascontiguousarray(photograph[:8, :12]))
    assert align(hr, hr, reach=8)[:2] == (pytest.approx(0, abs=0.5), pytest.approx(0, abs=0.5))
