"""Degradation networks to compute with, and how their fused passes are judged."""

import torch
from torch import Tensor

from andfast.degradation.network import DegradationNetwork
from andfast.ops import degradation_forward, use_backend


def make(
    networks: int = 1,
    images: int = 2,
    size: tuple[int, int] = (12, 20),
    scale: int = 4,
    dtype: torch.dtype = torch.float32,
    **options,
) -> tuple[DegradationNetwork, Tensor, Tensor, Tensor]:
    """A network, its HR images, a deviation of the attack's size with slopes of both signs, and an LR gradient."""
    torch.manual_seed(networks * 100 + images)
    network = DegradationNetwork(scale, networks, dtype=dtype, **options)
    network.reset_identity(size)
    delta = torch.randn_like(network.delta) * 0.003
    for segment in network.layout.slope:
        segment.view(delta)[:] = torch.randn(networks, 1, 1, 1) * 0.3
    network.layout.slope[1].view(delta)[:] = -1.6  # a slope below zero
    hr = torch.rand(images, 3, *size)
    lr_grad = torch.randn(images, 3, size[0] // scale, size[1] // scale)
    return network, hr, delta, lr_grad


def run(
    backend: str, network: DegradationNetwork, hr: Tensor, delta: Tensor, lr_grad: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """LR and the gradients of delta and of hr."""
    wide = dtype == torch.float64
    hr, delta = (tensor.to(torch.float64 if wide else tensor.dtype).requires_grad_() for tensor in (hr, delta))
    theta_id = network.theta_id.double() if wide else network.theta_id
    with use_backend(backend):
        lr = degradation_forward(hr, theta_id, delta, network.noise_seed, network.layout, dtype)
        grads = torch.autograd.grad((lr * lr_grad).sum(), (delta, hr))
    return lr.detach(), *grads


def parts(network: DegradationNetwork, result: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    """A result's pieces, each judged by itself: the groups of theta differ by orders of magnitude.

    Noise and slopes of all layers together: the rounding errors of a few numbers say nothing.
    """
    lr, grad, hr_grad = result
    layout = network.layout
    convs = {f"conv {segment.layer}": segment.view(grad) for segment in layout.conv}
    start, stop = layout.noise[0].start, layout.slope[0].start
    return {"lr": lr, "hr": hr_grad, "noise": grad[:, start:stop], "slope": grad[:, stop:], **convs}


def distance(result: Tensor, exact: Tensor) -> float:
    return (torch.linalg.vector_norm(result.double() - exact) / torch.linalg.vector_norm(exact)).item()


def check(backend: str, network: DegradationNetwork, hr: Tensor, delta: Tensor, lr_grad: Tensor):
    """At most twice the error that plain PyTorch makes in the same type, both against float64; for the library's
    convolutions four times, as `andfast.ops.selection` demands: they round between a convolution and its tail, and how
    they sum up depends on the processor."""
    dtype = network.dtype
    exact = parts(network, run("reference", network, hr, delta, lr_grad, torch.float64))
    plain = parts(network, run("reference", network, hr, delta, lr_grad, dtype))
    fused = parts(network, run(backend, network, hr, delta, lr_grad, dtype))
    assert fused.keys() == exact.keys()
    # In float32 centre and deviation are summed before the convolution, as one would write it without half types, and
    # eleven convolutions round a little more in tiles of 4 x 4 results.
    floor = 4e-6 if dtype == torch.float32 else 2e-3
    worst = {
        name: (distance(fused[name], exact[name]), distance(plain[name], exact[name]))
        for name in exact
        if exact[name].numel()
    }
    factor = 4 if backend == "library" else 2
    failed = {name: pair for name, pair in worst.items() if not pair[0] <= factor * pair[1] + floor}
    assert not failed, failed
