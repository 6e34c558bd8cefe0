"""Convolutions in large tiles, against PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F

from andfast.models import Compact, RRDBNet
from andfast.ops import backends, large_tiles
from andfast.ops.conv_act import conv_act, conv_act_reference
from andfast.ops.dense_block import dense_block, dense_block_reference

pytestmark = pytest.mark.skipif("cpu" in backends.unavailable, reason="the extension is not built")


def draw(*shape, factor=1.0):
    return factor * torch.randn(shape)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("slope", [None, 0.2, "channels"])
@pytest.mark.parametrize("channels", [(1, 1), (3, 64), (64, 3), (5, 7), (17, 33), (130, 16)])
@pytest.mark.parametrize("size", [(1, 1), (6, 6), (5, 7), (13, 40), (1, 100)])
def test_conv_act(size, channels, slope):
    inputs, outputs = channels
    x, weight, bias = draw(2, inputs, *size), draw(outputs, inputs, 3, 3, factor=0.1), draw(outputs)
    slope = torch.rand(outputs) if slope == "channels" else slope
    with torch.no_grad(), large_tiles.allow():
        found = conv_act(x, weight, bias, slope)
        again = conv_act(x.contiguous(memory_format=torch.channels_last), weight.to(memory_format=torch.channels_last),
                         bias, slope)  # fmt: skip
    wide = slope.double() if isinstance(slope, torch.Tensor) else slope
    exact = conv_act_reference(x.double(), weight.double(), bias.double(), wide)
    assert (found - exact).abs().max() < 3e-5 * max(exact.abs().max(), 1)
    torch.testing.assert_close(again, found, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (7, 30), (25, 6)])
@pytest.mark.parametrize(("features", "growth"), [(64, 32), (5, 3), (72, 40)])
def test_dense_block(features, growth, size):
    x = draw(2, features, *size)
    weights = [draw(growth if k < 4 else features, features + k * growth, 3, 3, factor=0.05) for k in range(5)]
    biases = [draw(len(weight)) for weight in weights]
    with torch.no_grad(), large_tiles.allow():
        found = dense_block(x, weights, biases)
    exact = dense_block_reference(x.double(), [w.double() for w in weights], [b.double() for b in biases])
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


def test_results_do_not_depend_on_threads():
    x, weight, bias = draw(1, 16, 50, 50), draw(16, 16, 3, 3), draw(16)
    with torch.no_grad(), large_tiles.allow():
        one = conv_act(x, weight, bias, 0.2)
        torch.set_num_threads(3)
        try:
            three = conv_act(x, weight, bias, 0.2)
        finally:
            torch.set_num_threads(1)
    assert torch.equal(one, three)


def test_only_where_they_are_allowed_and_nothing_is_kept(monkeypatch):
    """An update must not change because somebody upscaled."""
    calls = []
    real = torch.ops.andfast.large_conv
    from andfast.ops import generator_winograd

    class Ops:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(torch.ops.andfast, name)

    monkeypatch.setattr(generator_winograd, "_ops", Ops())
    x, weight, bias = draw(1, 4, 8, 8), draw(4, 4, 3, 3).requires_grad_(), draw(4)
    with torch.no_grad():
        conv_act(x, weight, bias, 0.2)
    with large_tiles.allow():
        assert large_tiles.allowed()
        conv_act(x, weight, bias, 0.2)
        with torch.no_grad():
            conv_act(x, weight, bias, 0.2)
    assert calls == ["conv_act", "conv_act", "large_conv"]
    assert not large_tiles.allowed()
    assert real is torch.ops.andfast.large_conv


@pytest.mark.parametrize("make", [lambda: RRDBNet(4, features=16, blocks=4, growth=8), lambda: Compact(2, convs=16)])
def test_whole_networks(make):
    """Rounding does not add up to anything that can be seen: 100 dB and more."""
    model, image = make().eval(), torch.rand(1, 3, 33, 50)
    with torch.no_grad():
        exact = make().double().eval()
        exact.load_state_dict(model.state_dict())
        expected = exact(image.double())
        with large_tiles.allow():
            found = model(image)
    assert expected.std() > 0.02
    assert F.mse_loss(found.double(), expected).sqrt() < 1e-5


@pytest.mark.parametrize("call", ["large_conv", "large_dense_block"])
def test_operators_are_complete(call):
    x = draw(1, 5, 6, 4)
    weights = [draw(3 if k < 4 else 4, 4 + 3 * k, 3, 3) for k in range(5)]
    biases = [draw(len(weight)) for weight in weights]
    arguments = (x, weights[0], biases[0], None) if call == "large_conv" else (x, weights, biases, 0.2, 0.2)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.andfast, call).default, arguments, test_utils=checks)


def test_shapes_that_do_not_fit():
    x, weight, bias = draw(1, 5, 6, 4), draw(3, 4, 3, 3), draw(3)
    ops = torch.ops.andfast
    with pytest.raises(RuntimeError, match="bias"):
        ops.large_conv(x, weight, draw(4), None)
    with pytest.raises(RuntimeError, match="x must"):
        ops.large_conv(draw(1, 5, 6, 5), weight, bias, None)
    with pytest.raises(RuntimeError, match="slope"):
        ops.large_conv(x, weight, bias, draw(2))
