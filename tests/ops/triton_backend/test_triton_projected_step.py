"""The projected step in Triton, against its definition row by row."""

import importlib
import math

import pytest
import torch
from torch import Tensor

from andfast.ops.backends.triton.projected_step import projected_step

COLUMNS = (1, 17, 2049, 9001)  # less than a chunk, one and several


def make(rows: int, columns: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """delta, grad and inv_scale of the sizes that the attack sees; a third of the scale factors infinite."""
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(rows, columns, generator=generator) * 0.01
    grad = torch.randn(rows, columns, generator=generator) * 1e-6
    inv_scale = torch.tensor([1.0, 0.1, 0.02])[torch.randint(3, (columns,), generator=generator)]
    inv_scale[1::3] = 0
    return delta.to(device), grad.to(device), inv_scale.to(device)


def formula(delta: Tensor, grad: Tensor, inv_scale: Tensor, step_size: float, epsilon: float) -> Tensor:
    """Row by row over the free coordinates, in float64: in scaled coordinates the ball is round."""
    free = inv_scale > 0
    scale = 1 / inv_scale.double()[free]
    result = torch.zeros(delta.shape, dtype=torch.float64, device=delta.device)
    for row, d, g in zip(result, delta.double(), grad.double(), strict=True):
        x, slope = d[free] * scale, g[free] / scale
        if g.isfinite().all() and slope.norm() > 0:
            x = x + step_size * slope / slope.norm()
        row[free] = x * min(1, epsilon / x.norm().item() if x.norm() > 0 else 1) / scale
    return result.to(delta.dtype)


def check(actual: Tensor, *arguments) -> None:
    # Everything is computed in float64 and rounded once: two correct implementations differ by one rounding.
    torch.testing.assert_close(actual, formula(*arguments), rtol=2.4e-7, atol=1e-37)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize(("step_size", "epsilon"), [(0.3, 0.5), (0.3, 1e3), (0, 0.5), (0.3, math.inf)])
def test_formula(columns, step_size, epsilon, device):
    for rows in (1, 3):
        inputs = make(rows, columns, device)
        copies = [tensor.clone() for tensor in inputs]
        actual = projected_step(*inputs, step_size, epsilon)
        check(actual, *inputs, step_size, epsilon)
        assert torch.equal(projected_step(*inputs, step_size, epsilon), actual)
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))


def test_more_chunks_than_are_added_at_a_time(device, monkeypatch):
    module = importlib.import_module("andfast.ops.backends.triton.projected_step")
    monkeypatch.setattr(module, "_CHUNK", 16)
    monkeypatch.setattr(module, "_PARTIALS", 4)
    inputs = make(2, 150, device)
    check(projected_step(*inputs, 0.3, 0.5), *inputs, 0.3, 0.5)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("epsilon", [0.05, 1e3])
@pytest.mark.parametrize("column", [8500, 1])  # a free coordinate and one that is barred
def test_a_row_without_a_usable_gradient_is_only_projected(bad, epsilon, column, device):
    delta, grad, inv_scale = make(3, 9000, device)
    inv_scale[column] = 0.1 if column == 8500 else 0
    expected = projected_step(delta, grad, inv_scale, 0.3, epsilon)
    if bad == 0:
        grad[1] = 0
    else:
        grad[1, column] = bad
    actual = projected_step(delta, grad, inv_scale, 0.3, epsilon)
    check(actual[1:2], delta[1:2], torch.zeros_like(grad[:1]), inv_scale, 0, epsilon)
    assert torch.equal(actual[::2], expected[::2])


def test_infinite_scale_factors_bar_all_movement(device):
    delta, grad, inv_scale = make(2, 300, device)
    assert (projected_step(delta, grad, inv_scale, 1.0, 1.0)[:, inv_scale == 0] == 0).all()
    assert (projected_step(delta, grad, torch.zeros_like(inv_scale), 1.0, 1.0) == 0).all()


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e30])
def test_gradients_of_any_size(size, device):
    delta, grad, inv_scale = make(2, 500, device)
    grad = grad * 1e6 * size
    check(projected_step(delta, grad, inv_scale, 0.3, 0.5), delta, grad, inv_scale, 0.3, 0.5)


def test_step_that_undoes_the_deviation(device):
    delta, _, inv_scale = make(1, 1000, device)
    free = inv_scale > 0
    grad = -delta / inv_scale.square().clamp(min=1e-9)
    length = (delta[:, free] / inv_scale[free]).norm().item()
    moved = projected_step(delta, grad, inv_scale, length, 1e-3)
    assert (moved[:, free] / inv_scale[free]).norm() < 1e-6 * length


def test_nan_in_delta_is_handed_on(device):
    delta, grad, inv_scale = make(2, 100, device)
    delta[0, 0] = math.nan
    result = projected_step(delta, grad, inv_scale, 0.3, 0.5)
    assert result[0, inv_scale > 0].isnan().all()
    assert result[1].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty(shape, device):
    delta = torch.ones(shape, device=device)
    assert projected_step(delta, delta, torch.ones(shape[1], device=device), 0.1, 1.0).shape == shape


def test_float64(device):
    inputs = [tensor.double() for tensor in make(2, 1001, device)]
    result = projected_step(*inputs, 0.3, 0.4)  # neither of them float32 values
    torch.testing.assert_close(result, formula(*inputs, 0.3, 0.4), rtol=1e-12, atol=0)
