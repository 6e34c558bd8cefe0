"""The convolutions and blocks: forward, input gradient, weight gradient."""

import pytest
import torch
from triton_reference import TYPES, Case, check, make, nchw, nhwc, noise_field, pack, unpack, with_types

from andfast.ops.backends.triton import conv
from andfast.ops.backends.triton.backend import TritonBackend
from andfast.ops.backends.triton.block_grad import new_partials
from andfast.ops.backends.triton.common import INTERPRET
from andfast.ops.backends.triton.configs import config
from andfast.ops.backends.triton.conv_input_grad import pooled_input_grad

kernels = TritonBackend()

# N, images a network, size, widths: single pixels and lines, several patches, narrow ends, blocks of channels.
SHAPES = [
    (1, 2, (5, 7), (3, 5)),
    (3, 1, (1, 9), (16, 64)),
    (2, 2, (1, 1), (64, 3)),
    (1, 1, (9, 18), (64, 64)),
    (2, 2, (10, 3), (5, 3)),
    (1, 1, (4, 3), (70, 66)),
]
shapes = with_types("shape", SHAPES)
# Every shape with one kind of noise, the first with both: draws are slow in the interpreter.
KINDS = ["map", "gaussian", "map", "gaussian", "map", "gaussian", "map"]
blocks = with_types("block", list(zip([SHAPES[0], *SHAPES], KINDS, strict=True)))


def weights(case: Case, backward: bool = False) -> tuple[torch.Tensor, ...]:
    return kernels.pack_weights(case.centre, case.deviation, case.x.dtype, backward)


def twice(function, *arguments):
    """The results of a call; on a GPU, where programs run in any order, after a second one gave the same bits."""
    if INTERPRET.value:
        return function(*arguments)
    first, second = function(*arguments), function(*arguments)
    for one, other in zip(*((r if isinstance(r, tuple) else (r,)) for r in (first, second)), strict=True):
        assert torch.equal(one, other)
    return first


@shapes
def test_conv(shape, dtype, device):
    case = make(*shape, dtype, device)
    exact, own = (case.convolve(nchw(case.x).to(kind), case.taps(kind), kind) for kind in (torch.float64, dtype))
    check(nchw(kernels.conv(case.x, weights(case))), exact, own)


@blocks
def test_block(block, dtype, device):
    shape, kind = block
    case = make(*shape, dtype, device, kind)
    y, sign_mask = twice(kernels.block, case.x, weights(case), case.epilogue_out)

    def reference(precision):
        z = case.convolve(nchw(case.x).to(precision), case.taps(precision), precision)
        noise = noise_field(case.epilogue_out, case.images, shape[2], shape[3][1], precision)
        return z, z + case.slopes_minus_one(precision) * z.clamp(max=0) + noise

    z, exact = reference(torch.float64)
    check(nchw(y), exact, reference(dtype)[1])
    sure = z.abs() > 1e-5
    assert torch.equal(unpack(sign_mask, shape[3][1])[sure], (z < 0)[sure])


