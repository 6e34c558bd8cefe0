"""Brings the Triton kernels in: on the device where there is one, else in Triton's interpreter."""

import importlib.util
import math
import os

import pytest
import torch
from torch import Tensor

collect_ignore_glob = []

_VARIABLE = "TRITON_INTERPRET"
_mode = os.environ.get(_VARIABLE, "0" if torch.cuda.is_available() else "1")

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob.append("test_*.py")
else:
    # As where triton is imported, in the conftest.py of all tests. Other tests, and what they start, shall not see it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_VARIABLE, _mode)
        from andfast.ops.backends.triton import backend, projected_step  # noqa: F401


@pytest.fixture(autouse=True)
def _mode_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton looks at the variable once more where it imports its other half, at the first launch."""
    monkeypatch.setenv(_VARIABLE, _mode)


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds NaN (all bits set, in integers): what a kernel leaves unwritten shows."""

    def poison(tensor: Tensor) -> Tensor:
        return tensor.fill_(math.nan if tensor.is_floating_point() else 255 if tensor.dtype == torch.uint8 else -1)

    empty, new_empty = torch.empty, Tensor.new_empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: poison(empty(*args, **kwargs)))
    monkeypatch.setattr(Tensor, "new_empty", lambda *args, **kwargs: poison(new_empty(*args, **kwargs)))
