"""The generators' convolutions: forward, input gradient, sign_mask; against plain PyTorch in float64."""

import pytest
import torch
from triton_reference import TYPES, check, nchw, nhwc, with_types

from andfast.ops.backends.epilogues import unpack_sign_mask
from andfast.ops.backends.triton.backend import TritonBackend
from andfast.ops.conv_act import conv_act_reference
from andfast.ops.dense_block import dense_block_reference

kernels = TritonBackend()

# Images, size, features, growth; images, size, in, out.
DENSE = with_types("shape", [(1, (5, 7), 8, 4), (1, (9, 3), 16, 16), (2, (1, 1), 3, 9), (1, (1, 3), 66, 9)])
CONVS = with_types("shape", [(2, (5, 7), 3, 5), (1, (9, 18), 16, 64), (3, (1, 1), 70, 3), (1, (2, 9), 9, 70)])


def draw(*shape, dtype=torch.float32, device="cpu"):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return values.to(dtype).to(device)


def dense_case(shape, dtype, device):
    images, size, features, growth = shape
    given = {"dtype": dtype, "device": device}
    outputs = [growth] * 4 + [features]
    inputs = [features + k * growth for k in range(5)]
    weights = [draw(o, i, 3, 3, **given) / (3 * i**0.5) for o, i in zip(outputs, inputs, strict=True)]
    biases = [draw(out, **given) / 10 for out in outputs]
    return draw(images, features, *size, **given), draw(images, features, *size, **given), weights, biases


@DENSE
def test_dense_block(shape, dtype, device):
    x, dy, weights, biases = dense_case(shape, dtype, device)
    y, intermediates, sign_mask = kernels.dense_block(nhwc(x), weights, biases, True)
    dx, dintermediates = kernels.dense_block_input_grad(nhwc(dy), weights, sign_mask)

    def reference(kind):
        given = x.to(kind).requires_grad_()
        wide = [[tensor.to(kind) for tensor in tensors] for tensors in (weights, biases)]
        result = dense_block_reference(given, *wide)
        return result.detach(), torch.autograd.grad(result, given, dy.to(kind))[0]

    exact, own = reference(torch.float64), reference(dtype)
    check(nchw(y), exact[0], own[0])
    check(nchw(dx), exact[1], own[1])
    growth = shape[3]
    assert torch.equal(unpack_sign_mask(sign_mask, growth).flatten(3), ~(intermediates > 0))
    assert dintermediates.isfinite().all()
    unkept = kernels.dense_block(nhwc(x), weights, biases, False)
    assert torch.equal(unkept[0], y)
    assert unkept[2].numel() == 0


@CONVS
@pytest.mark.parametrize("slope", [None, 0.2])
def test_conv_act(shape, dtype, device, slope):
    images, size, into, out = shape
    x, weight, bias, dy = (
        draw(*sizes, dtype=dtype, device=device)
        for sizes in ((images, into, *size), (out, into, 3, 3), (out,), (images, out, *size))
    )
    slopes = None if slope is None else torch.linspace(-0.2, 1.1, out, device=device)
    y, sign_mask = kernels.conv_act(nhwc(x), weight, bias, slopes, slope is not None)
    dz = nhwc(dy) if slope is None else kernels.leaky_relu_backward(nhwc(dy), sign_mask, slopes)
    dx = kernels.conv_act_input_grad(dz, weight)

    def reference(kind):
        given = x.to(kind).requires_grad_()
        result = conv_act_reference(given, weight.to(kind), bias.to(kind), None if slopes is None else slopes.to(kind))
        return result.detach(), torch.autograd.grad(result, given, dy.to(kind))[0]

    exact, own = reference(torch.float64), reference(dtype)
    check(nchw(y), exact[0], own[0])
    check(nchw(dx), exact[1], own[1])


def test_as_operations(device):
    """Through autograd, weight gradients and all."""
    x, _, weights, biases = dense_case((1, (3, 4), 8, 8), torch.float32, device)
    tensors = [x, *weights, *biases, draw(6, 8, 3, 3, device=device), draw(6, device=device)]
    slope = torch.full((6,), 0.1, device=device)
    for tensor in tensors:
        tensor.requires_grad_()
    expected = conv_act_reference(dense_block_reference(x, weights, biases), *tensors[11:], 0.1)
    (y, *_) = torch.ops.andfast.dense_block_forward(x, weights, biases, "triton", True)
    (found, *_) = torch.ops.andfast.conv_act_forward(y, *tensors[11:], slope, "triton", True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    gradients = (torch.autograd.grad(result.square().sum(), tensors) for result in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("dtype", TYPES)
def test_no_images(dtype, device):
    _, _, weights, biases = dense_case((1, (2, 2), 8, 4), dtype, device)
    empty = torch.zeros(0, 3, 4, 8, dtype=dtype, device=device)
    y, _, sign_mask = kernels.dense_block(empty, weights, biases, True)
    assert y.shape == kernels.dense_block_input_grad(empty, weights, sign_mask)[0].shape == empty.shape
    assert kernels.conv_act(empty, weights[0], biases[0], None, False)[0].shape == (0, 3, 4, 4)
