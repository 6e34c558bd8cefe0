"""RRDBNet and Compact: names, sizes, values and gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from generator_checks import distance, kept_bytes

from andfast.models import GENERATORS, Compact, RRDBNet, build_generator
from andfast.ops import dispatch, use_backend

SMALL = {"rrdbnet": {"features": 8, "blocks": 2, "growth": 4}, "compact": {"features": 8, "convs": 2}}
SCALES = [("rrdbnet", scale) for scale in (1, 2, 4, 8)] + [("compact", scale) for scale in (1, 2, 3, 4, 5, 8)]


def small(name, scale, **options):
    torch.manual_seed(0)
    return build_generator(name, scale, **SMALL[name], **options)


def test_rrdbnet_has_the_names_and_sizes_of_basicsr():
    with torch.device("meta"):
        state = RRDBNet().state_dict()
    expected = {"conv_first": (64, 3, 3, 3), "conv_last": (3, 64, 3, 3)}
    expected |= dict.fromkeys(("conv_body", "conv_up1", "conv_up2", "conv_hr"), (64, 64, 3, 3))
    for i in range(23):
        for j in (1, 2, 3):
            for k, outputs in enumerate((32, 32, 32, 32, 64)):
                expected[f"body.{i}.rdb{j}.conv{k + 1}"] = (outputs, 64 + 32 * k, 3, 3)
    weights = {f"{name}.weight": shape for name, shape in expected.items()}
    biases = {f"{name}.bias": shape[:1] for name, shape in expected.items()}
    assert {key: tuple(value.shape) for key, value in state.items()} == weights | biases
    assert len(state) == 702
    assert sum(value.numel() for value in state.values()) == 16_697_987


@pytest.mark.parametrize(("scale", "channels"), [(8, 3), (4, 3), (2, 12), (1, 48)])
def test_rrdbnet_input_channels(scale, channels):
    assert small("rrdbnet", scale).conv_first.weight.shape[1] == channels


def test_compact_has_the_names_and_sizes_of_basicsr():
    with torch.device("meta"):
        state = Compact().state_dict()
    expected = {"body.0.weight": (64, 3, 3, 3), "body.34.weight": (48, 64, 3, 3), "body.34.bias": (48,)}
    for k in range(0, 34, 2):
        expected |= {f"body.{k}.bias": (64,), f"body.{k + 1}.weight": (64,)}
        expected.setdefault(f"body.{k}.weight", (64, 64, 3, 3))
    assert {key: tuple(value.shape) for key, value in state.items()} == expected
    # As counted for the published realesr-general-x4v3 layout with 16 hidden convolutions.
    assert sum(value.numel() for value in state.values()) == 3 * 64 * 9 + 64 + 16 * (64 * 64 * 9 + 64) + (
        17 * 64 + 64 * 48 * 9 + 48
    )


@pytest.mark.parametrize("activation", ["relu", "leakyrelu"])
def test_compact_without_learned_slopes(activation):
    model = small("compact", 2, activation=activation)
    assert set(model.state_dict()) == {f"body.{k}.{kind}" for k in (0, 2, 4, 6) for kind in ("weight", "bias")}
    with torch.no_grad():  # last convolution: the first feature's value, everywhere
        for index in (0, 2, 4, 6):
            model.body[index].weight.zero_()
        model.body[4].bias.fill_(-1)
        model.body[6].weight[:, 0, 1, 1] = 1
    slope = {"relu": 0.0, "leakyrelu": 0.1}[activation]
    image = torch.rand(1, 3, 3, 3)
    expected = F.interpolate(image, scale_factor=2) - slope
    torch.testing.assert_close(model(image), expected)


@pytest.mark.parametrize(("name", "scale"), SCALES)
@pytest.mark.parametrize("size", [(8, 12), (1, 1), (2, 3), (5, 7), (9, 4)])
def test_any_size_is_upscaled(name, scale, size):
    model = small(name, scale)
    result = model(torch.rand(2, 3, *size))
    assert result.shape == (2, 3, scale * size[0], scale * size[1])
    assert result.isfinite().all()


@pytest.mark.parametrize("scale", [1, 2])
def test_padding_is_the_mirrored_image(scale):
    model = small("rrdbnet", scale)
    image = torch.rand(1, 3, 7, 6)
    padded = F.pad(image, (0, -6 % (4 // scale), 0, -7 % (4 // scale)), mode="reflect")
    expected = model(padded)[..., : 7 * scale, : 6 * scale]
    torch.testing.assert_close(model(image), expected)


def test_rrdbnet_output_depends_on_every_input_pixel_where_it_should():
    """Upsampling keeps positions: an input pixel moves the output around scale times its place, no other."""
    model = small("rrdbnet", 2)
    image = torch.rand(1, 3, 64, 64)
    changed = image.clone()
    changed[..., 10, 50] = 1 - changed[..., 10, 50]
    rows, columns = ((model(image) - model(changed)).abs().amax((0, 1)) > 1e-5).nonzero().T
    assert (rows.float().mean() - 20.5).abs() < 4
    assert (columns.float().mean() - 100.5).abs() < 4


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_gradients_reach_every_weight_and_the_input(name, scale):
    model = small(name, scale)
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    (model(image) ** 2).mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, key
        assert parameter.grad.isfinite().all(), key
    assert image.grad.abs().sum() > 0


@pytest.mark.parametrize("name", GENERATORS)
def test_gradients_agree_with_finite_differences(name):
    model = build_generator(name, 2, features=2, **({"blocks": 1, "growth": 1} if name == "rrdbnet" else {"convs": 1}))
    model.double()
    image = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (image,))


@pytest.mark.parametrize("name", GENERATORS)
def test_bfloat16(name):
    model = small(name, 4)
    image = torch.rand(1, 3, 8, 8)
    expected = model(image)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(image)
    assert 0 < (mixed - expected).abs().max() < 0.02 * max(1, expected.abs().max())
    half = model.bfloat16()(image.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half - expected).abs().max() < 0.02 * max(1, expected.abs().max())


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("activation", ["prelu", "relu", "leakyrelu"])
def test_new_compact_is_nearly_nearest_neighbour_but_alive(scale, activation):
    torch.manual_seed(0)
    model = Compact(scale, activation=activation)
    image = torch.rand(1, 3, 16, 16)
    difference = model(image) - F.interpolate(image, scale_factor=scale)
    assert 1e-4 < difference.std() < 0.02
    # The signal neither dies nor grows on its way to the last convolution.
    hidden = model.body[:-1](image)
    assert 0.1 < hidden.square().mean().sqrt() < 2


def test_compact_learns_from_scratch():
    """A few updates beat nearest-neighbour interpolation, which PyTorch's own initialisation does not."""
    torch.manual_seed(0)
    model = Compact(2, features=16, convs=12)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    ramp = torch.linspace(0, 1, 32)
    high = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), (ramp[:, None] * ramp)])[None]
    low = F.avg_pool2d(high, 2)
    nearest = F.l1_loss(F.interpolate(low, scale_factor=2), high)
    for _ in range(40):
        optimiser.zero_grad()
        loss = F.l1_loss(model(low), high)
        loss.backward()
        optimiser.step()
    assert loss < 0.7 * nearest


