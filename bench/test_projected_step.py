"""The projected step at the size of the paper's degradation network: about 420,000 parameters."""

import pytest
import torch
from torch import Tensor

from andfast.ops import backends, projected_step, projected_step_reference, use_backend

COLUMNS = 420_000


def eager_float32(delta: Tensor, grad: Tensor, inv_scale: Tensor, step_size: float, epsilon: float) -> Tensor:
    """The formula as one would write it without a thought for rounding; the reference computes in float64."""
    scaled = inv_scale * grad
    moved = delta + step_size * inv_scale * scaled / scaled.norm(dim=1, keepdim=True)
    free = inv_scale > 0
    moved = torch.where(free, moved, 0)
    norm = torch.where(free, moved / inv_scale, 0).norm(dim=1, keepdim=True)
    return moved * (epsilon / norm).clamp(max=1)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("backend", ["eager_float32", "reference", "cpu"])
def test_projected_step(benchmark, backend, rows):
    if backend in backends.unavailable:
        pytest.skip(backends.unavailable[backend])
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(rows, COLUMNS, generator=generator) * 1e-3
    grad = torch.randn(rows, COLUMNS, generator=generator) * 1e-6
    inv_scale = torch.rand(COLUMNS, generator=generator) + 0.02
    inv_scale[::9] = 0
    arguments = (delta, grad, inv_scale, 0.05, 0.1)

    benchmark.group = f"projected_step, {rows} x {COLUMNS}"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    # What must move at least: delta and grad are read, the result is written, inv_scale read once.
    benchmark.extra_info["bytes"] = 4 * COLUMNS * (3 * rows + 1)
    # No speed of a wrong result.
    exact = projected_step_reference(*(tensor.double() for tensor in arguments[:3]), *arguments[3:]).float()
    if backend == "eager_float32":
        torch.testing.assert_close(eager_float32(*arguments), exact, rtol=1e-4, atol=1e-9)
        benchmark(eager_float32, *arguments)
        return
    with use_backend(backend):
        torch.testing.assert_close(projected_step(*arguments), exact, rtol=2.4e-7, atol=1e-37)
        benchmark(projected_step, *arguments)
