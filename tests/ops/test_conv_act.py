"""conv 3x3 -> LeakyReLU as one operation, against its plain form in float64."""

import pytest
import torch
import torch.nn.functional as F
from generator_checks import check_against_float64, check_kernel, distance, draw, kept_bytes, passes, poison
from torch import Tensor

from andfast.ops import dispatch
from andfast.ops.backends.epilogues import unpack_sign_mask
from andfast.ops.backends.library import LibraryBackend, OneDnnBackend
from andfast.ops.conv_act import conv_act, conv_act_reference

pytestmark = pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))
ops = torch.ops.andfast

# Images, size, in, out.
SHAPES = [(1, (1, 1), 3, 5), (2, (5, 7), 3, 16), (1, (2, 70), 16, 3), (2, (9, 8), 33, 20), (1, (6, 12), 64, 64)]
SLOPES = [None, 0.2, 0.0, "channels"]


def arguments(shape: tuple) -> tuple[list[Tensor], Tensor]:
    images, size, into, out = shape
    given = [draw(images, into, *size), draw(out, into, 3, 3) / (3 * into**0.5), draw(out) / 10]
    return given, draw(images, out, *size)


def slope_of(slope: float | str | None, out: int) -> Tensor | float | None:
    return torch.linspace(-0.3, 1.2, out) if slope == "channels" else slope


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients(shape, slope, dtype):
    given, dy = arguments(shape)
    slope = slope_of(slope, shape[-1])

    def with_slope(function):
        def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return function(x, weight, bias, slope.to(x) if isinstance(slope, Tensor) else slope)

        return run

    check_against_float64(with_slope(conv_act), with_slope(conv_act_reference), given, dy, dtype)


def test_the_plain_form_is_pytorch_s():
    (x, weight, bias), _ = arguments((2, (5, 7), 3, 6))
    conv = torch.nn.Conv2d(3, 6, 3, padding=1)
    conv.load_state_dict({"weight": weight, "bias": bias})
    torch.testing.assert_close(conv_act_reference(x, weight, bias), conv(x))
    torch.testing.assert_close(conv_act_reference(x, weight, bias, 0.1), torch.nn.LeakyReLU(0.1)(conv(x)))
    prelu = torch.nn.PReLU(6)
    torch.testing.assert_close(conv_act_reference(x, weight, bias, prelu.weight), prelu(conv(x)))


def test_slopes_that_are_learned():
    (x, weight, bias), dy = arguments((2, (5, 7), 8, 16))
    given = [x, weight, bias, slope_of("channels", 16)]
    check_against_float64(conv_act, conv_act_reference, given, dy, torch.float32)


def test_any_layout():
    given, dy = arguments((2, (5, 6), 8, 16))
    expected = passes(conv_act, given, dy, torch.float32)
    x, weight, bias = given
    for other in (
        [x.contiguous(memory_format=torch.channels_last), weight.contiguous(memory_format=torch.channels_last), bias],
        [torch.stack([x, x], -1)[..., 0], weight.transpose(0, 1).contiguous().transpose(0, 1), bias.repeat(2)[::2]],
    ):
        other[2] = bias
        for one, two in zip(passes(conv_act, other, dy, torch.float32), expected, strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_no_images():
    weight, bias = draw(4, 3, 3, 3).requires_grad_(), draw(4).requires_grad_()
    y = conv_act(torch.zeros(0, 3, 5, 5), weight, bias, 0.2)
    assert y.shape == (0, 4, 5, 5)
    y.sum().backward()
    assert not weight.grad.any()
    assert not bias.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_kept(dtype):
    """Frozen: a bit a result, or nothing. With weights that want a gradient: x."""
    (x, weight, bias), _ = arguments((2, (5, 6), 8, 16))
    x, weight, bias = x.to(dtype).requires_grad_(), weight.to(dtype), bias.to(dtype)
    pixels = 2 * 5 * 6
    slope = torch.full((16,), 0.2)
    frozen = [weight, bias, slope]
    assert kept_bytes(lambda: conv_act(x, weight, bias, slope), frozen) == {torch.uint8: pixels * 2}
    assert kept_bytes(lambda: conv_act(x, weight, bias), frozen) == {}
    weight.requires_grad_()
    kept = kept_bytes(lambda: conv_act(x, weight, bias, slope), frozen)
    assert kept == {torch.uint8: pixels * 2, dtype: pixels * 8 * dtype.itemsize}


def test_only_what_is_asked_for_has_a_gradient():
    (x, weight, bias), dy = arguments((2, (5, 6), 8, 16))
    expected = passes(conv_act, [x, weight, bias], dy, torch.float32)
    for index in range(3):
        given = [x.detach(), weight.detach(), bias.detach()]
        given[index].requires_grad_()
        conv_act(*given).backward(dy)
        assert torch.equal(given[index].grad, expected[1 + index])
        assert all(tensor.grad is None for tensor in given if not tensor.requires_grad)


def test_compiled_and_under_autocast():
    given, dy = arguments((2, (5, 6), 8, 16))

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return conv_act(x, weight, bias, 0.2)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        passes(compiled, given, dy, torch.float32), passes(function, given, dy, torch.float32), strict=True
    ):
        torch.testing.assert_close(one, other)
    with torch.autocast("cpu", torch.bfloat16):
        found = function(*given)
    assert found.dtype == torch.bfloat16
    assert distance(found, conv_act_reference(*(tensor.double() for tensor in given), 0.2)) < 0.02


