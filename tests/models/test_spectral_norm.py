"""Spectral normalisation, against singular values in NumPy, PyTorch's own, and a gradient by hand."""

import copy
import warnings

import numpy as np
import pytest
import torch

from andfast.models.spectral_norm import SpectralNormConv2d


@pytest.fixture
def conv():
    torch.manual_seed(0)
    return SpectralNormConv2d(5, 7, 4, stride=2)


def largest(conv):
    return np.linalg.svd(conv.weight_orig.detach().double().numpy().reshape(7, -1), compute_uv=False)[0]


def test_the_largest_singular_value_becomes_one(conv):
    """Near it from the start, also in evaluation mode; and arbitrarily near as training goes on."""
    start = conv.eval().normalised().detach().flatten(1).double().numpy()
    assert np.linalg.svd(start, compute_uv=False)[0] == pytest.approx(1, rel=0.1)
    conv.train()
    for _ in range(300):
        weight = conv.normalised().detach()
    np.testing.assert_allclose(weight.numpy(), conv.weight_orig.detach().numpy() / largest(conv), rtol=1e-5, atol=1e-7)


def test_it_follows_the_weight_in_training_alone(conv):
    before = copy.deepcopy(conv.state_dict())
    image = torch.rand(2, 5, 8, 8)
    first = conv.eval()(image)
    assert torch.equal(conv(image), first)
    for key, value in conv.state_dict().items():
        assert torch.equal(value, before[key]), key
    with torch.no_grad():
        conv.weight_orig.copy_(torch.randn_like(conv.weight_orig))
    for _ in range(300):
        conv.train()(image)
    value = torch.linalg.matrix_norm(conv.eval().normalised().flatten(1), 2)
    torch.testing.assert_close(value, torch.ones(()))


def test_the_gradient_by_hand(conv):
    """With sigma = u^T W v and u, v fixed: d<G, W / sigma> / dW = G / sigma - <G, W> / sigma^2 u v^T."""
    conv = conv.double().eval()
    grad = torch.randn(conv.weight_orig.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(conv.normalised(), conv.weight_orig, grad)
    weight, u, v, g = (
        tensor.detach().numpy().reshape(shape)
        for tensor, shape in (
            (conv.weight_orig, (7, -1)),
            (conv.weight_u, -1),
            (conv.weight_v, -1),
            (grad, (7, -1)),
        )
    )
    sigma = u @ weight @ v
    expected = g / sigma - (g * weight).sum() / sigma**2 * np.outer(u, v)
    np.testing.assert_allclose(found.numpy().reshape(7, -1), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("training", [True, False])
def test_it_is_pytorchs_own(conv, training):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.nn.utils.spectral_norm(torch.nn.Conv2d(5, 7, 4, stride=2, padding=1, bias=False))
    theirs.load_state_dict(conv.state_dict())
    image = torch.rand(2, 5, 8, 8)
    conv.train(training)
    theirs.train(training)
    found, expected = conv(image), theirs(image)
    torch.testing.assert_close(found, expected)
    grads = [
        torch.autograd.grad(result.square().sum(), module.weight_orig)[0]
        for module, result in ((conv, found), (theirs, expected))
    ]
    torch.testing.assert_close(*grads)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(conv.state_dict()[key], value)


def test_two_passes_before_a_backward_pass(conv):
    """As a discriminator's on restored and on real images; the second moves the vectors that the first was made of."""
    first, second = conv(torch.rand(1, 5, 8, 8)), conv(torch.rand(1, 5, 8, 8))
    (first.sum() + second.sum()).backward()
    assert conv.weight_orig.grad.isfinite().all()
    copy.deepcopy(conv)


def test_under_autocast_the_norm_is_exact(conv):
    conv.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.rand(1, 5, 8, 8)).dtype == torch.bfloat16
        inside = conv.normalised()
    assert torch.equal(inside, conv.normalised())
    # Weights in bfloat16, as a frozen view has them.
    rounded = copy.deepcopy(conv)
    rounded.weight_orig.data = conv.weight_orig.data.bfloat16()
    assert rounded.normalised().dtype == torch.float32
    torch.testing.assert_close(rounded.normalised(), conv.normalised(), rtol=2**-7, atol=1e-4)


def test_nan_propagates(conv):
    conv.weight_orig.data[0, 0, 0, 0] = torch.nan
    assert conv(torch.rand(1, 5, 8, 8)).isnan().all()
