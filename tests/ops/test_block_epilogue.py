"""The compiled operators around a convolution, each against plain float64 PyTorch and its autograd."""

import math

import pytest
import torch
import torch.nn.functional as F
from generator_checks import check_kernel
from torch import Tensor

from andfast.ops import dispatch
from andfast.ops.blur_pool import blur_pool_reference
from andfast.ops.noise import gaussian_field_reference

pytestmark = pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))
ops = torch.ops.andfast

# One rounding to the type, of numbers of about 1; sums of many differ by more.
TOLERANCE = {torch.float32: {"atol": 2e-6, "rtol": 2e-6}, torch.bfloat16: {"atol": 2e-3, "rtol": 8e-3}}
LAYER = 3


class Case:
    """Arguments of the operators, and what they should give: float64 tensors with gradients."""

    def __init__(
        self, dtype: torch.dtype, networks: int, group: int, size: tuple[int, int], channels: int, field: bool
    ):
        generator = torch.Generator().manual_seed(channels)
        images = networks * group

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.a, self.b = draw(images, *size, channels).to(dtype), draw(images, *size, channels).to(dtype)
        self.slope_minus_one = torch.tensor([-0.3, 0.4, -1.7])[:networks]
        self.seed = torch.tensor([5, 2**62 + 7, 9])[:networks] if field else None
        self.noise = draw(networks, channels) * 0.3 if field else draw(networks, *size) * 0.3

        self.z = (self.a.double() + self.b.double()).requires_grad_()
        self.wide_slope = self.slope_minus_one.double().requires_grad_()
        self.wide_noise = self.noise.double().requires_grad_()
        each = self.z.unflatten(0, (networks, group))
        if field:
            fields = torch.stack([gaussian_field_reference(seed, LAYER, group, size)[:, 0] for seed in self.seed])
            added = self.wide_noise[:, None, None, None] * fields.double()[..., None]
        else:
            added = self.wide_noise[:, None, :, :, None]
        bent = self.wide_slope.view(-1, 1, 1, 1, 1) * torch.where(each < 0, each, 0)
        self.y = (each + bent + added).flatten(0, 1)

    def gradients(self, output: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, (self.z, self.wide_slope, self.wide_noise), grad.double())

    @property
    def tail(self) -> tuple:
        return self.slope_minus_one, self.noise, self.seed, LAYER


def padded(image: Tensor) -> Tensor:
    """(B, H, W, C) with a replicated border of one pixel."""
    return F.pad(image.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1)


def pooled(image: Tensor, scale: int) -> Tensor:
    return blur_pool_reference(image.permute(0, 3, 1, 2), scale).permute(0, 2, 3, 1)


def bits(sign_mask: Tensor, channels: int) -> Tensor:
    unpacked = sign_mask[..., None] >> torch.arange(8) & 1
    assert not unpacked.flatten(-2)[..., channels:].any()
    return unpacked.flatten(-2)[..., :channels].bool()


def poison(*shapes: tuple[int, ...], dtype: torch.dtype) -> None:
    """Leave NaN in the memory that the next tensors of these shapes are likely to get."""
    _ = [torch.full(shape, math.nan, dtype=dtype) for shape in shapes for _ in range(3)]


CASES = [(1, 1, (1, 1), 1), (1, 2, (3, 5), 3), (3, 2, (6, 4), 8), (2, 1, (1, 7), 21), (1, 3, (8, 6), 64)]
by_case = pytest.mark.parametrize(("networks", "group", "size", "channels"), CASES)
by_type = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
by_noise = pytest.mark.parametrize("field", [False, True])


@by_case
@by_type
@by_noise
@pytest.mark.parametrize("border", [0, 1])
def test_tail(networks, group, size, channels, dtype, field, border):
    case = Case(dtype, networks, group, size, channels, field)
    poison(case.a.shape, dtype=dtype)
    y, sign_mask = ops.block_epilogue(case.a, case.b, *case.tail, border)
    torch.testing.assert_close(y.double(), padded(case.y) if border else case.y, **TOLERANCE[dtype])
    assert torch.equal(bits(sign_mask, channels), case.z < 0)
    alone, _ = ops.block_epilogue((case.a + case.b).to(dtype), None, *case.tail, border)
    torch.testing.assert_close(alone, y, atol=2e-2, rtol=2e-2)


