"""The whole degradation network, forward and backward, beside simple PyTorch code."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from andfast.degradation.network import DegradationNetwork
from andfast.ops.degradation_forward import degradation_forward, degradation_forward_reference
from andfast.ops.theta_layout import ThetaLayout
from bench.eager import EagerNetwork
from bench.passes import PASSES, Program, bench_passes, of_passes, settings
from bench.timing import DEVICE, SMALL, clock
from bench.variants import COMPILED, Variant, network_variants, skip_unavailable

pytestmark = pytest.mark.benchmark(timer=clock, warmup=False)


@dataclass(frozen=True)
class Case:
    """`networks` degrade `images` of `size` x `size` pixels."""

    networks: int
    images: int
    size: int
    channels: int = 64
    blocks: int = 5

    def __str__(self) -> str:
        return f"{self.networks}x{self.images}x{self.size}"

    def pixels(self) -> tuple[int, int]:
        """Before the pooling and after it, in all images."""
        high = self.images * self.size**2
        return high, high // 16

    def flops(self, passes: str) -> int:
        """Products and sums of the convolutions; the first one's input has no gradient."""
        high, low = self.pixels()
        first = 9 * 3 * self.channels * high
        inner = 9 * self.channels**2 * (high * (self.blocks - 1) + low * self.blocks)
        macs = first + inner + 9 * 3 * self.channels * low
        return of_passes(passes, 2 * macs, 4 * macs - 2 * first)

    def moved(self, layout: ThetaLayout, dtype: torch.dtype, passes: str) -> int:
        """Bytes if a layer writes its output once and reads it once; backward, it reads its input once more, and
        writes and reads each gradient once."""
        high, low = self.pixels()
        inner = self.channels * (high * (self.blocks - 1) + low * (self.blocks + 1)) * dtype.itemsize
        ends = 4 * 3 * high + dtype.itemsize * 3 * low + 4 * self.networks * layout.size
        return of_passes(passes, 2 * inner + ends, 3 * inner + ends)


if SMALL:
    CASES = [Case(1, 2, 16, 8, 2), Case(2, 2, 16, 8, 2)]
elif DEVICE.type == "cuda":
    CASES = [Case(1, 48, 256), Case(48, 48, 256)]
else:
    CASES = [Case(1, 2, 128), Case(8, 8, 64)]


# Compiled ones come last; on the CPU only with one network, because it takes as long as all the others.
RUNS = [(case, variant) for case in CASES for variant in network_variants("degradation_forward")]
RUNS += [(case, COMPILED) for case in CASES if DEVICE.type == "cuda" or case.networks == 1]


@dataclass
class Inputs:
    """The network's inputs, the gradient of its result, and the exact result and gradient, in float64."""

    hr: Tensor
    theta_id: Tensor
    delta: Tensor
    noise_seed: Tensor
    layout: ThetaLayout
    grad_lr: Tensor
    exact_lr: Tensor
    exact_grad: Tensor


@lru_cache(maxsize=1)
def inputs(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    # Identities that are exact in bfloat16, so that all types compute the same network.
    network = DegradationNetwork(4, case.networks, case.channels, case.blocks, dtype=torch.bfloat16)
    network.reset_identity((case.size, case.size), generator)
    layout = network.layout
    delta = torch.randn(network.theta_id.shape, generator=generator) * 0.005
    delta[:, layout.slope[0].start :] *= 10
    hr = torch.rand(case.images, 3, case.size, case.size, generator=generator)
    grad_lr = torch.randn(case.images, 3, case.size // 4, case.size // 4, generator=generator)
    tensors = [tensor.to(DEVICE) for tensor in (hr, network.theta_id, delta, network.noise_seed)]
    grad_lr = grad_lr.to(DEVICE)
    return Inputs(*tensors, layout, grad_lr, *_exact(*tensors, layout, grad_lr))


def _exact(
    hr: Tensor, theta_id: Tensor, delta: Tensor, noise_seed: Tensor, layout: ThetaLayout, grad_lr: Tensor
) -> tuple[Tensor, Tensor]:
    """The reference in float64 and its gradient of delta, one image at a time, to save memory."""
    lr, grad = [], torch.zeros_like(delta, dtype=torch.float64)
    for image in range(len(hr)):
        row = slice(network := image // (len(hr) // len(delta)), network + 1)
        deviation = delta[row].double().requires_grad_()
        part = hr[image : image + 1].double()
        lr.append(
            degradation_forward_reference(
                part, theta_id[row].double(), deviation, noise_seed[row], layout, torch.float64
            )
        )
        grad[row] += torch.autograd.grad(lr[-1], deviation, grad_lr[image : image + 1].double())[0]
    return torch.cat(lr).detach(), grad


def program(given: Inputs, variant: Variant) -> Program:
    if variant.name in ("eager", "torch.compile"):
        theta = given.theta_id + given.layout.to_taps(given.delta)
        network = EagerNetwork(given.layout, theta, variant.dtype, variant.memory_format)
        run = network if variant.name == "eager" else torch.compile(network)
        return Program(lambda: run(given.hr), list(network.parameters()), network.as_delta)
    delta = given.delta.clone().requires_grad_()
    arguments = (given.hr, given.theta_id, delta, given.noise_seed, given.layout, variant.dtype)
    return Program(lambda: degradation_forward(*arguments), [delta], lambda grads: grads[0])


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize(("case", "variant"), RUNS, ids=str)
def test_degradation_forward(benchmark, case, variant, passes):
    skip_unavailable(variant)
    given = inputs(case)
    with settings(variant):
        bench_passes(
            benchmark,
            program(given, variant),
            passes,
            variant,
            given.grad_lr,
            (given.exact_lr, given.exact_grad),
            group=f"degradation_forward {case} {passes}",
            flops=case.flops(passes),
            moved=case.moved(given.layout, variant.dtype, passes),
        )
