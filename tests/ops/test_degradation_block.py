"""One layer of the degradation network: its reference against naive NumPy and SciPy, its backends against that."""

import numpy as np
import pytest
import torch
from network_banks import Bank, check, check_operator, run
from scipy import ndimage
from torch import Tensor

from andfast.ops import degradation_block, dispatch, use_backend
from andfast.ops.degradation_block import degradation_block_reference, one_network_block, split_conv
from andfast.ops.noise import gaussian_field_reference


def convolve(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(B, in, H, W) and (out, in, 3, 3) -> (B, out, H, W), the border replicated, one image plane at a time."""
    y = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:]))
    for image, planes in enumerate(x):
        for out, kernels in enumerate(weight):
            for plane, kernel in zip(planes, kernels, strict=True):
                y[image, out] += ndimage.correlate(plane, kernel, mode="nearest")
    return y


def summed(centre: Tensor, deviation: Tensor) -> np.ndarray:
    weight = deviation.detach().double().numpy().copy()
    weight[:, :, 1, 1] += centre.detach().double().numpy()
    return weight


def make(
    size: tuple[int, int] = (6, 5), channels: tuple[int, int] = (3, 4), seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, centre, deviation and slope_minus_one in float64; x of both signs."""
    generator = torch.Generator().manual_seed(seed)
    into, out = channels
    x = torch.randn(2, into, *size, generator=generator, dtype=torch.float64)
    centre = torch.randn(out, into, generator=generator, dtype=torch.float64) * 0.5
    deviation = torch.randn(out, into, 3, 3, generator=generator, dtype=torch.float64) * 0.2
    return x, centre, deviation, torch.tensor(-0.3, dtype=torch.float64)


def make_noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 0.3


# A map (one value a pixel), and strength times field (a value of its own everywhere).
NOISE_SHAPES = [(1, 6, 5), (2, 4, 6, 5)]


@pytest.mark.parametrize("size", [(6, 5), (1, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("channels", [(3, 4), (4, 3), (1, 1)])
def test_split_conv_is_scipy_s(size, channels):
    x, centre, deviation, _ = make(size, channels)
    expected = convolve(x.numpy(), summed(centre, deviation))
    np.testing.assert_allclose(split_conv(x, centre, deviation).numpy(), expected, atol=1e-13)
    single = split_conv(x.float(), centre.float(), deviation.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, atol=3e-6)


@pytest.mark.parametrize("shape", NOISE_SHAPES)
@pytest.mark.parametrize("slope_minus_one", [0.0, -0.3, -1.0, -1.5, 0.4])
def test_block_is_conv_then_leaky_relu_then_noise(shape, slope_minus_one):
    x, centre, deviation, _ = make()
    noise = make_noise(shape)
    y = convolve(x.numpy(), summed(centre, deviation))
    expected = np.where(y < 0, (1 + slope_minus_one) * y, y) + noise.numpy()
    assert (y < 0).any()
    assert (y > 0).any()
    found = one_network_block(x, centre, deviation, torch.tensor(slope_minus_one, dtype=torch.float64), noise)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-13)


def test_arguments_are_left_alone():
    x, centre, deviation, slope_minus_one = make()
    arguments = (x, centre, deviation, slope_minus_one, make_noise((1, 6, 5)))
    before = [argument.clone() for argument in arguments]
    one_network_block(*arguments)
    for argument, copy in zip(arguments, before, strict=True):
        assert torch.equal(argument, copy)


def test_memory_format_is_kept():
    x, centre, deviation, slope_minus_one = make()
    last = x.contiguous(memory_format=torch.channels_last)
    found = one_network_block(last, centre, deviation, slope_minus_one, make_noise((1, 6, 5)))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, one_network_block(x, centre, deviation, slope_minus_one, make_noise((1, 6, 5))))


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 2, 3, 4)])
def test_gradients_of_all_arguments(shape):
    x, centre, deviation, slope_minus_one = make((3, 4), (3, 2))
    arguments = [argument.requires_grad_() for argument in (x, centre, deviation, slope_minus_one, make_noise(shape))]
    assert torch.autograd.gradcheck(one_network_block, arguments)
    identity = torch.zeros((), dtype=torch.float64, requires_grad=True)  # where every attack starts
    assert torch.autograd.gradcheck(one_network_block, [x, centre, deviation, identity, arguments[4]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_keep_small_deviations(dtype):
    """A deviation far below the centre's resolution survives beside the centre; added to it, it is lost.

    The centres are +1/8 and -1/8 and all channels of x are equal, so that the centre's part of the result is exactly
    zero and what the deviation alone does can be seen. Its taps sum to zero: on a flat image it must do nothing.
    """
    into, out, size = 16, 8, 12
    generator = torch.Generator().manual_seed(0)
    centre = torch.full((out, into), 0.125)
    centre[:, ::2] *= -1
    deviation = torch.randn(out, into, 3, 3, generator=generator)
    deviation -= deviation.mean(dim=(2, 3), keepdim=True)
    deviation *= 0.02 * torch.finfo(dtype).eps  # a centre of 1/8 has steps of eps / 8
    flat, edge = torch.ones(1, into, size, size), torch.ones(1, into, size, size)
    edge[..., : size // 2] = 0
    exact = convolve(edge.double().numpy(), deviation.double().numpy())
    size_of_effect = np.abs(exact).max()

    split = [split_conv(x.to(dtype), centre.to(dtype), deviation.to(dtype)).double().numpy() for x in (edge, flat)]
    assert np.abs(split[0] - exact).max() < 0.02 * size_of_effect
    assert np.abs(split[1]).max() < 0.02 * size_of_effect

    rounded = torch.from_numpy(summed(centre, deviation)).to(dtype).double().numpy()
    lossy = [convolve(x.double().numpy(), rounded) for x in (edge, flat)]
    assert np.abs(lossy[0] - exact).max() > 0.2 * size_of_effect
    assert np.abs(lossy[1]).max() > 0.2 * size_of_effect


needs_cpu = pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))


@pytest.mark.parametrize("kind", ["map", "gaussian"])
def test_reference_runs_each_network_on_its_images(kind):
    bank = Bank(3, 6, (4, 5), (3, 4), torch.float64, kind)
    with use_backend("reference"):
        y = degradation_block(*bank.arguments)
    for network in range(3):
        images = slice(2 * network, 2 * network + 2)
        z = convolve(bank.x[images].numpy(), summed(bank.centre[network], bank.deviation[network]))
        added = bank.noise[network]
        if kind == "gaussian":
            added = added[:, None, None] * gaussian_field_reference(bank.seed[network], bank.layer, 2, (4, 5))
        expected = np.where(z < 0, (1 + bank.slope_minus_one[network].item()) * z, z) + added.numpy()
        np.testing.assert_allclose(y[images].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["map", "gaussian"])
def test_gradcheck_of_the_reference(kind):
    bank = Bank(2, 2, (3, 4), (3, 2), torch.float64, kind)
    tensors = [tensor.requires_grad_() for tensor in bank.arguments[:5]]
    assert torch.autograd.gradcheck(lambda *given: degradation_block(*given, bank.seed, bank.layer), tensors)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["map", "gaussian"])