@by_case
@by_type
@by_noise
@pytest.mark.parametrize("border", [0, 1])
def test_tail_grad(networks, group, size, channels, dtype, field, border):
    case = Case(dtype, networks, group, size, channels, field)
    exact = padded(case.y) if border else case.y
    dy = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    # The exact y and sign_mask stand in for the operator's: its own error has a test of its own.
    _, sign_mask = ops.block_epilogue(case.a, case.b, *case.tail, border)
    y = exact.detach().to(dtype).contiguous()
    dz, dslope, dnoise = ops.block_epilogue_grad(dy, y, sign_mask, *case.tail, border)
    expected = case.gradients(exact, dy)
    torch.testing.assert_close(dz.double(), expected[0], **TOLERANCE[dtype])
    # y is rounded, and dslope a sum over it: rounding errors of all elements, at random.
    spread = y.numel() ** 0.5 * torch.finfo(dtype).eps
    torch.testing.assert_close(dslope.double(), expected[1], atol=4 * spread + 1e-5, rtol=1e-5)
    torch.testing.assert_close(dnoise.double(), expected[2], atol=2e-5, rtol=2e-5)


@by_type
@by_noise
@pytest.mark.parametrize("border", [0, 1])
@pytest.mark.parametrize(
    ("networks", "group", "size", "channels", "scale"),
    [(1, 1, (2, 2), 1, 2), (1, 2, (6, 9), 3, 3), (3, 2, (8, 12), 8, 4), (2, 1, (4, 4), 21, 4), (1, 2, (10, 5), 64, 5)],
)
def test_tail_pool(networks, group, size, channels, scale, dtype, field, border):
    case = Case(dtype, networks, group, size, channels, field)
    low, negative, sign_mask = ops.block_epilogue_pool(case.a, case.b, *case.tail, scale, border)
    exact = pooled(case.y, scale)
    torch.testing.assert_close(low.double(), padded(exact) if border else exact, **TOLERANCE[dtype])
    torch.testing.assert_close(negative.double(), pooled(torch.where(case.z < 0, case.z, 0), scale), **TOLERANCE[dtype])
    assert torch.equal(bits(sign_mask, channels), case.z < 0)
    dlow = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    dz = ops.block_epilogue_pool_grad(dlow, sign_mask, case.slope_minus_one, scale)
    torch.testing.assert_close(dz.double(), case.gradients(exact, dlow)[0], **TOLERANCE[dtype])


