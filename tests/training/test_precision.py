"""What `auto` stands for in training on a CPU, and that a resumed run keeps it."""

import pytest
import torch
from runs import photograph_crops
from tiny_trainer import TINY, as_options, make
from torch import nn

from andfast import train
from andfast.inference.models import precision_for
from andfast.ops import dispatch, selection, use_backend
from andfast.ops.precision import choose_precision
from andfast.training.config import Config, DegradationConfig
from andfast.training.precision import automatic_types, with_types

CPU = torch.device("cpu")


@pytest.fixture
def timed(monkeypatch):
    """A function that makes one type the faster one on a processor with AMX; the probes that were timed."""
    monkeypatch.setenv("ANDFAST_MEASURE", "1")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    probes = []

    def make(dtype: torch.dtype | None) -> list[str]:
        def faster_type(operation, names, sizes):
            assert list(names) == [torch.float32, torch.bfloat16]
            probes.append(operation)
            return dtype

        monkeypatch.setattr(selection, "faster_type", faster_type)
        return probes

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_faster_type(timed, dtype):
    probes = timed(getattr(torch, dtype))
    assert automatic_types(CPU, None) == {"training": dtype, "degradation": dtype}
    assert sorted(probes) == ["degradation_forward", "dense_block"]
    assert automatic_types(torch.device("cuda", 0), None) == {}


def test_no_other_command_chooses_another_type(timed):
    timed(torch.float32)
    assert DegradationConfig().build(4, 1, CPU).dtype == torch.float32
    trainer = make(train__precision="auto")
    assert (trainer.precision, trainer.attack_precision) == (torch.float32, torch.float32)
    timed(torch.bfloat16)
    assert DegradationConfig().build(4, 1, CPU).dtype == torch.bfloat16
    assert precision_for(nn.Conv2d(3, 3, 1), "auto", "training") == torch.bfloat16  # the demo's
    for precision in (precision_for(nn.Conv2d(3, 3, 1), "auto"), choose_precision("float32", CPU, "training")):
        assert precision == torch.float32


def test_processors_that_emulate_bfloat16_are_not_timed(timed, monkeypatch):
    probes = timed(torch.bfloat16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vl": True})
    assert automatic_types(CPU, None) == {"training": "float32", "degradation": "float32"}
    assert automatic_types(CPU, {"computes": "cpu bfloat16 bfloat16 float32"}) == {}
    assert probes == []


@pytest.mark.parametrize("amx", [True, False])
def test_without_a_measurement_the_processor_s_instructions_decide(timed, monkeypatch, amx):
    timed(None)  # could not be measured
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx, "avx512_bf16": True})
    expected = "bfloat16" if amx else "float32"
    assert automatic_types(CPU, None) == {"training": expected, "degradation": expected}
    probes = timed(torch.float32 if amx else torch.bfloat16)
    probes.clear()
    monkeypatch.setenv("ANDFAST_MEASURE", "0")
    assert automatic_types(CPU, None) == {"training": expected, "degradation": expected}
    monkeypatch.setenv("ANDFAST_MEASURE", "1")
    monkeypatch.setitem(dispatch.unavailable, "triton", "it is not installed")
    with use_backend("triton"):
        assert automatic_types(CPU, None)["training"] == expected
    assert probes == []


def test_the_types_of_a_state_are_kept(timed):
    probes = timed(torch.float32)
    then = {"computes": "cpu bfloat16 float32 float32"}
    assert automatic_types(CPU, then) == {"training": "bfloat16", "degradation": "float32"}
    assert automatic_types(CPU, {"computes": "cuda bfloat16 bfloat16 float16"}) == {}
    assert automatic_types(CPU, {}) == {}  # of an earlier version
    assert probes == []


def test_types_that_are_set_stay():
    types = {"training": "bfloat16", "degradation": "bfloat16"}
    config = with_types(Config(), types)
    assert (config.train.precision, config.degradation.precision) == ("bfloat16", "bfloat16")
    config = with_types(Config(degradation=DegradationConfig(precision="float32")), types)
    assert (config.train.precision, config.degradation.precision) == ("bfloat16", "float32")
    assert with_types(Config(), {}) == Config()


def test_a_resumed_run_keeps_its_types(timed, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "choose", lambda operation, candidates, *others: candidates[-1])
    settings = TINY | {"run_dir": tmp_path / "run", "data.hr": photograph_crops()}
    settings |= {"train.precision": "auto", "degradation.precision": "auto"}
    for iterations, faster in ((1, torch.bfloat16), (2, torch.float32)):
        timed(faster)
        assert train.main(as_options(settings | {"train.iterations": iterations})) == 0
        state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
        assert (state["step"], state["computes"]) == (iterations, "cpu bfloat16 bfloat16 bfloat16")
        assert state["config"]["train"]["precision"] == "auto"
