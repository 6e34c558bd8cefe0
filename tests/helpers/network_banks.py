"""Banks of single blocks, and how a backend's block is judged: against float64, by what plain PyTorch makes of it."""

from __future__ import annotations

import torch
from networks import distance
from torch import Tensor

from andfast.ops import degradation_block, use_backend
from andfast.ops.degradation_block import degradation_block_reference


class Bank:
    """The arguments of `degradation_block` for N networks, with values of the sizes that the attack sees.

    Slopes and strengths of both signs; centres that half types can hold, so that all types compute the same.
    """

    layer = 3

    def __init__(
        self,
        networks: int,
        images: int,
        size: tuple[int, int],
        widths: tuple[int, int],
        dtype: torch.dtype,
        kind: str,
        device: str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(images)
        wide = torch.float64 if dtype == torch.float64 else torch.float32

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=wide).to(device)

        into, out = widths
        self.x = normal(images, into, *size).to(dtype)
        self.centre = (normal(networks, out, into) / into**0.5).to(torch.bfloat16).to(wide)
        self.deviation = normal(networks, out, into, 3, 3) * 0.05 / into**0.5
        self.slope_minus_one = torch.tensor([-0.3, 0.4, -1.7, -0.9], dtype=wide, device=device)[:networks].clone()
        self.noise = normal(networks, *(size if kind == "map" else (out,))) * 0.3
        self.seed = None if kind == "map" else torch.arange(networks, device=device) * 2**33 + 7
        self.dy = normal(images, out, *size)

    @property
    def arguments(self) -> tuple:
        return self.x, self.centre, self.deviation, self.slope_minus_one, self.noise, self.seed, self.layer


def _results(function, bank: Bank, dtype: torch.dtype, wide: torch.dtype) -> tuple[Tensor, ...]:
    """y and the gradients of x, centre, deviation, slope_minus_one and noise."""
    x, *parameters, seed, layer = bank.arguments
    # As they are laid out, expanded ones, too: `requires_grad_` needs no memory of their own.
    given = [x.to(dtype).detach(), *(tensor.to(wide).detach() for tensor in parameters)]
    for tensor in given:
        tensor.requires_grad_()
    y = function(*given, seed, layer)
    return y.detach(), *torch.autograd.grad(y, given, bank.dy[: len(x)].to(dtype))


def run(backend: str, bank: Bank) -> tuple[Tensor, ...]:
    with use_backend(backend):
        return _results(degradation_block, bank, bank.x.dtype, torch.float32)


def check(backend: str, bank: Bank) -> None:
    """At most twice the error that plain PyTorch makes in the same type, both against float64."""
    dtype = bank.x.dtype
    exact = _results(degradation_block_reference, bank, torch.float64, torch.float64)
    plain = _results(degradation_block_reference, bank, dtype, torch.float32)
    fused = run(backend, bank)
    floor = 2e-6 if dtype == torch.float32 else 2e-3
    names = ("y", "x", "centre", "deviation", "slope_minus_one", "noise")
    failed = {}
    for name, found, own, wanted in zip(names, fused, plain, exact, strict=True):
        assert found.shape == wanted.shape, name
        pair = distance(found, wanted), distance(own, wanted)
        if not pair[0] <= 2 * pair[1] + floor:
            failed[name] = pair
    assert not failed, failed


def check_operator(bank: Bank, implementation: str) -> None:
    """`torch.library.opcheck` of the operator behind `degradation_block`."""
    x, *parameters, seed, layer = bank.arguments
    operator = torch.ops.andfast.degradation_block.default
    torch.library.opcheck(operator, (x, parameters, seed, layer, implementation, True))
