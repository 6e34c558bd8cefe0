"""The anti-aliased pooling, alone and after a block."""

import pytest
import torch
from triton_reference import check, make, nchw, nhwc, noise_field, pack, unpack, with_types

from andfast.ops import blur_pool as reference
from andfast.ops.backends.triton import pool as triton_pool
from andfast.ops.backends.triton.backend import TritonBackend

kernels = TritonBackend()

# Size of the pooled image, scale, channels: one pixel (size = scale), a line, several programs, blocks of channels.
SHAPES = [
    ((1, 1), 2, 3),
    ((1, 1), 4, 64),
    ((1, 9), 3, 5),
    ((5, 7), 2, 16),
    ((1, 2), 5, 70),
    ((1, 2), 8, 3),
]
shapes = with_types("shape", SHAPES)
# The kind of noise, N, images a network, scale, size, widths.
blocks = with_types("block", [("map", 3, 1, 2, (4, 6), (16, 5)), ("gaussian", 1, 2, 3, (6, 3), (3, 64))])


def taps(scale: int) -> torch.Tensor:
    """The definition: a box of `scale` convolved with [1, 2, 1] / 4, float64."""
    return torch.tensor(reference.pooling_taps(scale), dtype=torch.float64)


def pooled(image: torch.Tensor, scale: int) -> torch.Tensor:
    """(B, C, H, W) of any type, in that type, from plain PyTorch alone."""
    kernel = torch.outer(taps(scale), taps(scale)).to(image).expand(image.shape[1], 1, -1, -1)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="reflect")
    return torch.nn.functional.conv2d(padded, kernel, stride=scale, groups=image.shape[1])


@shapes
def test_blur_pool(shape, dtype, device):
    (height, width), scale, channels = shape
    x = torch.randn(2, height * scale, width * scale, channels, generator=torch.Generator().manual_seed(0))
    x = x.to(device, dtype)
    exact = pooled(nchw(x).double(), scale)
    actual = triton_pool.blur_pool(x, scale)
    check(nchw(actual), exact, pooled(nchw(x), scale))
    assert torch.equal(actual, triton_pool.blur_pool(x, scale))


@shapes
def test_blur_pool_grad(shape, dtype, device):
    (height, width), scale, channels = shape
    grad = torch.randn(2, height, width, channels, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    def gradient(precision):
        x = torch.zeros(2, channels, height * scale, width * scale, dtype=precision, device=device, requires_grad=True)
        pooled(x, scale).backward(nchw(grad).to(precision))
        return x.grad

    check(nchw(triton_pool.blur_pool_grad(grad, scale)), gradient(torch.float64), gradient(dtype))


@blocks
def test_block_pool(block, dtype, device):
    kind, networks, images, scale, size, widths = block
    case = make(networks, images, size, widths, dtype, device, kind)
    weights = kernels.pack_weights(case.centre, case.deviation, dtype, False)
    arguments = (case.x, weights, case.epilogue_out, scale)
    result = kernels.block_pool(*arguments)
    assert all(torch.equal(*pair) for pair in zip(result, kernels.block_pool(*arguments), strict=True))
    y, negative, sign_mask = result

    def reference_block(precision):
        z = case.convolve(nchw(case.x).to(precision), case.taps(precision), precision)
        noise = noise_field(case.epilogue_out, case.images, size, widths[1], precision)
        y = z + case.slopes_minus_one(precision) * z.clamp(max=0) + noise
        return z, pooled(y, scale), pooled(z.clamp(max=0), scale)

    exact, own = reference_block(torch.float64), reference_block(dtype)
    check(nchw(y), exact[1], own[1])
    check(nchw(negative), exact[2], own[2])
    sure = exact[0].abs() > 1e-5
    assert torch.equal(unpack(sign_mask, widths[1])[sure], (exact[0] < 0)[sure])


@shapes
def test_pool_grad(shape, dtype, device):
    (height, width), scale, channels = shape
    generator = torch.Generator().manual_seed(0)
    full = (height * scale, width * scale)
    slope_minus_one = torch.tensor([-0.3, 0.4, -1.5]).to(device)
    grad = torch.randn(3, height, width, channels, generator=generator).to(device, dtype)
    negative = (torch.rand(3, channels, *full, generator=generator) < 0.5).to(device)

    def gradient(precision):
        x = torch.zeros(3, channels, *full, dtype=precision, device=device, requires_grad=True)
        pooled(x, scale).backward(nchw(grad).to(precision))
        return x.grad, x.grad * torch.where(negative, 1 + slope_minus_one.to(precision)[:, None, None, None], 1)

    (dy, exact), own = gradient(torch.float64), gradient(dtype)[1]
    arguments = (grad, pack(negative), slope_minus_one, scale)
    actual = kernels.block_pool_grad(*arguments)
    check(nchw(actual), exact, own)
    dnoise = torch.empty(3, -(-channels // 64), *full, device=device)
    assert torch.equal(actual, triton_pool.block_pool_grad(*arguments, dnoise))
    check(dnoise.sum(1), dy.sum(1), gradient(torch.float32)[0].sum(1))


def test_a_size_that_is_no_multiple_of_the_scale_is_refused(device):
    with pytest.raises(ValueError, match="multiples of the scale, 3"):
        triton_pool.blur_pool(nhwc(torch.zeros(1, 3, 6, 7, device=device)), 3)
