"""How often a pass of the degradation network makes the host launch something, which is what small batches wait for."""

from collections import Counter
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from andfast.ops.backends.triton.conv import conv_kernel
from andfast.ops.degradation_forward import _backward, _forward
from andfast.ops.theta_layout import ThetaLayout

AT_MOST = 40
OURS = {"andfast::degradation_forward": _forward, "andfast::degradation_backward": _backward}


def storages(values: object) -> set[int]:
    return {value.untyped_storage()._cdata for value in tree_leaves(values) if isinstance(value, Tensor)}


class Launches(TorchDispatchMode):
    """Counts PyTorch's operations, those inside our own operators too, but neither views nor allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operator: torch._ops.OpOverload, types: Iterable, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        name, kwargs = operator._schema.name, kwargs or {}
        with self:  # operations that consist of others are not counted, but these are
            result = OURS[name]._init_fn(*args, **kwargs) if name in OURS else operator.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = operator(*args, **kwargs)
        view = not operator._schema.is_mutable and storages(result) <= storages((args, kwargs))
        if not view and "empty" not in name:
            self.counts[name] += 1
        return result


@pytest.fixture(autouse=True)
def _poisoned() -> None:
    """Not here, in place of conftest.py's: it would be counted."""


def launches(run: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What `run` launches: PyTorch's operations and Triton's kernels, by name; the kernels do not run."""
    with Launches() as mode, monkeypatch.context() as patch:
        patch.setattr(type(conv_kernel), "run", lambda self, *_, **__: mode.counts.update([self.__name__]))
        run()
    return mode.counts


@pytest.mark.parametrize("noise", ["map", "gaussian"])
@pytest.mark.parametrize(("networks", "images"), [(1, 4), (4, 4)])
def test_a_forward_and_backward_pass(networks, images, noise, device, monkeypatch):
    """With the paper's ten blocks of 64 channels and the layouts of training."""
    layout = ThetaLayout((64, 64), 4, 64, 5, noise)
    hr, theta = torch.zeros(images, 3, 64, 64, device=device), torch.zeros(networks, layout.size, device=device)
    delta = torch.zeros_like(theta).requires_grad_()
    seed = torch.zeros(networks, dtype=torch.int64, device=device)
    grad = torch.zeros(images, 3, 16, 16, dtype=torch.float16, device=device).to(memory_format=torch.channels_last)
    settings = (4, 64, 5, noise == "gaussian", torch.float16, "triton", True)

    def run() -> None:
        lr = torch.ops.andfast.degradation_forward(hr, theta, delta, seed, *settings)[0]
        torch.autograd.grad(lr, delta, grad)

    launches(run, monkeypatch)  # makes what is kept for the next passes
    counts = launches(run, monkeypatch)
    assert sum(count for name, count in counts.items() if name.startswith("conv_")) == len(layout.conv)
    assert counts.total() <= AT_MOST, counts
    assert counts.total() == (39 if noise == "gaussian" else 38), "docs/performance.md says how many: change it there"
