"""ESRGAN's dense block as one operation, against its plain form in float64."""

import pytest
import torch
import torch.nn.functional as F
from generator_checks import (
    check_against_float64,
    check_kernel,
    check_threads,
    distance,
    draw,
    kept_bytes,
    nhwc,
    passes,
    poison,
    unpack_bits,
)
from torch import Tensor

from andfast.ops import dispatch, use_backend
from andfast.ops.backends.epilogues import pack_sign_mask, unpack_sign_mask
from andfast.ops.backends.library import LibraryBackend
from andfast.ops.dense_block import dense_block, dense_block_reference

pytestmark = pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))
ops = torch.ops.andfast

# Images, size, features, growth: single pixels, odd sizes, channels that fill the registers and bytes or not, rows of
# more tiles than are multiplied together.
SHAPES = [
    (1, (1, 1), 3, 2),
    (2, (5, 7), 8, 4),
    (1, (2, 70), 16, 9),
    (3, (8, 6), 20, 16),
    (2, (9, 12), 64, 32),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)

HAS_TILES = "cpu" not in dispatch.unavailable and ops.amx_available()
needs_tiles = pytest.mark.skipif(not HAS_TILES, reason="the processor has no AMX")
emulated_or_not = pytest.mark.parametrize("emulate", [True, pytest.param(False, marks=needs_tiles)])


def parameters(features: int, growth: int) -> list[Tensor]:
    """Five weights, then five biases, of the size that keeps the signal's."""
    outputs = [growth] * 4 + [features]
    inputs = [features + k * growth for k in range(5)]
    weights = [draw(out, into, 3, 3) / (3 * into**0.5) for out, into in zip(outputs, inputs, strict=True)]
    return [*weights, *(draw(out) / 10 for out in outputs)]


def fused(x: Tensor, *values: Tensor) -> Tensor:
    return dense_block(x, values[:5], values[5:])


def plain(x: Tensor, *values: Tensor) -> Tensor:
    return dense_block_reference(x, values[:5], values[5:])


@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients(shape, dtype):
    images, size, features, growth = shape
    x, dy = draw(images, features, *size), draw(images, features, *size)
    check_against_float64(fused, plain, [x, *parameters(features, growth)], dy, dtype)


def test_the_plain_form_is_esrgan_s():
    """Written out as BasicSR's ResidualDenseBlock has it."""
    x, values = draw(2, 6, 5, 4), parameters(6, 3)
    convs = []
    for weight, bias in zip(values[:5], values[5:], strict=True):
        conv = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, 1, 1)
        conv.load_state_dict({"weight": weight, "bias": bias})
        convs.append(conv)
    act = torch.nn.LeakyReLU(0.2)
    x1 = act(convs[0](x))
    x2 = act(convs[1](torch.cat((x, x1), 1)))
    x3 = act(convs[2](torch.cat((x, x1, x2), 1)))
    x4 = act(convs[3](torch.cat((x, x1, x2, x3), 1)))
    expected = convs[4](torch.cat((x, x1, x2, x3, x4), 1)) * 0.2 + x
    torch.testing.assert_close(plain(x, *values), expected)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
def test_any_layout(layout):
    values = parameters(8, 8)
    x, dy = draw(2, 8, 6, 5), draw(2, 8, 6, 5)
    expected = passes(plain, [x, *values], dy, torch.float32)
    if layout == "channels_last":
        x, dy, *weights = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy, *values[:5]))
    elif layout == "transposed":
        x, dy, *weights = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (x, dy, *values[:5]))
    else:
        x, dy, *weights = (torch.stack([t, t], -1)[..., 0] for t in (x, dy, *values[:5]))
    found = passes(fused, [x, *weights, *values[5:]], dy, torch.float32)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_gradient_without_strides():
    """As the gradient of a sum has it."""
    x, values = draw(1, 8, 4, 4).requires_grad_(), parameters(8, 4)
    (found,) = torch.autograd.grad(fused(x, *values).sum(), x)
    (expected,) = torch.autograd.grad(plain(x, *values).sum(), x)
    torch.testing.assert_close(found, expected)


def test_weight_gradients_lie_as_the_weights_do():
    values = [value.requires_grad_() for value in parameters(16, 8)]
    values[:5] = [w.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for w in values[:5]]
    fused(draw(1, 16, 4, 5), *values).sum().backward()
    assert all(value.grad.stride() == value.stride() for value in values)


