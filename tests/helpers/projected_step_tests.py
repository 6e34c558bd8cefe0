"""What every implementation of the projected step must do; a subclass has a fixture `step`: (function, device)."""

import math

import pytest
import torch
from generator_checks import poison
from torch import Tensor

from andfast.ops import scaled_norm

# Everything is computed in float64 and rounded once: two correct implementations differ by one rounding.
TOLERANCE = {torch.float32: {"rtol": 2.4e-7, "atol": 1e-37}, torch.float64: {"rtol": 1e-12, "atol": 0}}

# One, a few, around the vector widths, around one and several chunks of the kernels.
COLUMNS = (1, 3, 17, 1000, 2049, 8191, 8193, 40_001)


def make(rows: int, columns: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """delta, grad and inv_scale of the sizes that the attack sees; a third of the scale factors infinite."""
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(rows, columns, generator=generator) * 0.01
    grad = torch.randn(rows, columns, generator=generator) * 1e-6
    inv_scale = torch.tensor([1.0, 0.1, 0.02])[torch.randint(3, (columns,), generator=generator)]
    inv_scale[1::3] = 0
    return delta.to(device), grad.to(device), inv_scale.to(device)


def formula(delta: Tensor, grad: Tensor, inv_scale: Tensor, step_size: float, epsilon: float) -> Tensor:
    """The definition, row by row over the free coordinates, in float64: in scaled coordinates the ball is round."""
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
    torch.testing.assert_close(actual, formula(*arguments), **TOLERANCE[actual.dtype])


class ProjectedStepTests:
    @pytest.mark.parametrize("columns", COLUMNS)
    @pytest.mark.parametrize("rows", [1, 3])
    @pytest.mark.parametrize(("step_size", "epsilon"), [(0.3, 0.5), (0.3, 1e3), (0, 0.5), (0.3, math.inf)])
    def test_formula(self, step, rows, columns, step_size, epsilon):
        step, device = step
        inputs = make(rows, columns, device)
        copies = [tensor.clone() for tensor in inputs]
        poison(rows, columns)
        actual = step(*inputs, step_size, epsilon)
        check(actual, *inputs, step_size, epsilon)
        assert torch.equal(step(*inputs, step_size, epsilon), actual)
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))

    def test_infinite_scale_factors_bar_all_movement(self, step):
        step, device = step
        delta, grad, inv_scale = make(2, 300, device)
        assert (step(delta, grad, inv_scale, 1.0, 1.0)[:, inv_scale == 0] == 0).all()
        assert (step(delta, grad, torch.zeros_like(inv_scale), 1.0, 1.0) == 0).all()

    @pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("epsilon", [0.05, 1e3])
    @pytest.mark.parametrize("column", [8500, 1])  # a free coordinate and one that is barred
    def test_a_row_without_a_usable_gradient_is_only_projected(self, step, bad, epsilon, column):
        step, device = step
        delta, grad, inv_scale = make(3, 9000, device)
        inv_scale[column] = 0.1 if column == 8500 else 0
        expected = step(delta, grad, inv_scale, 0.3, epsilon)
        if bad == 0:
            grad[1] = 0
        else:
            grad[1, column] = bad
        actual = step(delta, grad, inv_scale, 0.3, epsilon)
        check(actual[1:2], delta[1:2], torch.zeros_like(grad[:1]), inv_scale, 0, epsilon)
        assert torch.equal(actual[::2], expected[::2])

    @pytest.mark.parametrize("size", [1e-42, 1e-30, 1e30])
    def test_gradients_of_any_size(self, step, size):
        step, device = step
        delta, grad, inv_scale = make(2, 500, device)
        grad = grad * 1e6 * size
        check(step(delta, grad, inv_scale, 0.3, 0.5), delta, grad, inv_scale, 0.3, 0.5)

    def test_step_that_undoes_the_deviation(self, step):
        step, device = step
        delta, _, inv_scale = make(1, 1000, device)
        grad = -delta / inv_scale.square().clamp(min=1e-9)
        length = scaled_norm(delta, inv_scale).item()
        moved = step(delta, grad, inv_scale, length, 1e-3)
        assert scaled_norm(moved, inv_scale).item() < 1e-6 * length

    def test_nan_in_delta_is_handed_on(self, step):
        step, device = step
        delta, grad, inv_scale = make(2, 100, device)
        delta[0, 0] = math.nan
        result = step(delta, grad, inv_scale, 0.3, 0.5)
        assert result[0, inv_scale > 0].isnan().all()
        assert result[1].isfinite().all()

    @pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
    def test_empty(self, step, shape):
        step, device = step
        delta = torch.ones(shape, device=device)
        assert step(delta, delta, torch.ones(shape[1], device=device), 0.1, 1.0).shape == shape
