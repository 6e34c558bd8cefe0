"""ESRGAN's dense block, of which RRDBNet has 69: with the gradients of an attack, and of an update."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor

from andfast.ops.dense_block import dense_block, dense_block_reference
from bench.passes import Program, bench_passes, end_to_end, settings
from bench.timing import DEVICE, SMALL, clock
from bench.variants import COMPILED, Variant, network_variants, skip_unavailable

pytestmark = pytest.mark.benchmark(timer=clock, warmup=False)

# Images, size, features, growth.
if SMALL:
    CASES = [(2, 8, 8, 4)]
elif DEVICE.type == "cuda":
    CASES = [(48, 64, 64, 32)]
else:
    CASES = [(2, 32, 64, 32), (8, 32, 64, 32)]
PASSES = ("forward + input gradient", "forward + all gradients")


@lru_cache(maxsize=1)
def inputs(case: tuple[int, int, int, int]) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """x, five weights and five biases; the gradient of y; y and all gradients, end to end, in float64."""
    images, size, features, growth = case
    generator = torch.Generator().manual_seed(0)
    outputs = [growth] * 4 + [features]
    shapes = [(out, features + k * growth, 3, 3) for k, out in enumerate(outputs)] + [(out,) for out in outputs]
    # Values that bfloat16 can hold, so that all types compute the same.
    values = [torch.randn(shape, generator=generator).mul_(0.03).bfloat16().float() for shape in shapes]
    x, dy = (torch.randn(images, features, size, size, generator=generator).bfloat16().float() for _ in range(2))
    given = [tensor.to(DEVICE) for tensor in (x, *values)]
    wide = [tensor.double().requires_grad_() for tensor in given]
    y = dense_block_reference(wide[0], wide[1:6], wide[6:])
    grads = torch.autograd.grad(y, wide, dy.to(DEVICE).double())
    return given, dy.to(DEVICE), y.detach(), end_to_end(grads)


def program(given: list[Tensor], variant: Variant, frozen: bool) -> Program:
    plain = variant.name in ("eager", "torch.compile")
    function = dense_block_reference if plain else dense_block
    if variant.name == "torch.compile":
        function = torch.compile(dense_block_reference)
    last = torch.channels_last if variant.channels_last or not plain else torch.contiguous_format

    def placed(tensor: Tensor) -> Tensor:
        tensor = tensor.to(variant.dtype)
        return tensor.contiguous(memory_format=last) if tensor.ndim == 4 else tensor.clone()

    x, *values = (placed(tensor) for tensor in given)
    wanted = [x] if frozen else [x, *values]
    for tensor in wanted:
        tensor.requires_grad_()
    return Program(lambda: function(x, values[:5], values[5:]), wanted, end_to_end)


RUNS = [(case, variant) for case in CASES for variant in network_variants("dense_block")] + [(CASES[0], COMPILED)]


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize(("case", "variant"), RUNS, ids=str)
def test_dense_block(benchmark, case, variant, passes):
    skip_unavailable(variant)
    given, dy, exact, grads = inputs(case)
    images, size, features, growth = case
    frozen = passes == PASSES[0]
    pixels = images * size**2
    macs = 9 * pixels * (4 * features * growth + 6 * growth**2 + (features + 4 * growth) * features)
    traffic = pixels * variant.dtype.itemsize * (2 * features + 8 * growth)
    with settings(variant):
        bench_passes(
            benchmark,
            program(given, variant, frozen),
            "forward+backward",
            variant,
            dy.contiguous(memory_format=variant.memory_format),
            (exact, grads[: exact.numel()] if frozen else grads),
            group=f"dense block {images}x{size} {features}+4x{growth} {passes}",
            flops=2 * macs * (2 if frozen else 3),
            moved=traffic * (2 if frozen else 3),
        )
