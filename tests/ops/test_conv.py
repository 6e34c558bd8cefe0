"""The CPU's own convolutions and their gradients, against PyTorch's in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from generator_checks import check_kernel, check_threads, draw, nchw, nhwc, poison
from torch import Tensor

from andfast.ops import dispatch
from andfast.ops.backends.library import LibraryBackend, OneDnnBackend

pytestmark = pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))
ops = torch.ops.andfast

# Networks, images, size, in, out: single results, odd sizes, rows of more tiles than are transformed together, channels
# that fill the registers or not.
SHAPES = [
    (1, 1, (3, 3), 1, 1),
    (1, 3, (5, 8), 3, 16),
    (3, 6, (4, 70), 16, 3),
    (2, 2, (9, 7), 21, 35),
    (4, 4, (6, 5), 64, 64),
    (1, 2, (40, 75), 16, 24),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def convolve(x: Tensor, weights: Tensor, padding: int) -> Tensor:
    """Each network's convolution in the type of its arguments."""
    pairs = zip(x.chunk(len(weights)), weights.unflatten(3, (3, 3)), strict=True)
    return torch.cat([nhwc(F.conv2d(nchw(images), taps, padding=padding)) for images, taps in pairs])


def check(found: Tensor, exact: Tensor, own: Tensor) -> None:
    """At most twice the error of PyTorch's own convolution in float32, and what tiles of 4 x 4 results round."""
    assert found.shape == exact.shape
    assert found.is_contiguous()
    error, allowed = ((result.double() - exact).norm() / exact.norm() for result in (found, own))
    assert error <= 2 * allowed + 1e-6, (error, allowed)


@shapes
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_conv(shape, padding):
    networks, images, (height, width), inputs, outputs = shape
    x, weights = draw(images, height, width, inputs), draw(networks, outputs, inputs, 9)
    poison(images, height + 2 * padding - 2, width + 2 * padding - 2, outputs)
    found = ops.conv(x, weights, padding, False)
    check(found, convolve(x.double(), weights.double(), padding), convolve(x, weights, padding))


@shapes
def test_backward_is_the_gradient_of_the_input(shape):
    networks, images, (height, width), inputs, outputs = shape
    dz, weights = draw(images, height - 2, width - 2, outputs), draw(networks, outputs, inputs, 9)

    def gradient(dtype: torch.dtype) -> Tensor:
        x = torch.zeros(images, height, width, inputs, dtype=dtype, requires_grad=True)
        return torch.autograd.grad(convolve(x, weights.to(dtype), 0), x, dz.to(dtype))[0]

    poison(images, height, width, inputs)
    check(ops.conv(dz, weights, 2, True), gradient(torch.float64), gradient(torch.float32))


@shapes
@pytest.mark.parametrize("border", [0, 1])
def test_conv_block_is_the_convolution_and_the_tail(shape, border):
    networks, images, (height, width), inputs, outputs = shape
    x, weights = draw(images, height, width, inputs), draw(networks, outputs, inputs, 9)
    slope_minus_one, noise = draw(networks), draw(networks, height - 2, width - 2)
    poison(images, height - 2 + 2 * border, width - 2 + 2 * border, outputs)
    found = ops.conv_block(x, weights, slope_minus_one, noise, border)
    expected = ops.block_epilogue(ops.conv(x, weights, 0, False), None, slope_minus_one, noise, None, 0, border)
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0], atol=0, rtol=1e-6)


@shapes
def test_gradient_of_the_weights(shape):
    networks, images, (height, width), inputs, outputs = shape
    x, dz = draw(images, height, width, inputs), draw(images, height - 2, width - 2, outputs)

    def gradient(dtype: torch.dtype) -> Tensor:
        weights = torch.zeros(networks, outputs, inputs, 9, dtype=dtype, requires_grad=True)
        return torch.autograd.grad(convolve(x.to(dtype), weights, 0), weights, dz.to(dtype))[0]

    poison(networks, outputs, inputs, 9)
    check(ops.conv_weight_grad(x, dz, networks), gradient(torch.float64), gradient(torch.float32))


