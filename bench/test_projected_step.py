"""The projected step at the size of the paper's degradation network: about 420,000 parameters."""

from functools import partial

import pytest
import torch
from torch import Tensor

from andfast.ops import projected_step, projected_step_reference
from bench.passes import settings
from bench.timing import DEVICE, SMALL, clock, measure
from bench.variants import Variant, backend_variants, skip_unavailable

pytestmark = pytest.mark.benchmark(timer=clock, warmup=False)

COLUMNS = 4_200 if SMALL else 420_000
VARIANTS = [Variant("eager", torch.float32), *backend_variants("projected_step", torch.float32)]


def eager(delta: Tensor, grad: Tensor, inv_scale: Tensor, step_size: float, epsilon: float) -> Tensor:
    """The formula without precautions against rounding errors; the reference computes in float64."""
    scaled = inv_scale * grad
    moved = delta + step_size * inv_scale * scaled / scaled.norm(dim=1, keepdim=True)
    free = inv_scale > 0
    moved = torch.where(free, moved, 0)
    norm = torch.where(free, moved / inv_scale, 0).norm(dim=1, keepdim=True)
    return moved * (epsilon / norm).clamp(max=1)


@pytest.mark.parametrize("rows", [1, 48 if DEVICE.type == "cuda" else 8])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_projected_step(benchmark, variant, rows):
    skip_unavailable(variant)
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(rows, COLUMNS, generator=generator) * 1e-3
    grad = torch.randn(rows, COLUMNS, generator=generator) * 1e-6
    inv_scale = torch.rand(COLUMNS, generator=generator) + 0.02
    inv_scale[::9] = 0
    arguments = (*(tensor.to(DEVICE) for tensor in (delta, grad, inv_scale)), 0.05, 0.1)
    exact = projected_step_reference(*(tensor.double() for tensor in arguments[:3]), *arguments[3:]).float()
    rough = variant.name == "eager"
    with settings(variant):
        run = partial(eager if rough else projected_step, *arguments)
        torch.testing.assert_close(run(), exact, rtol=1e-4 if rough else 2.4e-7, atol=1e-9 if rough else 1e-37)
        measure(
            benchmark,
            run,
            group=f"projected_step {rows}x{COLUMNS}",
            variant=str(variant),
            dtype=variant.dtype,
            moved=4 * COLUMNS * (3 * rows + 1),  # delta and grad are read, the result is written, inv_scale read once
            rounds=200,
        )
