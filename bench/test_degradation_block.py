"""One block of the degradation network, 64 -> 64 channels, beside simple PyTorch code."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor

from andfast.ops.degradation_block import degradation_block, degradation_block_reference
from bench.eager import eager_block
from bench.passes import PASSES, Program, bench_passes, end_to_end, of_passes, settings
from bench.timing import DEVICE, SMALL, clock
from bench.variants import COMPILED, Variant, network_variants, skip_unavailable

pytestmark = pytest.mark.benchmark(timer=clock, warmup=False)

# Networks, images, size, channels.
if SMALL:
    CASES = [(1, 2, 16, 8), (2, 2, 16, 8)]
elif DEVICE.type == "cuda":
    CASES = [(1, 48, 256, 64), (48, 48, 256, 64)]
else:
    CASES = [(1, 2, 128, 64), (8, 8, 64, 64)]


@lru_cache(maxsize=1)
def inputs(case: tuple[int, int, int, int]) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor, Tensor]]:
    """x, centre, deviation, slope_minus_one and noise; the gradient of y; y and all gradients, in float64."""
    networks, images, size, channels = case
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x = normal(images, channels, size, size).contiguous(memory_format=torch.channels_last)
    # Centres that are exact in bfloat16, so that all types compute the same.
    centre = (normal(networks, channels, channels) / channels**0.5).bfloat16().float()
    deviation = normal(networks, channels, channels, 3, 3) * 0.005
    slope_minus_one, noise = normal(networks) * 0.05, normal(networks, size, size) * 0.05
    arguments = tuple(tensor.to(DEVICE) for tensor in (x, centre, deviation, slope_minus_one, noise))
    dy = normal(images, channels, size, size).contiguous(memory_format=torch.channels_last).to(DEVICE)
    return arguments, dy, _exact(arguments, dy)


def _exact(arguments: tuple[Tensor, ...], dy: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, one image at a time, to save memory."""
    x, *parameters = arguments
    each = len(x) // len(parameters[0])
    wide = [tensor.double().requires_grad_() for tensor in parameters[1:]]
    results, dx = [], []
    sums = [torch.zeros_like(tensor) for tensor in wide]
    for image in range(len(x)):
        row = slice(image // each, image // each + 1)
        part = x[image : image + 1].double().requires_grad_()
        y = degradation_block_reference(part, parameters[0][row].double(), *(tensor[row] for tensor in wide))
        grads = torch.autograd.grad(y, [part, *wide], dy[image : image + 1].double())
        results.append(y.detach())
        dx.append(grads[0])
        sums = [total + grad for total, grad in zip(sums, grads[1:], strict=True)]
    return torch.cat(results), end_to_end((torch.cat(dx), *sums))


def program(arguments: tuple[Tensor, ...], variant: Variant) -> Program:
    x, centre, deviation, slope_minus_one, noise = arguments
    networks = len(slope_minus_one)
    if variant.name not in ("eager", "torch.compile"):
        x = x.to(variant.dtype).requires_grad_()
        given = [x, *(tensor.clone().requires_grad_() for tensor in (deviation, slope_minus_one, noise))]
        return Program(lambda: degradation_block(given[0], centre, *given[1:]), given, end_to_end)

    # The networks side by side in the channels, and back.
    def beside(image: Tensor) -> Tensor:
        return image.unflatten(0, (networks, -1)).transpose(0, 1).flatten(1, 2)

    def apart(image: Tensor) -> Tensor:
        return image.unflatten(1, (networks, -1)).transpose(0, 1).flatten(0, 1)

    weight = deviation.clone()
    weight[..., 1, 1] += centre
    x = beside(x).to(variant.dtype).contiguous(memory_format=variant.memory_format)
    given = [x, *(tensor.clone() for tensor in (weight.flatten(0, 1), 1 + slope_minus_one, noise.unsqueeze(1)))]
    for tensor in given:
        tensor.requires_grad_()
    block = eager_block if variant.name == "eager" else torch.compile(eager_block)

    def forward() -> Tensor:
        x, weight, slopes, noise = given
        weight = weight.to(variant.dtype, memory_format=variant.memory_format)
        return apart(block(x, weight, slopes.to(variant.dtype), noise.to(variant.dtype)))

    return Program(forward, given, lambda grads: end_to_end((apart(grads[0]), *grads[1:])))


RUNS = [(case, variant) for case in CASES for variant in network_variants("degradation_block")]
RUNS += [(case, COMPILED) for case in CASES if DEVICE.type == "cuda" or case[0] == 1]


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize(("case", "variant"), RUNS, ids=str)
def test_degradation_block(benchmark, case, variant, passes):
    skip_unavailable(variant)
    arguments, dy, exact = inputs(case)
    networks, images, size, channels = case
    pixels = images * size**2
    macs = 9 * channels**2 * pixels
    # x is read and y written; then both are read with dy, dz is written and twice read, dx written.
    activation = channels * pixels * variant.dtype.itemsize
    with settings(variant):
        bench_passes(
            benchmark,
            program(arguments, variant),
            passes,
            variant,
            dy,
            exact,
            group=f"degradation_block {networks}x{images}x{size} {passes}",
            flops=of_passes(passes, 2 * macs, 4 * macs),
            moved=of_passes(passes, 2 * activation, 7 * activation),
        )