@pytest.mark.parametrize(
    ("networks", "images", "size", "widths"),
    [
        (1, 1, (1, 1), (3, 5)),
        (1, 3, (5, 7), (3, 64)),
        (3, 6, (6, 4), (16, 9)),
        (4, 4, (3, 9), (64, 64)),
        (2, 2, (1, 8), (1, 3)),
    ],
)
def test_values_and_gradients(backend, dtype, kind, networks, images, size, widths):
    check(backend, Bank(networks, images, size, widths, dtype, kind))


def test_layouts(backend):
    """Channels last or first, slices of something larger, expanded: all the same."""
    bank = Bank(2, 4, (5, 6), (4, 8), torch.float32, "gaussian")
    expected = run(backend, bank)
    assert expected[0].is_contiguous(memory_format=torch.channels_last)
    x = bank.x
    wide = torch.zeros(4, 9, 5, 13)[:, :4, :, 1::2].copy_(x)
    for same in (x.contiguous(memory_format=torch.channels_last), wide):
        bank.x = same
        for found, wanted in zip(run(backend, bank), expected, strict=True):
            torch.testing.assert_close(found, wanted)
    bank.x = x[:1].expand(4, -1, -1, -1)
    bank.noise = torch.full((1, 1), 0.2).expand(2, 8)
    found = run(backend, bank)
    bank.x, bank.noise = bank.x.clone(), bank.noise.clone()
    for part, wanted in zip(found, run(backend, bank), strict=True):
        assert torch.equal(part, wanted)


