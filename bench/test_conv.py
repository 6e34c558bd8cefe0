"""andfast's float32 convolutions on the CPU, also in cases where they are slower and not used, beside the library's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops import dispatch
from bench.timing import DEVICE, SMALL, clock, measure

pytestmark = [
    pytest.mark.benchmark(timer=clock, warmup=False),
    pytest.mark.skipif(DEVICE.type != "cpu", reason="only for the CPU"),
    pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", "")),
]

# Networks, images, size, in, out.
CASES = [(2, 2, 16, 3, 8)] if SMALL else [(1, 2, 128, 64, 64), (8, 8, 64, 64, 64), (1, 2, 128, 3, 64)]
PASSES = ("forward", "input gradient", "weight gradient")
VARIANTS = ("eager contiguous", "eager channels_last", "cpu")


def library(which: str, memory_format: torch.memory_format, x: Tensor, weights: Tensor, dz: Tensor) -> Callable:
    """PyTorch's convolution of each network, or one of its gradients: (B, C, H, W) or (N, out, in, 9)."""
    networks = len(weights)

    def split(image: Tensor) -> tuple[Tensor, ...]:
        return image.permute(0, 3, 1, 2).contiguous(memory_format=memory_format).chunk(networks)

    images, grads = split(x), split(dz)
    taps = [weight.unflatten(2, (3, 3)).contiguous(memory_format=memory_format) for weight in weights]
    if which == "forward":
        return lambda: [F.conv2d(*pair) for pair in zip(images, taps, strict=True)]
    wanted = [which == "input gradient", which == "weight gradient", False]
    backward = torch.ops.aten.convolution_backward
    settings = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, wanted)
    return lambda: [backward(*each, *settings)[wanted.index(True)] for each in zip(grads, images, taps, strict=True)]


def ours(which: str, x: Tensor, weights: Tensor, dz: Tensor) -> Callable:
    return {
        "forward": lambda: torch.ops.andfast.conv(x, weights, 0, False),
        "input gradient": lambda: torch.ops.andfast.conv(dz, weights, 2, True),
        "weight gradient": lambda: torch.ops.andfast.conv_weight_grad(x, dz, len(weights)),
    }[which]


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv(benchmark, case, variant, which):
    networks, images, size, inputs, outputs = case
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, size + 2, size + 2, inputs, generator=generator)
    dz = torch.randn(images, size, size, outputs, generator=generator)
    weights = torch.randn(networks, outputs, inputs, 9, generator=generator) / inputs**0.5 / 9
    exact = torch.cat(library(which, torch.contiguous_format, x.double(), weights.double(), dz.double())())
    if variant == "cpu":
        run = ours(which, x, weights, dz)
        found = run()
        found = found.flatten(0, 1).unflatten(2, (3, 3)) if which == "weight gradient" else found.permute(0, 3, 1, 2)
    else:
        memory_format = torch.channels_last if "last" in variant else torch.contiguous_format
        run = library(which, memory_format, x, weights, dz)
        found = torch.cat(run())
    error = (found - exact).norm() / exact.norm()
    assert error < 1e-5, error
    measure(
        benchmark,
        run,
        group=f"conv {networks}x{images}x{size} {inputs}->{outputs} {which}",
        variant=f"{variant} float32",
        dtype=torch.float32,
        flops=2 * 9 * images * size**2 * inputs * outputs,
        moved=4 * (x.numel() + dz.numel() + weights.numel()),
        rounds=15,
    )