def test_results_do_not_depend_on_threads():
    x, dz, weights = draw(4, 20, 83, 16), draw(4, 18, 81, 8), draw(2, 8, 16, 9)
    check_threads(lambda: (ops.conv(x, weights, 0, False), ops.conv_weight_grad(x, dz, 2)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_handed_on(value):
    """To all results of its tile, which may be more than the nine that it belongs to; to no other image or network."""
    x, weights = draw(2, 8, 8, 4), draw(2, 16, 4, 9)
    x[0, 4, 4, 2] = value
    z = ops.conv(x, weights, 0, False)
    assert not z[0, 2:5, 2:5].isfinite().any()
    assert z[0, 0].isfinite().all()
    assert z[1].isfinite().all()
    grad = ops.conv_weight_grad(x, draw(2, 6, 6, 8), 2)
    assert not grad[0, :, 2].isfinite().any()
    assert grad[0, :, :2].isfinite().all()
    assert grad[1].isfinite().all()


def test_no_images():
    weights = draw(2, 8, 16, 9)
    assert ops.conv(torch.zeros(0, 6, 7, 16), weights, 0, False).shape == (0, 4, 5, 8)
    found = ops.conv_weight_grad(torch.zeros(0, 6, 7, 16), torch.zeros(0, 4, 5, 8), 2)
    assert torch.equal(found, torch.zeros_like(weights))


def test_opcheck():
    check_kernel(ops.conv, (draw(2, 5, 6, 3), draw(2, 8, 3, 9), 1, False))
    check_kernel(ops.conv, (draw(2, 5, 6, 8), draw(2, 8, 3, 9), 2, True))
    check_kernel(ops.conv_block, (draw(2, 5, 6, 3), draw(2, 8, 3, 9), draw(2), draw(2, 3, 4), 1))
    check_kernel(ops.conv_weight_grad, (draw(2, 5, 6, 3), draw(2, 3, 4, 8), 1))
    check_kernel(ops.rotate_taps, (draw(2, 18), draw(9, 9)))


def test_operators_guard_their_memory():
    x, dz, weights = draw(2, 5, 6, 4), draw(2, 3, 4, 8), draw(2, 8, 4, 9)
    for message, call in (
        ("x must have the shape", lambda: ops.conv(x, weights, 0, True)),
        ("x must be of type Float", lambda: ops.conv(x.double(), weights, 0, False)),
        ("x must be contiguous", lambda: ops.conv(x.transpose(1, 2), weights, 0, False)),
        ("weights must have the shape", lambda: ops.conv(x, weights[0], 0, False)),
        ("weights must be of type Float", lambda: ops.conv(x, weights.half(), 0, False)),
        ("no multiple of the number of networks, 2", lambda: ops.conv(x[:1], weights, 0, False)),
        ("padding must not be negative", lambda: ops.conv(x, weights, -1, False)),
        ("noise must have the shape", lambda: ops.conv_block(x, weights, draw(2), draw(2, 5, 6), 1)),
        ("border must be 0 or 1", lambda: ops.conv_block(x, weights, draw(2), draw(2, 3, 4), 2)),
        ("3 x 3 pixels or more", lambda: ops.conv(x[:, :2].contiguous(), weights, 0, False)),
        ("dz must have the shape", lambda: ops.conv_weight_grad(x, dz[:, 1:].contiguous(), 1)),
        ("dz must be of type Float", lambda: ops.conv_weight_grad(x, dz.double(), 1)),
        ("no multiple of the number of networks, 0", lambda: ops.conv_weight_grad(x, dz, 0)),
        ("matrix must have the shape", lambda: ops.rotate_taps(draw(2, 8), draw(9, 9))),
        ("rows of matrix must be contiguous", lambda: ops.rotate_taps(draw(9, 2).T, draw(9, 9))),
        ("basis must have the shape", lambda: ops.rotate_taps(draw(2, 9), draw(3, 9))),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


@pytest.mark.parametrize(("rows", "kernels"), [(1, 1), (3, 7), (2, 5000), (2, 0), (0, 4)])
def test_rotate_taps(rows, kernels):
    matrix, basis = draw(rows, 9 * kernels + 5)[:, 2 : 2 + 9 * kernels], draw(9, 9)
    poison(rows, 9 * kernels)
    found = OneDnnBackend().rotate_taps(matrix, basis)
    torch.testing.assert_close(
        found.double(), LibraryBackend().rotate_taps(matrix.double(), basis.double()), atol=5e-6, rtol=0
    )