@shapes
def test_weight_gradients_in_one_product(shape):
    images, size, features, growth = shape
    x, dy, values = draw(images, features, *size), draw(images, features, *size), parameters(features, growth)
    values[::2] = [v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for v in values[::2]]
    kernels, exact = LibraryBackend(), passes(plain, [x, *values], dy, torch.float64)
    own = passes(plain, [x, *values], dy, torch.float32)
    x, dy = (tensor.permute(0, 2, 3, 1).contiguous() for tensor in (x, dy))
    _, intermediates, sign_mask = kernels.dense_block(x, values[:5], values[5:], True)
    _, dintermediates = kernels.dense_block_input_grad(dy, values[:5], sign_mask)
    found = kernels.dense_block_weight_grad(x, intermediates, dy, dintermediates, values[:5])
    for grad, weight, wanted, plainly in zip(found, values[:5], exact[2:7], own[2:7], strict=True):
        assert grad.stride() == weight.stride()
        assert distance(grad, wanted) <= 2 * distance(plainly, wanted) + 1e-6


def test_no_images():
    x, values = torch.zeros(0, 8, 4, 4, requires_grad=True), [value.requires_grad_() for value in parameters(8, 4)]
    y = fused(x, *values)
    assert y.shape == x.shape
    grads = torch.autograd.grad(y.sum(), [x, *values])
    assert all(torch.equal(grad, torch.zeros_like(value)) for grad, value in zip(grads[1:], values, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_at_zero_the_slope_counts_as_in_pytorch(dtype):
    values = [value.to(dtype) for value in parameters(8, 8)]
    values[5:] = [torch.zeros_like(bias) for bias in values[5:]]
    x = torch.zeros(1, 8, 4, 4, dtype=dtype, requires_grad=True)
    dy = draw(1, 8, 4, 4).to(dtype)
    found, expected = (torch.autograd.grad(function(x, *values), x, dy)[0] for function in (fused, plain))
    assert distance(found, expected.double()) < (1e-6 if dtype == torch.float32 else 0.02)


def test_images_too_large_to_keep_their_tiles():
    """Above a size, tiles are transformed anew for every convolution; below it, once."""
    values = parameters(16, 4)
    large = draw(1, 16, 376, 360)
    found, expected = fused(large, *values), plain(large, *values)
    assert distance(found, expected.double()) < 1e-6
    # The same pixels as a small image has, but for what lies beyond its borders.
    part = fused(large[..., :40, :40], *values)
    torch.testing.assert_close(found[..., :30, :30], part[..., :30, :30], atol=1e-5, rtol=1e-5)


def test_many_images_are_each_computed_as_alone():
    """More than are kept at once, and a last few that are fewer."""
    values, images = parameters(16, 4), draw(7, 16, 96, 90)
    with torch.no_grad():
        together = fused(images, *values)
        assert all(torch.equal(fused(images[i : i + 1], *values)[0], together[i]) for i in range(7))


def test_results_do_not_depend_on_threads():
    values, x, dy = parameters(16, 8), draw(3, 16, 20, 31), draw(3, 16, 20, 31)
    check_threads(lambda: passes(fused, [x, *values], dy, torch.float32)[:7])  # the biases' are torch's own sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_kept(dtype):
    """Frozen: a bit a result. Else: x and the results, each once."""
    x = draw(2, 16, 6, 8).to(dtype).requires_grad_()
    values = [value.to(dtype) for value in parameters(16, 8)]
    pixels = 2 * 6 * 8
    assert kept_bytes(lambda: fused(x, *values), values) == {torch.uint8: pixels * 4}
    for value in values:
        value.requires_grad_()
    kept = kept_bytes(lambda: fused(x, *values), values)
    assert kept == {torch.uint8: pixels * 4, dtype: pixels * (16 + 4 * 8) * dtype.itemsize}
    with torch.no_grad():
        assert kept_bytes(lambda: fused(x, *values), values) == {}


def test_only_some_parameters_want_gradients():
    x, values = draw(1, 8, 5, 5), parameters(8, 4)
    expected = passes(plain, [x, *values], torch.ones(1, 8, 5, 5), torch.float32)
    values[6].requires_grad_()  # a bias alone
    (found,) = torch.autograd.grad(fused(x, *values).sum(), values[6])
    torch.testing.assert_close(found, expected[8], atol=1e-5, rtol=1e-5)


def test_what_is_no_number_reaches_its_image_alone():
    x, values = draw(2, 8, 30, 30), parameters(8, 4)
    x[0, 3, 15, 15] = torch.nan
    y = fused(x, *values)
    assert y[0, :, 15, 15].isnan().any()
    assert y[0, :, 0, 0].isfinite().all()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("channels", [1, 7, 8, 9, 32])
def test_signs(channels):
    values = draw(2, 3, channels)
    values[0, 0, 0] = 0
    packed = pack_sign_mask(values <= 0)
    assert packed.shape == (2, 3, (channels + 7) // 8)
    bits = torch.cat([values <= 0, torch.zeros(2, 3, -channels % 8, dtype=torch.bool)], 2).unflatten(2, (-1, 8))
    assert torch.equal(packed, (bits.int() * 2 ** torch.arange(8)).sum(3).to(torch.uint8))
    assert torch.equal(unpack_sign_mask(packed, channels), ~(values > 0))


def test_compiled_and_under_autocast():
    x, values = draw(2, 8, 6, 6), parameters(8, 4)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        passes(compiled, [x, *values], x, torch.float32), passes(fused, [x, *values], x, torch.float32), strict=True
    ):
        torch.testing.assert_close(one, other)
    with torch.autocast("cpu", torch.bfloat16):
        found = fused(x, *values)
    assert found.dtype == torch.bfloat16
    assert distance(found, plain(x.double(), *(value.double() for value in values))) < 0.02


def by_tiles(x: Tensor, dy: Tensor, values: list[Tensor], emulate: bool) -> list[Tensor]:
    """y, the intermediates, their sign mask, dx and dz of the first four convolutions, channels last; in bfloat16."""
    x, dy = nhwc(x).contiguous(), nhwc(dy).contiguous()
    y, intermediates, sign_mask = ops.amx_dense_block(x, values[:5], values[5:], 0.2, 0.2, True, emulate)
    return [
        y,
        intermediates,
        sign_mask,
        *ops.amx_dense_block_input_grad(dy, values[:5], sign_mask, 0.2, 0.2, emulate),
    ]


def by_autograd(x: Tensor, dy: Tensor, values: list[Tensor]) -> list[Tensor]:
    """The same in plain PyTorch, without the sign mask."""
    parts, zs = [x.requires_grad_()], []
    for weight, bias in zip(values[:4], values[5:9], strict=True):
        zs.append(F.conv2d(torch.cat(parts, 1), weight, bias, padding=1))
        parts.append(F.leaky_relu(zs[-1], 0.2))
    y = x + 0.2 * F.conv2d(torch.cat(parts, 1), values[4], values[9], padding=1)
    dx, *dzs = torch.autograd.grad(y, [x, *zs], dy)
    return [nhwc(result) for result in (y.detach(), torch.cat(parts[1:], 1).detach(), dx, torch.cat(dzs[::-1], 1))]


def half(*tensors: Tensor) -> list[Tensor]:
    return [tensor.bfloat16() for tensor in tensors]


# Parts of more than a block of 32 channels, too.
@pytest.mark.parametrize("shape", [*SHAPES, (1, (3, 3), 33, 40), (1, (1, 64), 1, 1)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@emulated_or_not
def test_tiles(shape, layout, emulate):
    images, size, features, growth = shape
    x, dy, *values = half(draw(images, features, *size), draw(images, features, *size), *parameters(features, growth))
    exact = by_autograd(x.double(), dy.double(), [value.double() for value in values])
    plainly = by_autograd(x, dy, values)
    values[:5] = [weight.contiguous(memory_format=layout) for weight in values[:5]]
    poison(images, *size, 4 * growth, dtype=torch.bfloat16)
    y, intermediates, sign_mask, dx, dzs = by_tiles(x.detach(), dy, values, emulate)
    for found, own, wanted in zip((y, intermediates, dx, dzs), plainly, exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert found.shape == wanted.shape
        assert distance(found, wanted) <= 2 * distance(own, wanted) + 4e-3
    assert torch.equal(unpack_bits(sign_mask, growth), intermediates.unflatten(3, (4, growth)) <= 0)


@pytest.mark.parametrize("shape", [*SHAPES, (1, (3, 3), 33, 40)], ids=str)
@needs_tiles
def test_tiles_give_the_same_bits_as_plain_products(shape):
    images, size, features, growth = shape
    x, dy, *values = half(draw(images, features, *size), draw(images, features, *size), *parameters(features, growth))
    for found, plainly in zip(by_tiles(x, dy, values, False), by_tiles(x, dy, values, True), strict=True):
        assert torch.equal(found, plainly)


@emulated_or_not
def test_tiles_of_many_images_are_each_computed_as_alone(emulate):
    """More than are processed together, and a last few that are fewer; one of them holds no numbers."""
    x, dy, *values = half(draw(20, 5, 30, 40), draw(20, 5, 30, 40), *parameters(5, 3))
    x[17], dy[17] = torch.nan, torch.inf
    together = by_tiles(x, dy, values, emulate)
    assert together[0][17].isnan().all()
    for image in (0, 16, 18, 19):
        alone = by_tiles(x[image : image + 1], dy[image : image + 1], values, emulate)
        assert all(torch.equal(one[0], many[image]) for one, many in zip(alone, together, strict=True))


@emulated_or_not
def test_tiles_pass_on_what_is_no_number_to_its_neighbours_alone(emulate):
    x, dy, *values = half(draw(1, 8, 30, 30), draw(1, 8, 30, 30), *parameters(8, 4))
    for tensor in (x, dy):
        tensor[0, 3, 15, 29] = torch.nan  # at the right border, beside which the next row begins
    y, _, _, dx, _ = by_tiles(x, dy, values, emulate)
    reached = torch.zeros(30, 30, dtype=torch.bool)
    reached[10:21, 24:] = True
    for found in (y, dx):
        assert torch.equal(found[0].isnan(), reached[..., None].expand(30, 30, 8))


@emulated_or_not
def test_tiles_do_not_depend_on_threads(emulate):
    x, dy, *values = half(draw(3, 16, 20, 31), draw(3, 16, 20, 31), *parameters(16, 8))
    check_threads(lambda: by_tiles(x, dy, values, emulate))


@emulated_or_not
def test_tiles_of_no_images(emulate):
    x, *values = half(torch.zeros(0, 8, 4, 4), *parameters(8, 4))
    shapes = [(0, 4, 4, 8), (0, 4, 4, 16), (0, 4, 4, 4, 1), (0, 4, 4, 8), (0, 4, 4, 16)]
    assert [result.shape for result in by_tiles(x, x, values, emulate)] == shapes


@shapes
def test_bfloat16_without_tiles(shape, monkeypatch):
    images, size, features, growth = shape
    monkeypatch.setattr(ops, "amx_available", lambda: False)
    x, dy = draw(images, features, *size), draw(images, features, *size)
    check_against_float64(fused, plain, [x, *parameters(features, growth)], dy, torch.bfloat16)


def test_gradcheck_in_float64():
    x, values = draw(1, 2, 3, 3), parameters(2, 1)
    arguments = [tensor.double().requires_grad_() for tensor in (x, *values)]
    assert torch.autograd.gradcheck(fused, arguments)


def test_opcheck():
    x, values = draw(2, 8, 5, 6), parameters(8, 4)
    weights, biases = values[:5], values[5:]
    kernels = dispatch.load("winograd")
    images = x.permute(0, 2, 3, 1).contiguous()
    y, intermediates, sign_mask = kernels.dense_block(images, weights, biases, True)
    _, dintermediates = kernels.dense_block_input_grad(y, weights, sign_mask)
    check_kernel(ops.dense_block, (images, weights, biases, 0.2, 0.2, True))
    check_kernel(ops.dense_block, (images, weights, biases, 0.2, 0.2, False))
    check_kernel(ops.dense_block_input_grad, (y, weights, sign_mask, 0.2, 0.2))
    check_kernel(ops.dense_block_weight_grad, (images, intermediates, y, dintermediates, weights, 0.2))
    x16, *values16 = half(images, *values)
    tiles = (values16[:5], values16[5:], 0.2, 0.2)
    check_kernel(ops.amx_dense_block, (x16, *tiles, True, True))
    check_kernel(ops.amx_dense_block, (x16, *tiles, False, True))
    check_kernel(ops.amx_dense_block_input_grad, (x16, values16[:5], sign_mask, 0.2, 0.2, True))
    with_gradients = [value.requires_grad_() for value in values]
    arguments = (x.requires_grad_(), with_gradients[:5], with_gradients[5:], "winograd", True)
    torch.library.opcheck(torch.ops.andfast.dense_block_forward, arguments)


def test_recorded_programs_are_plain():
    """For elsewhere, where nobody knows our operators."""

    class Block(torch.nn.Module):
        def forward(self, image: Tensor, *values: Tensor) -> Tensor:
            return fused(image, *values)

    given = (draw(1, 8, 4, 4), *parameters(8, 4))
    program = torch.export.export(Block(), given)
    assert all("andfast" not in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*given), fused(*given), atol=1e-5, rtol=1e-5)


def test_refused():
    x, values = draw(1, 8, 4, 4), parameters(8, 4)
    weights, biases = values[:5], values[5:]
    for kind, message, call in (
        (TypeError, "x is torch.int64", lambda: dense_block(x.long(), weights, biases)),
        (ValueError, "x has shape", lambda: dense_block(x[0], weights, biases)),
        (ValueError, "five weights and biases, not 4 and 5", lambda: dense_block(x, weights[:4], biases)),
        (ValueError, r"weight has shape .* must be \(4, 12, 3, 3\)", lambda: dense_block(x, weights[:1] * 5, biases)),
        (ValueError, r"bias has shape \(4,\); it must be \(8,\)", lambda: dense_block(x, weights, biases[:1] * 5)),
        (TypeError, "weight is torch.float64", lambda: dense_block(x, [w.double() for w in weights], biases)),
    ):
        with pytest.raises(kind, match=message):
            call()


def test_operators_guard_their_memory():
    x, values = draw(1, 4, 4, 8), parameters(8, 4)
    weights, biases = values[:5], values[5:]
    _, intermediates, sign_mask = ops.dense_block(x, weights, biases, 0.2, 0.2, True)
    (x16,) = half(x)
    for message, call in (
        ("weights must be 5", lambda: ops.dense_block(x, weights[:4], biases, 0.2, 0.2, True)),
        ("biases must be as many", lambda: ops.dense_block(x, weights, biases[:4], 0.2, 0.2, True)),
        ("biases must have the shape", lambda: ops.dense_block(x, weights, biases[:1] * 5, 0.2, 0.2, True)),
        ("weights must have the shape", lambda: ops.dense_block(x, weights[:1] * 5, biases, 0.2, 0.2, True)),
        ("x must be contiguous", lambda: ops.dense_block(x.transpose(1, 2), weights, biases, 0.2, 0.2, True)),
        ("evenly spaced", lambda: ops.dense_block(x, [w.mT for w in weights], biases, 0.2, 0.2, True)),
        (
            "sign_mask must have",
            lambda: ops.dense_block_input_grad(x, weights, sign_mask[:, 1:].contiguous(), 0.2, 0.2),
        ),
        (
            "intermediates must have",
            lambda: ops.dense_block_weight_grad(x, intermediates[:, 1:].contiguous(), x, intermediates, weights, 0.2),
        ),
        ("x must be of type BFloat16", lambda: ops.amx_dense_block(x, weights, biases, 0.2, 0.2, True, True)),
        ("weights must be of type", lambda: ops.amx_dense_block(x16, weights, biases, 0.2, 0.2, True, True)),
        ("biases must be of type", lambda: ops.amx_dense_block(x16, half(*weights), biases, 0.2, 0.2, True, True)),
        (
            "sign_mask must have",
            lambda: ops.amx_dense_block_input_grad(x16, half(*weights), sign_mask[:, 1:].contiguous(), 0.2, 0.2, True),
        ),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


def test_backends():
    x, values = draw(1, 8, 4, 4), parameters(8, 4)
    with use_backend("reference"):
        found = fused(x, *values)
    assert torch.equal(found, plain(x, *values))
    with use_backend("cpu"), pytest.raises(ValueError, match="float64"):
        fused(x.double(), *(value.double() for value in values))
