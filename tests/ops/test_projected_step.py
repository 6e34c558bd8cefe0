import math

import numpy as np
import pytest
import torch
from torch import Tensor

from andfast.ops import dispatch, projected_step, projected_step_reference, scaled_norm, use_backend

# Everything is computed in float64 and rounded once: two correct implementations differ by one rounding.
TOLERANCE = {torch.float32: {"rtol": 2.4e-7, "atol": 1e-37}, torch.float64: {"rtol": 1e-12, "atol": 0}}

# One, a few, around the vector widths, around one and several chunks of the C++ kernel.
COLUMNS = (1, 3, 17, 1000, 8191, 8193, 40_001)

needs_cpu = pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))


@pytest.fixture(params=["reference", pytest.param("cpu", marks=needs_cpu)])
def backend(request):
    with use_backend(request.param):
        yield request.param


def make(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """delta, grad and inv_scale of the sizes that the attack sees; a third of the scale factors infinite."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(rows, columns, generator=generator) * 0.01
    grad = torch.randn(rows, columns, generator=generator) * 1e-6
    inv_scale = torch.tensor([1.0, 0.1, 0.02])[torch.randint(3, (columns,), generator=generator)]
    inv_scale[1::3] = 0
    return delta, grad, inv_scale


def formula(delta: Tensor, grad: Tensor, inv_scale: Tensor, step_size: float, epsilon: float) -> np.ndarray:
    """The definition, row by row over the free coordinates, in float64 NumPy."""
    free = inv_scale.numpy() > 0
    scale = 1 / inv_scale.numpy().astype(np.float64)[free]
    result = np.zeros(delta.shape)
    for row, d, g in zip(result, delta.numpy().astype(np.float64), grad.numpy().astype(np.float64), strict=True):
        x, slope = d[free] * scale, g[free] / scale  # in scaled coordinates the ball is round
        if np.isfinite(g).all() and np.linalg.norm(slope) > 0:
            x = x + step_size * slope / np.linalg.norm(slope)
        if np.linalg.norm(x) > epsilon:
            x = x * epsilon / np.linalg.norm(x)
        row[free] = x / scale
    return result


def check(actual: Tensor, delta: Tensor, grad: Tensor, inv_scale: Tensor, step_size: float, epsilon: float):
    expected = torch.from_numpy(formula(delta, grad, inv_scale, step_size, epsilon)).to(delta.dtype)
    torch.testing.assert_close(actual, expected, **TOLERANCE[delta.dtype])


def poison(shape: tuple[int, ...]) -> None:
    """Leave NaN in the memory that the next tensor of this shape is likely to get."""
    _ = [torch.full(shape, math.nan) for _ in range(4)]


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("step_size", "epsilon"), [(0.3, 0.5), (0.3, 1e3), (0, 0.5), (0.3, math.inf)])
def test_formula(backend, rows, columns, step_size, epsilon):
    inputs = make(rows, columns)
    copies = [tensor.clone() for tensor in inputs]
    poison((rows, columns))
    check(projected_step(*inputs, step_size, epsilon), *inputs, step_size, epsilon)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("epsilon", [1e-3, 0.3, 20])
def test_stays_in_the_ball(backend, epsilon):
    delta, grad, inv_scale = make(4, 2000)
    for _ in range(3):
        delta = projected_step(delta, grad, inv_scale, 2 * epsilon, epsilon)
        assert (scaled_norm(delta.double(), inv_scale.double()) <= epsilon * (1 + 1e-6)).all()


def test_a_free_step_has_the_step_size(backend):
    delta, grad, inv_scale = make(4, 2000)
    moved = projected_step(torch.zeros_like(delta), grad, inv_scale, 0.7, 1.0)
    torch.testing.assert_close(scaled_norm(moved, inv_scale), torch.full((4,), 0.7))


def test_infinite_scale_factors_bar_all_movement(backend):
    delta, grad, inv_scale = make(2, 300)
    assert (projected_step(delta, grad, inv_scale, 1.0, 1.0)[:, inv_scale == 0] == 0).all()
    assert (projected_step(delta, grad, torch.zeros(300), 1.0, 1.0) == 0).all()


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("epsilon", [0.05, 1e3])
def test_a_row_without_a_usable_gradient_is_only_projected(backend, bad, epsilon):
    delta, grad, inv_scale = make(3, 9000)
    expected = projected_step(delta, grad, inv_scale, 0.3, epsilon)
    if bad == 0:
        grad[1] = 0
    else:
        grad[1, 8500] = bad
    actual = projected_step(delta, grad, inv_scale, 0.3, epsilon)
    check(actual[1:2], delta[1:2], torch.zeros(1, 9000), inv_scale, 0, epsilon)
    assert torch.equal(actual[::2], expected[::2])


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e30])
def test_gradients_of_any_size(backend, size):
    delta, grad, inv_scale = make(2, 500)
    grad = grad * 1e6 * size
    check(projected_step(delta, grad, inv_scale, 0.3, 0.5), delta, grad, inv_scale, 0.3, 0.5)


def test_step_that_undoes_the_deviation(backend):
    delta, _, inv_scale = make(1, 1000)
    grad = -delta / inv_scale.square().clamp(min=1e-9)
    length = scaled_norm(delta, inv_scale).item()
    moved = projected_step(delta, grad, inv_scale, length, 1e-3)
    assert scaled_norm(moved, inv_scale).item() < 1e-6 * length


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty(backend, shape):
    result = projected_step(torch.ones(shape), torch.ones(shape), torch.ones(shape[1]), 0.1, 1.0)
    assert result.shape == shape
    assert scaled_norm(torch.ones(shape), torch.ones(shape[1])).shape == shape[:1]


def test_layouts(backend):
    delta, grad, inv_scale = make(4, 1001)
    expected = projected_step(delta, grad[:1].repeat(4, 1), inv_scale, 0.3, 0.5)
    strided = torch.zeros(1001, 8)[:, ::2].t().copy_(delta)
    every_other = inv_scale.repeat_interleave(2)[::2]
    assert not strided.is_contiguous()
    assert not every_other.is_contiguous()
    result = projected_step(strided, grad[:1].expand(4, -1), every_other, 0.3, 0.5)
    assert result.is_contiguous()
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    same = torch.tensor(0.5).expand(1001)
    check(projected_step(delta, grad, same, 0.3, 0.5), delta, grad, same, 0.3, 0.5)


def test_result_carries_no_gradient(backend):
    delta, grad, inv_scale = make(1, 10)
    assert not projected_step(delta.requires_grad_(), grad, inv_scale, 0.3, 0.5).requires_grad


def test_float64_takes_the_reference():
    inputs = [tensor.double() for tensor in make(2, 1001)]
    result = projected_step(*inputs, 0.3, 0.5)
    assert result.dtype == torch.float64
    check(result, *inputs, 0.3, 0.5)


def test_scaled_norm():
    delta, _, inv_scale = make(3, 1001)
    free = inv_scale > 0
    expected = np.linalg.norm(delta[:, free].double().numpy() / inv_scale[free].double().numpy(), axis=1)
    delta[:, ~free] = math.inf  # these do not count
    np.testing.assert_allclose(scaled_norm(delta, inv_scale).numpy(), expected, rtol=1e-6)


@needs_cpu
@pytest.mark.parametrize("columns", COLUMNS)
def test_bits_depend_on_neither_run_nor_threads_nor_alignment(columns):
    inputs = make(3, columns)
    shifted = []
    for tensor in inputs:
        memory = torch.empty(tensor.numel() + 1)
        shifted.append(memory[1:].view(tensor.shape).copy_(tensor))
    threads = torch.get_num_threads()
    with use_backend("cpu"):
        expected = projected_step(*inputs, 0.3, 0.5)
        try:
            for number in (1, 2, 3, 4):
                torch.set_num_threads(number)
                assert torch.equal(projected_step(*inputs, 0.3, 0.5), expected)
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(projected_step(*shifted, 0.3, 0.5), expected)


@needs_cpu
@pytest.mark.parametrize("shape", [(2, 1001), (0, 3), (1, 0)])
def test_opcheck(shape):
    delta, grad, inv_scale = make(*shape)
    torch.library.opcheck(torch.ops.andfast.projected_step, (delta, grad, inv_scale, 0.3, 0.5))


@needs_cpu
def test_operator_guards_its_memory():
    delta, grad, inv_scale = make(2, 10)
    operator = torch.ops.andfast.projected_step
    for wrong in (
        (delta, grad[:1], inv_scale),
        (delta, grad, inv_scale[:9]),
        (delta.t(), grad.t(), inv_scale),
    ):
        with pytest.raises(RuntimeError, match="must"):
            operator(*wrong, 0.3, 0.5)
    with pytest.raises(RuntimeError, match="grad must be of type Float"):
        operator(delta, grad.double(), inv_scale, 0.3, 0.5)


def test_compiles_without_a_graph_break(backend):
    inputs = make(2, 100)
    compiled = torch.compile(projected_step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs, 0.3, 0.5), projected_step(*inputs, 0.3, 0.5))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"delta": torch.zeros(3)}, ValueError, r"delta must have the shape \(N, P\), got \(3,\)"),
        ({"delta": torch.zeros(2, 3).half()}, TypeError, "delta must be float32 or float64"),
        ({"grad": torch.zeros(1, 3)}, ValueError, r"grad must have the shape \(2, 3\)"),
        ({"grad": torch.zeros(2, 3).double()}, TypeError, "grad must be torch.float32"),
        ({"grad": torch.zeros(2, 3, device="meta")}, ValueError, "grad must be on cpu"),
        ({"inv_scale": torch.zeros(2)}, ValueError, r"inv_scale must have the shape \(3,\)"),
        ({"inv_scale": torch.zeros(3).int()}, TypeError, "inv_scale must be torch.float32"),
        ({"step_size": -1.0}, ValueError, "step_size must be finite and >= 0, got -1"),
        ({"step_size": math.inf}, ValueError, "step_size"),
        ({"step_size": math.nan}, ValueError, "step_size"),
        ({"epsilon": 0.0}, ValueError, "epsilon must be > 0"),
        ({"epsilon": math.nan}, ValueError, "epsilon"),
    ],
)
def test_wrong_arguments(change, error, message):
    arguments = {
        "delta": torch.zeros(2, 3),
        "grad": torch.zeros(2, 3),
        "inv_scale": torch.zeros(3),
        "step_size": 0.1,
        "epsilon": 1.0,
    }
    with pytest.raises(error, match=message):
        projected_step(**{**arguments, **change})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_reference_on_cuda():
    inputs = make(3, 1001)
    result = projected_step_reference(*(tensor.cuda() for tensor in inputs), 0.3, 0.5)
    check(result.cpu(), *inputs, 0.3, 0.5)
