"""Convolutions in large tiles, against PyTorch in float64."""

import os
import subprocess
import sys
from pathlib import Path

import generator_checks
import pytest
import torch
import torch.nn.functional as F

from andfast.models import Compact, RRDBNet
from andfast.ops import dispatch
from andfast.ops.conv_act import conv_act, conv_act_reference
from andfast.ops.conv_chain import ChainConv, conv_chain
from andfast.ops.dense_block import dense_block, dense_block_reference

pytestmark = pytest.mark.skipif("cpu" in dispatch.unavailable, reason="the extension is not built")


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
    with torch.no_grad(), dispatch.allow_large_tiles():
        found = conv_act(x, weight, bias, slope)
        again = conv_act(x.contiguous(memory_format=torch.channels_last), weight.to(memory_format=torch.channels_last),
                         bias, slope)  # fmt: skip
    wide = slope.double() if isinstance(slope, torch.Tensor) else slope
    exact = conv_act_reference(x.double(), weight.double(), bias.double(), wide)
    assert (found - exact).abs().max() < 3e-5 * max(exact.abs().max(), 1)
    torch.testing.assert_close(again, found, rtol=0, atol=0)


# The last ones take several groups of rows of tiles, and several chunks of a group (csrc/cpu/inference.cpp).
@pytest.mark.parametrize("size", [(1, 1), (7, 30), (25, 6), (80, 130), (500, 3)])
@pytest.mark.parametrize(("features", "growth"), [(64, 32), (5, 3), (72, 40)])
def test_dense_block(features, growth, size):
    x = draw(2, features, *size)
    weights = [draw(growth if k < 4 else features, features + k * growth, 3, 3, factor=0.05) for k in range(5)]
    biases = [draw(len(weight)) for weight in weights]
    with torch.no_grad(), dispatch.allow_large_tiles():
        found = dense_block(x, weights, biases)
    exact = dense_block_reference(x.double(), [w.double() for w in weights], [b.double() for b in biases])
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


def draw_chain(*channels, repeats):
    """Convolutions with LeakyReLUs, the last one without."""
    pairs = list(zip(channels[:-1], channels[1:], repeats, strict=True))
    slopes = [*(torch.rand(outputs) if k % 2 else 0.2 for k, outputs in enumerate(channels[1:-1])), None]
    return [
        ChainConv(draw(outputs, inputs, 3, 3, factor=0.1), draw(outputs), slope, repeat)
        for (inputs, outputs, repeat), slope in zip(pairs, slopes, strict=True)
    ]


def exact_chain(x, convs):
    x = x.double()
    for weight, bias, slope, repeat in convs:
        x = x.repeat_interleave(repeat, 2).repeat_interleave(repeat, 3)
        slope = slope.double() if isinstance(slope, torch.Tensor) else slope
        x = conv_act_reference(x, weight.double(), bias.double(), slope)
    return x


@pytest.mark.parametrize("repeats", [(1, 1, 1, 1), (2, 2, 1, 1), (1, 3, 1, 2)])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (13, 60), (100, 3), (40, 130)])
def test_chain(size, repeats):
    x, convs = draw(2, 3, *size), draw_chain(3, 16, 20, 9, 3, repeats=repeats)
    exact = exact_chain(x, convs)
    with torch.no_grad():
        plain = conv_chain(x, convs)
        with dispatch.allow_large_tiles():
            found = conv_chain(x, convs)
    assert found.shape == exact.shape
    assert (found - exact).abs().max() < 3e-5 * exact.abs().max()
    assert (plain - exact).abs().max() < 3e-5 * exact.abs().max()
    assert not torch.equal(plain, found)  # or nothing was tested


def test_chain_with_gradients():
    """They flow, and nothing of large tiles is in them."""
    x, convs = draw(1, 3, 9, 11).requires_grad_(), draw_chain(3, 8, 3, repeats=(1, 2))
    with dispatch.allow_large_tiles():
        conv_chain(x, convs).square().sum().backward()
    wide = x.detach().double().requires_grad_()
    exact_chain(wide, convs).square().sum().backward()
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-5, atol=1e-5 * wide.grad.abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_end_of_a_chain_is_not_rounded_to_half_types(dtype):
    x, convs = draw(1, 3, 9, 11), draw_chain(3, 8, 3, repeats=(1, 2))
    with torch.no_grad(), torch.autocast("cpu", dtype):
        found = conv_chain(x, convs)
        middle = conv_act(x, *convs[0][:3])
    assert middle.dtype == dtype
    assert found.dtype == torch.float32
    exact = exact_chain(middle, convs[1:])
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()
    with torch.autocast("cpu", dtype):  # where a gradient will go back, all is as it was
        assert conv_chain(x.requires_grad_(), convs).dtype == dtype


def test_no_images():
    x, convs = draw(0, 4, 9, 11), draw_chain(4, 8, 3, repeats=(1, 2))
    weights = [draw(3 if k < 4 else 4, 4 + 3 * k, 3, 3) for k in range(5)]
    with torch.no_grad(), dispatch.allow_large_tiles():
        assert conv_chain(x, convs).shape == (0, 3, 18, 22)
        assert dense_block(x, weights, [draw(len(weight)) for weight in weights]).shape == x.shape