@pytest.mark.parametrize("band", [1, 3, 7])
@pytest.mark.parametrize(
    ("widths", "kind", "dtype"), [((64, 64), "map", torch.bfloat16), ((40, 70), "gaussian", torch.float16)], ids=str
)
def test_bands_of_rows(widths, kind, dtype, band, device, monkeypatch):
    """Several strips, the last in part, and bands of any height: right, and the same bits."""
    block = ((2, 1, (7, 67), widths), kind)
    case = make(*block[0], dtype, device, kind)
    expected = kernels.block(case.x, weights(case), case.epilogue_out)
    asked = []
    monkeypatch.setattr(conv, "band_of", lambda height, strips: asked.append(strips) or band)
    for actual, other in zip(kernels.block(case.x, weights(case), case.epilogue_out), expected, strict=True):
        assert torch.equal(actual, other)
    if asked or INTERPRET.value:  # not before Hopper
        assert asked == [2 * 2 * -(-widths[1] // 64)]
    test_block(block, dtype, device)


def test_a_band_takes_what_multiprocessors_there_are():
    assert conv.band_of(256, 48 * 4) == 64  # 768 programs, three times all that run at once
    assert conv.band_of(256, 4) == 4
    assert conv.band_of(1, 4) == conv.band_of(0, 4) == 1


@shapes
def test_input_grad(shape, dtype, device):
    case = make(*shape, dtype, device)

    def gradient(precision):
        x = nchw(case.x).to(precision).requires_grad_()
        case.convolve_merged(x, precision).backward(nchw(case.dz).to(precision))
        return x.grad

    actual = kernels.conv_input_grad(case.dz, weights(case, backward=True))
    check(nchw(actual), gradient(torch.float64), gradient(dtype))


def inverse_slopes(slope_minus_one: torch.Tensor) -> torch.Tensor:
    """As csrc/math.h has them, in float64."""
    slope = 1 + slope_minus_one.double()
    near = slope.abs() < 1 / 1024
    return torch.where(near, torch.where(slope < 0, -1024.0, 1024.0), 1 / torch.where(near, 1, slope))


def back_through_block(case: Case, y: torch.Tensor, negative: torch.Tensor, kind: torch.dtype):
    """dz, dslope and dnoise of the block that made `y`, all (B, C, H, W) or float, computed in `kind`."""
    x = y.to(kind).requires_grad_()
    case.convolve_merged(x, kind).backward(nchw(case.dz).to(kind))
    dy = x.grad
    noise = noise_field(case.epilogue_in, case.images, y.shape[-2:], y.shape[1], kind)
    z = (x.detach() - noise) * negative
    networks = len(case.slope_minus_one)
    dslope = (dy * z).view(networks, -1).sum(1) * inverse_slopes(case.slope_minus_one).to(kind)
    by_network = dy.unflatten(0, (networks, -1))
    if case.epilogue_in.seed is None:
        dnoise = by_network.sum(dim=(1, 2))
    else:
        unit = case.epilogue_in._replace(noise=torch.ones_like(case.epilogue_in.noise))
        field = noise_field(unit, case.images, y.shape[-2:], y.shape[1], kind)
        dnoise = (by_network * field.unflatten(0, (networks, -1))).sum(dim=(1, 3, 4))
    return dy * torch.where(negative, 1 + case.slopes_minus_one(kind), 1), dslope, dnoise


def check_back_through_block(case: Case) -> None:
    dtype = case.x.dtype
    negative = torch.rand(nchw(case.x).shape, generator=torch.Generator().manual_seed(1)).to(case.x.device) < 0.5
    arguments = (case.dz, weights(case, True), case.x, pack(negative), case.epilogue_in)
    dz, dslope, dnoise = twice(kernels.block_input_grad, *arguments)
    exact, own, single = (
        back_through_block(case, nchw(case.x), negative, kind) for kind in (torch.float64, dtype, torch.float32)
    )
    check(nchw(dz), exact[0], own[0])
    # Sums are float32's whatever the type; a few float32 roundings more than PyTorch's, for another order.
    for actual, wide, plain in ((dslope, exact[1], single[1]), (dnoise, exact[2], single[2])):
        assert actual.dtype == torch.float32
        assert actual.shape == wide.shape
        error, allowed = (actual.double() - wide).abs().max(), (plain.double() - wide).abs().max()
        scale = wide.abs().max() + exact[0].abs().max()
        assert error <= 2 * allowed + 2e-6 * scale, (error, allowed, scale)


@blocks
def test_input_grad_block(block, dtype, device):
    shape, kind = block
    check_back_through_block(make(*shape, dtype, device, kind))


@blocks
def test_input_grad_of_a_pooled_block(block, dtype, device):
    shape, kind = block
    case = make(*shape, dtype, device)
    negative = case.x.clamp(max=0)
    field = torch.randn(case.x.shape[:3], generator=torch.Generator().manual_seed(1)).to(device)
    packed, tile = weights(case, True)[0], config("input_grad", case.x, shape[3][1], shape[3][0]).tile
    dslope, dnoise = new_partials(case.x, tile, gaussian_noise=True)

    def gradient(precision):
        x = nchw(case.x).to(precision).requires_grad_()
        case.convolve_merged(x, precision).backward(nchw(case.dz).to(precision))
        of_field = (x.grad * field[:, None].to(precision)).sum(dim=(2, 3))
        return x.grad, (x.grad * nchw(negative).to(precision)).sum(dim=(1, 2, 3)), of_field

    fields = field if kind == "gaussian" else None
    dpooled = pooled_input_grad(case.dz, packed, negative, fields, dslope, dnoise)
    exact, own = gradient(torch.float64), gradient(dtype)
    check(nchw(dpooled), exact[0], own[0])
    scale = exact[0].abs().max()
    torch.testing.assert_close(dslope.sum(dim=(1, 2)).double() / scale, exact[1] / scale, atol=1e-4, rtol=1e-5)
    if kind == "gaussian":
        torch.testing.assert_close(dnoise.sum(1).double() / scale, exact[2] / scale, atol=1e-4, rtol=1e-5)
    else:
        assert dnoise.isnan().all()  # the noise map's gradient is the pooling's


@pytest.mark.parametrize("slope_minus_one", [-1.0, -1.0005, -0.9995, -1 - 1 / 1024])
def test_slopes_near_zero(slope_minus_one, device):
    case = make(1, 1, (3, 5), (16, 16), torch.float32, device)
    case.slope_minus_one = torch.full_like(case.slope_minus_one, slope_minus_one)
    case.epilogue_in = case.epilogue_in._replace(slope_minus_one=case.slope_minus_one)
    check_back_through_block(case)


@shapes
def test_weight_grad(shape, dtype, device):
    case = make(*shape, dtype, device)

    def gradient(precision):
        taps = case.taps(precision).requires_grad_()
        case.convolve(nchw(case.x).to(precision), taps, precision).backward(nchw(case.dz).to(precision))
        return taps.grad

    actual = twice(kernels.conv_weight_grad, case.x, case.dz, shape[0])
    check(actual, gradient(torch.float64), gradient(torch.float32))


@pytest.mark.parametrize("programs", [1, 40])
def test_weight_grad_of_any_number_of_shares(programs, device, monkeypatch):
    monkeypatch.setattr("andfast.ops.backends.triton.conv_weight_grad._PROGRAMS", programs)
    test_weight_grad((1, 2, (5, 33), (3, 5)), torch.float32, device)


def test_gradients_are_those_of_finite_differences(device):
    """The forward and the backward kernels fit together: <dz, conv(v)> = <input_grad(dz), v>, and for the weights."""
    case = make(1, 2, (6, 5), (5, 4), torch.float32, device)
    v = torch.randn(case.x.shape, generator=torch.Generator().manual_seed(3)).to(device)
    moved = kernels.conv(v, weights(case))
    back = kernels.conv_input_grad(case.dz, weights(case, backward=True))
    torch.testing.assert_close((moved * case.dz).sum(), (back * v).sum(), rtol=1e-4, atol=1e-5)
    other = torch.randn(case.deviation.shape, generator=torch.Generator().manual_seed(4)).to(device)
    moved = kernels.conv(case.x, kernels.pack_weights(torch.zeros_like(case.centre), other, torch.float32, False))
    back = kernels.conv_weight_grad(case.x, case.dz, 1)
    torch.testing.assert_close((moved * case.dz).sum(), (back * other).sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_to_nhwc(dtype, device):
    image = torch.rand(2, 3, 4, 5, device=device).transpose(2, 3)
    activation = kernels.to_nhwc(image, dtype)
    assert activation.is_contiguous()
    assert torch.equal(activation, nhwc(image).to(dtype))


def test_what_the_kernels_cannot_index_is_refused(device):
    case = make(2, 1, (2, 2), (3, 3), torch.float32, device)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.conv(case.x.transpose(1, 2), weights(case))
    with pytest.raises(ValueError, match="do not divide"):
        kernels.conv(case.x[:1], weights(case))
    with pytest.raises(ValueError, match="fewer than 2"):
        kernels.conv(torch.empty(1, 2**15, 2**14, 4, device="meta"), weights(case))
