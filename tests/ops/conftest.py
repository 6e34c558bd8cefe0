import math

import pytest
import torch
from torch import Tensor

from andfast.ops import dispatch, use_backend


@pytest.fixture(params=["the default", "reference"])
def default_and_reference(request: pytest.FixtureRequest):
    """Whatever runs where nothing is forced, and the reference."""
    if request.param == "reference":
        with use_backend("reference"):
            yield
    elif "cpu" in dispatch.unavailable:
        pytest.skip(dispatch.unavailable["cpu"])
    else:
        yield


@pytest.fixture(params=["cpu", "library"])
def backend(request: pytest.FixtureRequest) -> str:
    """The backends of F that run on the CPU."""
    if request.param in dispatch.unavailable:
        pytest.skip(dispatch.unavailable[request.param])
    return request.param


@pytest.fixture
def implementation(backend: str) -> str:
    """Which implementation in float32 is the backend's."""
    return "winograd" if backend == "cpu" else backend


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch):
    """Whatever Python code allocates holds NaN until it is written."""
    empty_like, new_empty = torch.empty_like, Tensor.new_empty

    def poison(tensor: Tensor) -> Tensor:
        return tensor.fill_(math.nan) if tensor.is_floating_point() and tensor.device.type != "meta" else tensor

    monkeypatch.setattr(torch, "empty_like", lambda *args, **options: poison(empty_like(*args, **options)))
    monkeypatch.setattr(Tensor, "new_empty", lambda *args, **options: poison(new_empty(*args, **options)))