def test_chains_that_do_not_fit():
    x, convs = draw(1, 3, 9, 11), draw_chain(3, 8, 3, repeats=(1, 2))
    with torch.no_grad(), dispatch.allow_large_tiles():
        with pytest.raises(ValueError, match="x has shape"):
            conv_chain(x[0], convs)
        with pytest.raises(ValueError, match="weight has shape"):
            conv_chain(x, convs[1:])
        with pytest.raises(ValueError, match="slope has shape"):
            conv_chain(x, [convs[0]._replace(slope=torch.rand(3))])
        with pytest.raises(TypeError, match="bias is"):
            conv_chain(x, [convs[0]._replace(bias=convs[0].bias.double())])


def some_results():
    """Of chains and dense blocks of several groups and chunks, with tiles over the edges."""
    torch.manual_seed(1)
    x, convs = draw(2, 16, 41, 130), draw_chain(16, 16, 16, 16, repeats=(1, 2, 1))
    weights = [draw(8 if k < 4 else 16, 16 + k * 8, 3, 3, factor=0.05) for k in range(5)]
    with torch.no_grad(), dispatch.allow_large_tiles():
        return conv_chain(x, convs), dense_block(x, weights, [draw(len(weight)) for weight in weights])


def test_results_do_not_depend_on_threads():
    generator_checks.check_threads(some_results)


def test_results_do_not_depend_on_what_memory_held(tmp_path):
    """glibc fills memory with huge numbers; what was not written must not be read."""
    folders = [str(Path(module.__file__).parent) for module in (sys.modules[__name__], generator_checks)]
    program = f"import sys, torch; sys.path[:0] = {folders!r}; import test_large_tiles as tests;"
    program += f"torch.set_num_threads(1); torch.save(tests.some_results(), {str(tmp_path / 'results')!r})"
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"MALLOC_PERTURB_": "128"})
    found = torch.load(tmp_path / "results")
    assert all(map(torch.equal, found, some_results()))


def test_only_where_they_are_allowed_and_nothing_is_kept(monkeypatch):
    """An update must not change because somebody upscaled."""
    calls = []
    real = torch.ops.andfast.large_chain
    from andfast.ops.backends import winograd

    class Ops:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(torch.ops.andfast, name)

    monkeypatch.setattr(winograd, "_ops", Ops())
    x, weight, bias = draw(1, 4, 8, 8), draw(4, 4, 3, 3).requires_grad_(), draw(4)
    with torch.no_grad():
        conv_act(x, weight, bias, 0.2)
    with dispatch.allow_large_tiles():
        assert dispatch.large_tiles_allowed()
        conv_act(x, weight, bias, 0.2)
        with torch.no_grad():
            conv_act(x, weight, bias, 0.2)
    assert calls == ["conv_act", "conv_act", "large_chain"]
    assert not dispatch.large_tiles_allowed()
    assert real is torch.ops.andfast.large_chain


@pytest.mark.parametrize("make", [lambda: RRDBNet(4, features=16, blocks=4, growth=8), lambda: Compact(2, convs=16)])
def test_whole_networks(make):
    """Rounding does not add up to anything that can be seen: 100 dB and more."""
    model, image = make().eval(), torch.rand(1, 3, 33, 50)
    with torch.no_grad():
        exact = make().double().eval()
        exact.load_state_dict(model.state_dict())
        expected = exact(image.double())
        with dispatch.allow_large_tiles():
            found = model(image)
    assert expected.std() > 0.02
    assert F.mse_loss(found.double(), expected).sqrt() < 1e-5


@pytest.mark.parametrize("call", ["large_chain", "large_dense_block"])
def test_operators_are_complete(call):
    x = draw(1, 5, 6, 4)
    weights = [draw(3 if k < 4 else 4, 4 + 3 * k, 3, 3) for k in range(5)]
    biases = [draw(len(weight)) for weight in weights]
    chain = (x, [weights[0], draw(2, 3, 3, 3)], [biases[0], draw(2)], [None, draw(2)], [2, 1])
    arguments = chain if call == "large_chain" else (x, weights, biases, 0.2, 0.2)
    # The dense block's is called from inside another operator alone, where no fake tensors arrive.
    checks = ("test_schema", "test_faketensor") if call == "large_chain" else ("test_schema",)
    torch.library.opcheck(getattr(torch.ops.andfast, call).default, arguments, test_utils=checks)


def test_shapes_that_do_not_fit():
    x, weight, bias = draw(1, 5, 6, 4), draw(3, 4, 3, 3), draw(3)
    ops = torch.ops.andfast
    with pytest.raises(RuntimeError, match="bias"):
        ops.large_chain(x, [weight], [draw(4)], [None], [1])
    with pytest.raises(RuntimeError, match="x must"):
        ops.large_chain(draw(1, 5, 6, 5), [weight], [bias], [None], [1])
    with pytest.raises(RuntimeError, match="slope"):
        ops.large_chain(x, [weight], [bias], [draw(2)], [1])
    with pytest.raises(RuntimeError, match="weight must"):
        ops.large_chain(x, [weight, weight], [bias, bias], [None, None], [1, 1])
    with pytest.raises(RuntimeError, match="repeats"):
        ops.large_chain(x, [weight], [bias], [None], [0])
    with pytest.raises(RuntimeError, match="height and width"):
        ops.large_chain(x[:, :, :0], [weight], [bias], [None], [1])
    with pytest.raises(RuntimeError, match="inputs and outputs"):
        ops.large_chain(x, [weight[:0]], [bias[:0]], [None], [1])
    with pytest.raises(RuntimeError, match="as many"):
        ops.large_chain(x, [weight], [bias], [None], [1, 1])
    with pytest.raises(RuntimeError, match="empty"):
        ops.large_chain(x, [], [], [], [])
