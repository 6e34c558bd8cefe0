"""The library's convolutions with plain PyTorch between them, which serve where nothing of ours can be used."""

import network_banks
import networks
import pytest
import torch
from generator_checks import check_against_float64, draw
from runs import photograph_crops
from tiny_trainer import TINY, as_options
from torch import Tensor

from andfast import train
from andfast.ops import dispatch, use_backend
from andfast.ops.conv_act import conv_act, conv_act_reference
from andfast.ops.dense_block import dense_block, dense_block_reference

CPU = torch.device("cpu")
CONVOLUTIONAL = {"conv_act", "dense_block", "degradation_block", "degradation_forward"}


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("kind", ["map", "gaussian"])
def test_float16_of_the_degradation_network(kind):
    network_banks.check("library", network_banks.Bank(3, 6, (6, 4), (16, 9), torch.float16, kind))
    networks.check("library", *networks.make(2, 4, dtype=torch.float16, noise=kind))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", dispatch.GPU_TYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 16)])
def test_generators(dtype, size):
    x, weight, bias, dy = draw(2, 9, *size), draw(12, 9, 3, 3) / 9, draw(12) / 10, draw(2, 12, *size)
    outputs, inputs = (5, 5, 5, 5, 9), (9, 14, 19, 24, 29)
    weights = [draw(out, into, 3, 3) / (3 * into**0.5) for out, into in zip(outputs, inputs, strict=True)]
    slopes = torch.linspace(-0.3, 1.2, 12)

    def block(function):
        def run(x: Tensor, *values: Tensor) -> Tensor:
            return function(x, values[:5], values[5:])

        return run

    with use_backend("library"):
        for slope in (None, 0.2, slopes):

            def conv(function, slope=slope):
                def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                    return function(x, weight, bias, slope.to(x) if isinstance(slope, Tensor) else slope)

                return run

            check_against_float64(conv(conv_act), conv(conv_act_reference), [x, weight, bias], dy, dtype)
        values = [x, *weights, *(draw(out) / 10 for out in outputs)]
        check_against_float64(block(dense_block), block(dense_block_reference), values, draw(2, 9, *size), dtype)


@pytest.fixture
def rounded_products():
    """Convolutions in float32 round what they multiply to bfloat16, on CPUs that have instructions for it."""
    before = torch.backends.mkldnn.conv.fp32_precision
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    yield
    torch.backends.mkldnn.conv.fp32_precision = before


@pytest.mark.usefixtures("rounded_products")
def test_small_deviations_survive_rounded_products():
    kernels = dispatch.load("library")
    centre, deviation = torch.full((1, 64, 64), 0.125), draw(1, 64, 64, 9) * 1e-4
    deviation -= deviation.mean(3, keepdim=True)  # a constant image stays as it is
    x, edge = torch.ones(1, 64, 32, 32), torch.ones(1, 64, 32, 32)
    edge[:, :, 16:] = -1

    def effect(image: Tensor) -> Tensor:
        results = []
        for taps in (deviation, torch.zeros_like(deviation)):
            weights = kernels.pack_weights(centre, taps, torch.float32, backward=False)
            results.append(kernels.conv(kernels.to_nhwc(image, torch.float32), weights).double())
        return results[0] - results[1]

    padded = torch.nn.functional.pad(edge.double(), (1, 1, 1, 1), mode="replicate")
    exact = torch.nn.functional.conv2d(padded, deviation[0].double().unflatten(2, (3, 3))).permute(0, 2, 3, 1)
    assert effect(x).abs().max() < 0.02 * exact.abs().max()
    assert (effect(edge) - exact).abs().max() < 0.02 * exact.abs().max()


def test_it_replaces_the_extension_on_cpus(monkeypatch):
    monkeypatch.setitem(dispatch.unavailable, "cpu", "it is not built")
    for operation in dispatch.operations:
        convolutional = dispatch.operations[operation]["library"].automatic
        assert convolutional == (operation in CONVOLUTIONAL)
        expected = ("library", "reference") if convolutional else ("reference",)
        assert dispatch.candidates(operation, CPU, torch.float32) == expected
    assert dispatch.candidates("conv_act", CPU, torch.float64) == ("reference",)
    called = []
    kernels = type(dispatch.load("library"))
    plain = kernels.conv_act
    monkeypatch.setattr(kernels, "conv_act", lambda *arguments: called.append(1) or plain(*arguments))
    x, weight, bias = draw(2, 3, 5, 4), draw(6, 3, 3, 3), draw(6)
    torch.testing.assert_close(conv_act(x, weight, bias, 0.2), conv_act_reference(x, weight, bias, 0.2))
    assert called


def test_a_run_can_be_forced_onto_it(tmp_path, capsys):
    settings = TINY | {"train.iterations": 2, "run_dir": tmp_path / "run", "data.hr": photograph_crops()}
    with use_backend("library"):
        assert train.main(as_options(settings)) == 0
    assert "kernels: degradation library, generator library" in capsys.readouterr().out


def test_gpus_try_it_after_our_kernels(monkeypatch):
    monkeypatch.setattr(dispatch, "unavailable", {})
    found = dispatch.candidates("degradation_forward", torch.device("cuda", 0), torch.float32)
    assert found[-2:] == ("library", "reference")
    assert "cudnn" in found
