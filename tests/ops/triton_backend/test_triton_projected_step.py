"""The projected step in Triton, against its definition row by row."""

import importlib

import pytest
from projected_step_tests import ProjectedStepTests, check, make

from andfast.ops.backends.triton.projected_step import projected_step


class TestTritonProjectedStep(ProjectedStepTests):
    @pytest.fixture
    def step(self, device):
        return projected_step, device


def test_more_chunks_than_are_added_at_a_time(device, monkeypatch):
    module = importlib.import_module("andfast.ops.backends.triton.projected_step")
    monkeypatch.setattr(module, "_CHUNK", 16)
    monkeypatch.setattr(module, "_PARTIALS", 4)
    inputs = make(2, 150, device)
    check(projected_step(*inputs, 0.3, 0.5), *inputs, 0.3, 0.5)


def test_float64(device):
    inputs = [tensor.double() for tensor in make(2, 1001, device)]
    check(projected_step(*inputs, 0.3, 0.4), *inputs, 0.3, 0.4)  # neither of them float32 values