def test_opcheck():
    (x, weight, bias), dy = arguments((2, (5, 6), 8, 16))
    images, dz, slope = x.permute(0, 2, 3, 1).contiguous(), dy.permute(0, 2, 3, 1).contiguous(), bias.abs()
    _, sign_mask = ops.conv_act(images, weight, bias, slope, True)
    check_kernel(ops.conv_act, (images, weight, bias, slope, True))
    check_kernel(ops.conv_act, (images, weight, bias, slope, False))
    for dtype in (torch.float32, torch.bfloat16):
        check_kernel(ops.leaky_relu, (dz.to(dtype), slope, True))
        check_kernel(ops.leaky_relu, (dz.to(dtype), slope, False))
        check_kernel(ops.leaky_relu_backward, (dz.to(dtype), sign_mask, slope))
        check_kernel(ops.flip_transpose, ([weight.to(dtype), weight[:3].to(dtype)], 2, 5, 0.2))
    check_kernel(ops.conv_act_input_grad, (dz, weight))
    check_kernel(ops.conv_act_weight_grad, (images, dz, weight))
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    torch.library.opcheck(ops.conv_act_forward, (x, weight, bias, slope, "winograd", True))
    torch.library.opcheck(ops.conv_act_forward, (x, weight, bias, None, "winograd", False))


@pytest.mark.parametrize("kernels", [LibraryBackend(), OneDnnBackend()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_stands_between_convolutions(kernels, dtype):
    z, dy = draw(2, 5, 70, 11).to(dtype), draw(2, 5, 70, 11).flip(0).to(dtype)
    slope = draw(11).to(dtype).float()  # which plain PyTorch rounds
    z[0, 0, 0] = 0
    poison(2, 5, 70, 11, dtype=dtype)
    y, sign_mask = kernels.leaky_relu(z, slope, True)
    exact = torch.where(z > 0, z.double(), z.double() * slope.double())
    torch.testing.assert_close(y.double(), exact.to(dtype).double())
    assert y.is_contiguous()
    assert torch.equal(unpack_sign_mask(sign_mask, 11), ~(z > 0))
    assert kernels.leaky_relu(z, slope, False)[1].numel() == 0
    exact = torch.where(z > 0, dy.double(), dy.double() * slope.double()).to(dtype)
    torch.testing.assert_close(kernels.leaky_relu_backward(dy, sign_mask, slope), exact)

    first, second = draw(4, 9, 3, 3).to(dtype), draw(6, 12, 3, 3).to(dtype)
    second = second.contiguous(memory_format=torch.channels_last)
    flipped = kernels.flip_transpose([first, second], 2, 5, 0.5)
    assert flipped.shape == (5, 10, 3, 3)
    image = draw(1, 10, 6, 7).double()
    parts = zip(image.split([4, 6], 1), (0.5 * first, second), strict=True)
    expected = sum(F.conv_transpose2d(part, weight.double()[:, 2:7], padding=1) for part, weight in parts)
    torch.testing.assert_close(F.conv2d(image, flipped.double(), padding=1), expected)


def test_refused():
    (x, weight, bias), _ = arguments((2, (5, 6), 8, 16))
    for kind, message, call in (
        (TypeError, "x is torch.int64", lambda: conv_act(x.long(), weight, bias)),
        (ValueError, r"weight has shape .* must be \(out, 8, 3, 3\)", lambda: conv_act(x, weight[:, 1:], bias)),
        (ValueError, r"bias has shape \(15,\); it must be \(16,\)", lambda: conv_act(x, weight, bias[1:])),
        (ValueError, r"slope has shape \(15,\)", lambda: conv_act(x, weight, bias, bias[1:])),
        (TypeError, "bias is torch.float64", lambda: conv_act(x, weight, bias.double())),
    ):
        with pytest.raises(kind, match=message):
            call()
    images = x.permute(0, 2, 3, 1).contiguous()
    for message, call in (
        ("x must have the shape", lambda: ops.conv_act(images[..., 1:].contiguous(), weight, bias, bias, True)),
        ("slope must have the shape", lambda: ops.conv_act(images, weight, bias, bias[1:], True)),
        ("slope must have the shape", lambda: ops.leaky_relu(images, bias, True)),
        ("z must be float32 or bfloat16", lambda: ops.leaky_relu(images.double(), bias[:8], True)),
        ("weights must have 9 inputs or more", lambda: ops.flip_transpose([weight], 4, 5, 1.0)),
        ("weights must be of type Float", lambda: ops.flip_transpose([weight, weight.half()], 4, 4, 1.0)),
        ("weight must have the shape", lambda: ops.conv_act(images, weight[0], bias, bias, True)),
        ("dz must have the shape", lambda: ops.conv_act_weight_grad(images, images, weight)),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