def test_gradient_of_a_plain_sum(backend):
    """Its strides are all zero."""
    bank = Bank(2, 2, (4, 5), (3, 8), torch.float32, "map")
    deviation = bank.deviation.requires_grad_()
    with use_backend(backend):
        (found,) = torch.autograd.grad(degradation_block(*bank.arguments).sum(), deviation)
    (expected,) = torch.autograd.grad(degradation_block_reference(*bank.arguments).sum(), deviation)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_only_what_is_asked_for_is_computed(backend, implementation, monkeypatch):
    bank = Bank(1, 2, (4, 5), (3, 8), torch.float32, "map")
    kernels = type(dispatch.load(implementation))
    called = []
    for name in ("conv_weight_grad", "conv_input_grad"):
        plain = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *args, name=name, plain=plain: called.append(name) or plain(*args))
    for wanted, calls in (
        ("x", ["conv_input_grad"]),
        ("deviation", ["conv_weight_grad"]),
        ("slope_minus_one", []),
        ("noise", []),
    ):
        called.clear()
        tensor = getattr(bank, wanted).requires_grad_()
        with use_backend(backend):
            (grad,) = torch.autograd.grad(degradation_block(*bank.arguments).sum(), tensor)
        tensor.requires_grad_(False)
        assert called == calls
        assert grad.shape == tensor.shape


def test_no_images(backend):
    bank = Bank(2, 2, (4, 5), (3, 8), torch.float32, "map")
    bank.x = bank.x[:0]
    y, dx, dcentre, ddeviation, dslope, dnoise = run(backend, bank)
    assert y.shape == (0, 8, 4, 5)
    assert dx.shape == (0, 3, 4, 5)
    for grad, tensor in (
        (dcentre, bank.centre),
        (ddeviation, bank.deviation),
        (dslope, bank.slope_minus_one),
        (dnoise, bank.noise),
    ):
        assert torch.equal(grad, torch.zeros_like(tensor))


@needs_cpu
@pytest.mark.parametrize(("networks", "kind"), [(1, "map"), (2, "gaussian")])
def test_opcheck(networks, kind):
    bank = Bank(networks, 2, (4, 6), (3, 8), torch.float32, kind)
    for tensor in bank.arguments[:5]:
        tensor.requires_grad_()
    check_operator(bank, "winograd")
    bank.centre.requires_grad_(False)
    bank.deviation.requires_grad_(False)
    check_operator(bank, "winograd")


def test_compiles_without_a_graph_break(backend):
    bank = Bank(2, 2, (4, 6), (3, 8), torch.float32, "map")

    def loss(deviation: Tensor) -> Tensor:
        bank.deviation = deviation
        return (degradation_block(*bank.arguments) ** 2).sum()

    deviation = bank.deviation.clone().requires_grad_()
    with use_backend(backend):
        (expected,) = torch.autograd.grad(loss(deviation), deviation)
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        (found,) = torch.autograd.grad(compiled(deviation), deviation)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, ValueError, r"x has shape \(2, 3, 4\); it must be \(B, in, H, W\)"),
        ({"x": torch.zeros(2, 3, 4, 5).int()}, TypeError, "x is torch.int32"),
        ({"x": torch.zeros(3, 3, 4, 5)}, ValueError, "the batch size of x, 3, must be a multiple of .* networks, 2"),
        ({"centre": torch.zeros(2, 8, 4)}, ValueError, r"centre has shape \(2, 8, 4\); .* \(N, out, 3\)"),
        ({"deviation": torch.zeros(2, 8, 3, 9)}, ValueError, r"deviation has shape .* must be \(2, 8, 3, 3, 3\)"),
        ({"deviation": torch.zeros(2, 8, 3, 3, 3).half()}, TypeError, "deviation is torch.float16; .* torch.float32"),
        ({"slope_minus_one": torch.zeros(2, 1)}, ValueError, r"slope_minus_one has shape \(2, 1\); it must be \(2,\)"),
        ({"noise": torch.zeros(2, 8)}, ValueError, r"noise has shape \(2, 8\); it must be \(2, 4, 5\)"),
        ({"seed": torch.zeros(2)}, ValueError, r"noise has shape \(2, 4, 5\); it must be \(2, 8\)"),
        (
            {"noise": torch.zeros(2, 8), "seed": torch.zeros(2)},
            TypeError,
            "seed is torch.float32; it must be torch.int64",
        ),
        (
            {"slope_minus_one": torch.zeros(2, device="meta")},
            ValueError,
            "slope_minus_one is on meta; it must be on cpu like x",
        ),
    ],
)
def test_wrong_arguments_are_refused(change, error, message):
    bank = Bank(2, 2, (4, 5), (3, 8), torch.float32, "map")
    for name, value in change.items():
        setattr(bank, name, value)
    with pytest.raises(error, match=message):
        degradation_block(*bank.arguments)


@needs_cpu
def test_types_that_the_cpu_has_no_kernels_for():
    bank = Bank(1, 1, (4, 5), (3, 8), torch.float16, "map")
    with (
        use_backend("cpu"),
        pytest.raises(ValueError, match=r"degradation_block takes torch.float32 or torch.bfloat16"),
    ):
        degradation_block(*bank.arguments)
    assert degradation_block(*bank.arguments).dtype == torch.float16  # by the reference