@by_type
@pytest.mark.parametrize("slope_minus_one", [-0.98, -1.01, -0.995])
def test_small_slopes_have_their_gradient(dtype, slope_minus_one):
    case = Case(dtype, 1, 2, (40, 40), 64, False)
    case.slope_minus_one[0] = slope_minus_one
    y, sign_mask = ops.block_epilogue(case.a, case.b, *case.tail, 0)
    dy = torch.ones_like(y)
    _, dslope, _ = ops.block_epilogue_grad(dy, y, sign_mask, *case.tail, 0)
    exact = case.z.clamp(max=0).sum().item()
    assert dslope.item() == pytest.approx(exact, rel=1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("slope_minus_one", [-1.0, -1.0005])
def test_slopes_near_zero_keep_their_gradient_finite(slope_minus_one):
    case = Case(torch.float32, 1, 2, (4, 4), 8, False)
    case.slope_minus_one[0] = slope_minus_one
    y, sign_mask = ops.block_epilogue(case.a, case.b, *case.tail, 0)
    dz, dslope, dnoise = ops.block_epilogue_grad(torch.ones_like(y), y, sign_mask, *case.tail, 0)
    exact = case.z.clamp(max=0).sum().item()
    assert dslope.item() == pytest.approx(exact * abs(1 + slope_minus_one) * 1024, rel=1e-3)
    assert torch.equal(dz, torch.where(case.z < 0, 1 + case.slope_minus_one, torch.tensor(1.0)))
    assert dnoise.isfinite().all()


def test_results_do_not_depend_on_threads():
    case = Case(torch.float32, 2, 2, (9, 12), 21, True)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            y, sign_mask = ops.block_epilogue(case.a, case.b, *case.tail, 1)
            found.append((y, sign_mask, *ops.block_epilogue_grad(y, y, sign_mask, *case.tail, 1)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_values_that_are_no_numbers_are_handed_on(value):
    case = Case(torch.bfloat16, 1, 1, (3, 3), 4, False)
    case.a[0, 1, 1, 2] = value
    y, _ = ops.block_epilogue(case.a, case.b, *case.tail, 0)
    assert not y[0, 1, 1, 2].isfinite()
    assert y.isfinite().sum() == y.numel() - 1


@by_noise
def test_opcheck(field):
    case = Case(torch.float32, 2, 1, (4, 6), 9, field)
    y, sign_mask = ops.block_epilogue(case.a, case.b, *case.tail, 1)
    low, _, _ = ops.block_epilogue_pool(case.a, None, *case.tail, 2, 1)
    low = low[:, 1:-1, 1:-1].contiguous()
    for operator, arguments in (
        (ops.block_epilogue, (case.a, case.b, *case.tail, 1)),
        (ops.block_epilogue_grad, (y, y, sign_mask, *case.tail, 1)),
        (ops.block_epilogue_pool, (case.a, None, *case.tail, 2, 1)),
        (ops.block_epilogue_pool_grad, (low, sign_mask, case.slope_minus_one, 2)),
    ):
        check_kernel(operator, arguments)
    for operator, arguments in (
        (ops.blur_pool, (case.a.clone().requires_grad_(), 2)),
        (ops.blur_pool_grad, (low.clone().requires_grad_(), 2)),
        (ops.gaussian_field, (torch.tensor([3, 4]), 1, 2, 3, 5)),
    ):
        torch.library.opcheck(operator, arguments)


def test_operators_guard_their_memory():
    case = Case(torch.float32, 2, 1, (4, 6), 9, False)
    y, sign_mask = ops.block_epilogue(case.a, case.b, *case.tail, 0)
    slope_minus_one, noise, seed, layer = case.tail
    for message, call in (
        ("b must have the shape", lambda: ops.block_epilogue(case.a, case.b[:1], *case.tail, 0)),
        ("b must be of type", lambda: ops.block_epilogue(case.a, case.b.bfloat16(), *case.tail, 0)),
        ("a must be float32 or bfloat16", lambda: ops.block_epilogue(case.a.half(), None, *case.tail, 0)),
        ("a must be contiguous", lambda: ops.block_epilogue(case.a.transpose(1, 2), None, *case.tail, 0)),
        ("no multiple of the number of networks", lambda: ops.block_epilogue(case.a[:1], None, *case.tail, 0)),
        (
            "noise must have the shape",
            lambda: ops.block_epilogue(case.a, None, slope_minus_one, noise[:, :2].contiguous(), seed, layer, 0),
        ),
        ("border must be", lambda: ops.block_epilogue(case.a, None, *case.tail, 2)),
        (
            "sign_mask must have the shape",
            lambda: ops.block_epilogue_grad(y, y, sign_mask[..., :1].clone(), *case.tail, 0),
        ),
        ("y must have the shape", lambda: ops.block_epilogue_grad(y, y[:1], sign_mask, *case.tail, 0)),
        ("multiples of scale", lambda: ops.block_epilogue_pool(case.a, None, *case.tail, 4, 0)),
        ("sign_mask must have the shape", lambda: ops.block_epilogue_pool_grad(y, sign_mask, slope_minus_one, 2)),
        ("multiples of scale", lambda: ops.blur_pool(case.a, 5)),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