@pytest.mark.parametrize("name", GENERATORS)
def test_initialisation_follows_the_seed(name):
    first, second = small(name, 2).state_dict(), small(name, 2).state_dict()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_dense_blocks_start_small():
    torch.manual_seed(0)
    conv = RRDBNet(features=64, blocks=1).body[0].rdb2.conv3
    kaiming = (2 / (conv.in_channels * 9)) ** 0.5
    assert conv.weight.std().item() == pytest.approx(0.1 * kaiming, rel=0.05)
    assert not conv.bias.any()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("rrdbnet", {"scale": 3}, "1, 2, 4 or 8"),
        ("rrdbnet", {"scale": 4, "blocks": 0}, "at least one"),
        ("compact", {"scale": 0}, "from 1 up"),
        ("compact", {"scale": 1.5}, "from 1 up"),
        ("compact", {"scale": 2, "activation": "gelu"}, "prelu, relu, leakyrelu"),
        ("compact", {"scale": 2, "out_channels": 1}, "do not fit"),
        ("swinir", {"scale": 2}, "rrdbnet, compact"),
    ],
)
def test_refused(name, options, said):
    with pytest.raises(ValueError, match=said):
        build_generator(name, **options)


@pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))
@pytest.mark.parametrize(
    ("name", "scale"), [("rrdbnet", 8), ("rrdbnet", 4), ("rrdbnet", 2), ("compact", 3), ("compact", 1)]
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fused_generators_compute_what_plain_ones_do(name, scale, memory_format):
    """Values, and the gradients of the input and of all weights, of a network and of its plain form."""
    model = small(name, scale).to(memory_format=memory_format)
    image = torch.rand(2, 3, 7, 9).contiguous(memory_format=memory_format).requires_grad_()
    grad = torch.rand(2, 3, 7 * scale, 9 * scale)

    def passes():
        result = model(image)
        return [result.detach(), *torch.autograd.grad(result, [image, *model.parameters()], grad)]

    fused = passes()
    with use_backend("reference"):
        plain = passes()
    for one, other in zip(fused, plain, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))
@pytest.mark.parametrize("name", GENERATORS)
def test_frozen_generators_keep_signs_alone(name):
    """What an attack's pass keeps: a bit for each activation, where PyTorch keeps the activations."""
    model = small(name, 4).requires_grad_(False)
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    kept = kept_bytes(lambda: model(image), list(model.parameters()))
    assert kept.keys() <= {torch.uint8, torch.float32}
    assert kept.get(torch.float32, 0) <= 64 * 4  # slopes
    with use_backend("reference"):
        plain = kept_bytes(lambda: model(image), list(model.parameters()))
    assert sum(kept.values()) < sum(plain.values()) / 16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_on_a_gpu(backend, name, dtype):
    """At most twice the error of plain PyTorch in the type, both against float64."""
    if backend in dispatch.unavailable:
        pytest.skip(dispatch.unavailable[backend])
    model = small(name, 4).to("cuda")
    image, grad = torch.rand(2, 3, 9, 11, device="cuda"), torch.rand(2, 3, 36, 44, device="cuda")

    def passes(used, kind):
        with use_backend(used):
            own = copy.deepcopy(model).to(kind, memory_format=torch.channels_last)
            given = image.to(dtype).to(kind).requires_grad_()
            result = own(given)
            return [result.detach(), *torch.autograd.grad(result, [given, *own.parameters()], grad.to(dtype).to(kind))]

    rounded = copy.deepcopy(model).to(dtype)
    model.load_state_dict(rounded.state_dict())
    exact, plain, fused = passes("reference", torch.float64), passes("reference", dtype), passes(backend, dtype)
    for one, own, true in zip(fused, plain, exact, strict=True):
        assert distance(one, true) <= 2 * distance(own, true) + (1e-5 if dtype == torch.float32 else 2e-2)
