import math

import numpy as np
import pytest
import torch
from generator_checks import check_threads
from projected_step_tests import COLUMNS, ProjectedStepTests, check, make

from andfast.ops import dispatch, projected_step, projected_step_reference, scaled_norm, use_backend

needs_cpu = pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))


@pytest.fixture(params=["reference", pytest.param("cpu", marks=needs_cpu)])
def backend(request):
    with use_backend(request.param):
        yield request.param


class TestProjectedStep(ProjectedStepTests):
    @pytest.fixture
    def step(self, backend):
        return projected_step, "cpu"


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
    assert scaled_norm(torch.ones(3, 0), torch.ones(0)).shape == (3,)
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
    with use_backend("cpu"):
        expected = projected_step(*inputs, 0.3, 0.5)
        check_threads(lambda: [projected_step(*inputs, 0.3, 0.5)])
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
