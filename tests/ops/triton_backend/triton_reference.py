"""What the Triton kernels are compared with: plain PyTorch, one network at a time, in float64 or in the type itself.

Tensors are channels first here; `nchw` and `nhwc` lead there and back.
"""

from __future__ import annotations

from dataclasses import dataclass

import generator_checks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops.backends.base import Epilogue
from andfast.ops.noise import gaussian_field

TYPES = (torch.bfloat16, torch.float32, torch.float16)


def with_types(name: str, values: list) -> pytest.MarkDecorator:
    """Parametrize over `values` and types: on a device all pairs.

    In the interpreter, which is slow and where types differ in loads and stores alone, the first value with all types,
    the others with one in turn.
    """
    everything = torch.cuda.is_available()
    pairs = [
        pytest.param(value, dtype, id=f"{value}-{str(dtype).removeprefix('torch.')}")
        for number, value in enumerate(values)
        for turn, dtype in enumerate(TYPES)
        if everything or number == 0 or (number - turn) % len(TYPES) == 0
    ]
    return pytest.mark.parametrize((name, "dtype"), pairs)


def nchw(tensor: Tensor) -> Tensor:
    return generator_checks.nchw(tensor).contiguous()


def nhwc(tensor: Tensor) -> Tensor:
    return generator_checks.nhwc(tensor).contiguous()


@dataclass
class Case:
    """A convolution of N networks and the block around it, with values of the sizes that the attack sees.

    `x` (B, H, W, in) and `dz` (B, H, W, out) are in the type; the rest is float32. `epilogue_out` follows
    the convolution, `epilogue_in` belongs to the block that made `x`.
    """

    x: Tensor
    dz: Tensor
    centre: Tensor
    deviation: Tensor
    slope_minus_one: Tensor
    epilogue_out: Epilogue
    epilogue_in: Epilogue

    @property
    def images(self) -> int:
        return len(self.x) // len(self.slope_minus_one)

    def convolve(self, x: Tensor, deviation: Tensor, dtype: torch.dtype) -> Tensor:
        """z of x, both (B, C, H, W) of type `dtype`; the weights are rounded to the kernels' type first."""
        rounded = self.centre.to(self.x.dtype).to(dtype)
        parts = []
        for image, centre, taps in zip(x.chunk(len(self.slope_minus_one)), rounded, deviation.unbind(), strict=True):
            replicated = F.pad(image, (1, 1, 1, 1), mode="replicate")
            parts.append(F.conv2d(image, centre[..., None, None]) + F.conv2d(replicated, taps.unflatten(-1, (3, 3))))
        return torch.cat(parts)

    def taps(self, dtype: torch.dtype) -> Tensor:
        return self.deviation.to(self.x.dtype).to(dtype)

    def convolve_merged(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`convolve` by one weight, the sum of the two, which is what backward passes use; rounded likewise."""
        weight = self.deviation.unflatten(-1, (3, 3)).clone()
        weight[..., 1, 1] += self.centre
        weight = weight.to(self.x.dtype).to(dtype)
        images = F.pad(x, (1, 1, 1, 1), mode="replicate").chunk(len(self.slope_minus_one))
        return torch.cat([F.conv2d(image, taps) for image, taps in zip(images, weight, strict=True)])

    def slopes_minus_one(self, dtype: torch.dtype) -> Tensor:
        """(B, 1, 1, 1)"""
        return self.slope_minus_one.to(dtype).repeat_interleave(self.images)[:, None, None, None]


def noise_field(epilogue: Epilogue, images: int, size: tuple[int, int], channels: int, dtype: torch.dtype) -> Tensor:
    """What a noise injection adds, (B, C, H, W)."""
    _, noise, seeds, layer = epilogue
    if seeds is None:
        added = noise.to(dtype).repeat_interleave(images, 0)[:, None]
    else:
        fields = torch.cat([gaussian_field(seed, layer, images, size) for seed in seeds]).to(dtype)
        added = noise.to(dtype).repeat_interleave(images, 0)[..., None, None] * fields
    return added.expand(-1, channels, -1, -1)


def make(
    networks: int,
    images: int,
    size: tuple[int, int],
    widths: tuple[int, int],
    dtype: torch.dtype,
    device: str,
    kind: str = "map",
    seed: int = 0,
) -> Case:
    """A case with `images` images for each of `networks` networks, from `widths[0]` to `widths[1]` channels."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    slope_minus_one = torch.tensor([-0.3, 0.4, -1.5]).repeat(networks)[:networks].to(device)

    def epilogue(channels: int, layer: int) -> Epilogue:
        values = 0.3 * normal(networks, *(size if kind == "map" else (channels,)))
        seeds = torch.arange(networks, device=device) * 0x1_2345_6789 + 7
        return Epilogue(slope_minus_one, values.to(device), None if kind == "map" else seeds, layer)

    into, out = widths
    return Case(
        normal(networks * images, *size, into).to(device, dtype),
        (0.1 * normal(networks * images, *size, out)).to(device, dtype),
        (normal(networks, out, into) / into**0.5).to(device),
        (0.05 * normal(networks, out, into, 9) / into**0.5).to(device),
        slope_minus_one,
        epilogue(out, 1),
        epilogue(into, 2),
    )


def unpack(sign_mask: Tensor, channels: int) -> Tensor:
    """(B, H, W, bytes) uint8 -> (B, C, H, W) bool."""
    return generator_checks.nchw(generator_checks.unpack_bits(sign_mask, channels))


def pack(negative: Tensor) -> Tensor:
    """The inverse of `unpack`."""
    bits = F.pad(negative.permute(0, 2, 3, 1).int(), (0, -negative.shape[1] % 8)).unflatten(-1, (-1, 8))
    return (bits << torch.arange(8, device=bits.device)).sum(-1).to(torch.uint8)


def check(actual: Tensor, exact: Tensor, own: Tensor) -> None:
    """At most twice the error that PyTorch makes itself in the type, and half a unit in the last place of the largest.

    Args:
        actual: the kernel's.
        exact: in float64.
        own: what unfused PyTorch gives in the type in which the kernel gives its result.
    """
    assert actual.dtype == own.dtype
    assert actual.shape == exact.shape
    assert actual.isfinite().all()
    error, allowed = (actual.double() - exact).abs().max(), (own.double() - exact).abs().max()
    floor = torch.finfo(actual.dtype).eps * exact.abs().max() / 2
    assert error <= 2 * allowed + floor, f"error {error:.2e}, PyTorch's own {allowed:.2e}, floor {floor:.2e}"
