"""The perceptual loss, against means in NumPy over features written anew, and a gradient by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from vgg_file import WANTED, vgg_features, write_vgg

from andfast.losses import PERCEPTUAL_WEIGHTS, PerceptualLoss
from andfast.models import load_vgg_features

POWERS = {"l2": np.square, "l1": np.abs}


class Linear(nn.Module):
    """Features that are linear in the image, and how many images they were asked of."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.maps = {"conv1_2": torch.randn(5, 3).double(), "conv5_4": torch.randn(2, 3).double()}
        self.images = 0

    def forward(self, image):
        self.images += len(image)
        return {name: torch.einsum("fc,bchw->bfhw", each.to(image), image) for name, each in self.maps.items()}


def pair(size=(6, 7), dtype=torch.float64):
    torch.manual_seed(1)
    return torch.rand(2, 3, *size, dtype=dtype, requires_grad=True), torch.rand(2, 3, *size, dtype=dtype)


@pytest.mark.parametrize("distance", POWERS)
def test_through_vgg(tmp_path, distance):
    state = write_vgg(tmp_path / "vgg.pth")
    restored, hr = pair((32, 32), torch.float32)
    loss = PerceptualLoss(load_vgg_features(tmp_path / "vgg.pth", WANTED), distance=distance)
    found, wanted = (vgg_features(state, image.detach().double()) for image in (restored, hr))
    weights = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1, "conv4_4": 1, "conv5_4": 1}
    expected = sum(
        weight * POWERS[distance]((found[name] - wanted[name]).numpy()).mean(axis=(1, 2, 3))
        for name, weight in weights.items()
    )
    np.testing.assert_allclose(loss(restored, hr).detach().numpy(), expected, rtol=1e-4)


def test_the_paper_s_weights():
    assert PERCEPTUAL_WEIGHTS == {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1, "conv4_4": 1, "conv5_4": 1}


@pytest.mark.parametrize("distance", POWERS)
def test_the_formula_and_its_gradient(distance):
    """Of linear features, sum_j c_j mean(d(A_j e)) with e = restored - HR: sum_j c_j / n_j A_j^T d'(A_j e)."""
    features = Linear()
    weights = {"conv5_4": 0.5, "conv1_2": 2.0}
    restored, hr = pair()
    loss = PerceptualLoss(features, weights, distance)(restored, hr)
    (grad,) = torch.autograd.grad(loss.sum(), restored)
    error = (restored.detach() - hr).numpy()
    slope = {"l2": lambda value: 2 * value, "l1": np.sign}[distance]
    expected, expected_grad = 0, 0
    for name, weight in weights.items():
        matrix = features.maps[name].numpy()
        moved = np.einsum("fc,bchw->bfhw", matrix, error)
        expected += weight * POWERS[distance](moved).mean(axis=(1, 2, 3))
        expected_grad += weight * np.einsum("fc,bfhw->bchw", matrix, slope(moved)) / moved[0].size
    assert loss.shape == (2,)
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(grad.numpy(), expected_grad, rtol=1e-10, atol=1e-14)


def test_a_mean_does_not_depend_on_the_patch():
    """A constant difference costs the same at any size."""
    losses = []
    for size in (4, 32):
        hr = torch.rand(1, 3, size, size, dtype=torch.float64)
        losses.append(PerceptualLoss(Linear(), {"conv1_2": 1})(hr + 0.1, hr))
    torch.testing.assert_close(*losses)


def test_hr_features_are_computed_once_a_step():
    features = Linear()
    loss = PerceptualLoss(features, {"conv1_2": 1, "conv5_4": 0})
    restored, hr = pair()
    expected = loss(restored, hr)
    assert features.images == 4
    loss.hr_cache.remember(hr)
    for _ in range(3):
        assert torch.equal(loss(restored, hr), expected)
    assert torch.equal(loss(restored[1:], hr[1:]), expected[1:])
    assert features.images == 4 + 2 + 3 * 2 + 1


def test_half_types_are_averaged_in_float32():
    """As a sum of 1e5 ones would not be in bfloat16 or float16."""
    hr = torch.zeros(1, 3, 300, 300)
    for dtype in (torch.bfloat16, torch.float16):
        loss = PerceptualLoss(lambda image, dtype=dtype: {"conv1_1": 300 * image.to(dtype)}, {"conv1_1": 1})
        found = loss(hr + 1, hr)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.tensor([9e4]))


def test_nan_propagates():
    restored, hr = pair()
    restored.data[1, 0, 0, 0] = torch.nan
    loss = PerceptualLoss(Linear(), {"conv1_2": 1})
    assert loss(restored, hr).isnan().tolist() == [False, True]
    assert loss(hr, restored).isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": {"conv1_2": -1}}, "conv1_2 -1; they must be at least 0"),
        ({"weights": {"conv1_2": float("nan")}}, "conv1_2 nan"),
        ({"weights": {"conv1_2": 0}}, "weight 0"),
        ({"weights": {}}, "weight 0"),
        ({"distance": "l3"}, "'l3'; it must be 'l2' or 'l1'"),
    ],
)
def test_wrong_values_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        PerceptualLoss(Linear(), **options)
