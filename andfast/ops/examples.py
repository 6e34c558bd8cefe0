"""An example of each operation, on which `andfast.ops.selection` verifies and times the implementations.

An example takes a `Draw` and the sizes that the operation passes to `dispatch.resolve`: what the structure is made of
(channels, networks), then (B, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from andfast.ops import dispatch
from andfast.ops.blur_pool import blur_pool
from andfast.ops.conv_act import conv_act
from andfast.ops.degradation_block import degradation_block
from andfast.ops.degradation_forward import degradation_forward
from andfast.ops.dense_block import dense_block
from andfast.ops.identity_init import identity_centres, identity_last
from andfast.ops.noise import gaussian_field
from andfast.ops.projected_step import projected_step
from andfast.ops.theta_layout import ThetaLayout
from andfast.utils.devices import usual_precision


class Draw:
    """Normal random tensors, the same for every implementation.

    Args:
        device: of the tensors.
        dtype: the type to compute in.
        rounded_to: the type whose values images and weights have: that of the implementation, where `dtype` is float64.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, rounded_to: torch.dtype) -> None:
        self.device, self.dtype, self.rounded_to = device, dtype, rounded_to
        self.parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self._rng = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, std: float = 1.0) -> Tensor:
        """Images or weights in the compute type."""
        return self._values(shape, std).to(self.rounded_to).to(self.device, self.dtype)

    def parameters(self, *shape: int, std: float = 1.0) -> Tensor:
        """What is float32 in every compute type, such as theta."""
        return self._values(shape, std).to(self.device, self.parameter_dtype)

    def _values(self, shape: tuple[int, ...], std: float) -> Tensor:
        return torch.randn(shape, generator=self._rng) * std


class Example(NamedTuple):
    """A call, and the tensors whose gradients it has: all are verified, those of `trained` are timed."""

    call: Callable[[], Tensor]
    trained: Sequence[Tensor]
    others: Sequence[Tensor] = ()


def _conv_act(draw: Draw, inputs: int, outputs: int, passes: int, *shape: int) -> Example:
    batch, height, width = shape
    x, weight, bias = draw(batch, inputs, height, width), draw(outputs, inputs, 3, 3, std=_std(inputs)), draw(outputs)
    return _by_passes(lambda: conv_act(x, weight, bias, 0.2), passes, x, weight, bias)


def _dense_block(draw: Draw, features: int, growth: int, passes: int, *shape: int) -> Example:
    batch, height, width = shape
    x = draw(batch, features, height, width)
    sizes = [(growth if k < 4 else features, features + k * growth) for k in range(5)]
    weights = [draw(out, into, 3, 3, std=_std(into)) for out, into in sizes]
    biases = [draw(out) for out, _ in sizes]
    return _by_passes(lambda: dense_block(x, weights, biases), passes, x, *weights, *biases)


def _degradation_block(draw: Draw, networks: int, inputs: int, outputs: int, seeded: int, *shape: int) -> Example:
    batch, height, width = _multiple(shape[0], networks), *shape[1:]
    x, centre = draw(batch, inputs, height, width), draw.parameters(networks, outputs, inputs, std=inputs**-0.5)
    deviation = draw.parameters(networks, outputs, inputs, 3, 3, std=0.3 * _std(inputs))
    slope = draw.parameters(networks, std=0.3)
    noise = draw.parameters(networks, outputs) if seeded else draw.parameters(networks, height, width)
    seed = torch.arange(3, 3 + networks, device=draw.device) if seeded else None
    return Example(lambda: degradation_block(x, centre, deviation, slope, noise, seed, 1), [deviation, slope, noise, x])


def _degradation_forward(
    draw: Draw, networks: int, image_channels: int, channels: int, blocks: int, scale: int, gaussian: int, *shape: int
) -> Example:
    size = _multiple(shape[1], scale), _multiple(shape[2], scale)
    layout = ThetaLayout(size, scale, channels, blocks, "gaussian" if gaussian else "map", image_channels)
    hr = draw.parameters(_multiple(shape[0], networks), image_channels, *size)
    widths = [image_channels, *[channels] * (2 * blocks), image_channels]
    rng = torch.Generator().manual_seed(1)
    centres = identity_centres(networks, widths, draw.rounded_to, rng)
    theta_id = draw.parameters(networks, layout.size, std=0.0)
    for segment, centre in zip(layout.conv, centres, strict=True):
        segment.view(theta_id)[..., 4] = centre.to(theta_id)
    for segment in layout.slope:
        segment.view(theta_id).fill_(1.0)
    delta = draw.parameters(networks, layout.size, std=0.02)
    seed = torch.arange(3, 3 + networks, device=draw.device)
    return Example(lambda: degradation_forward(hr, theta_id, delta, seed, layout, draw.dtype), [delta], [hr])


def _blur_pool(draw: Draw, channels: int, scale: int, *shape: int) -> Example:
    batch, height, width = shape[0], _multiple(shape[1], scale), _multiple(shape[2], scale)
    image = draw(batch, channels, height, width)
    return Example(lambda: blur_pool(image, scale), [image])


def _gaussian_field(draw: Draw, images: int, height: int, width: int) -> Example:
    seed = torch.tensor(5, device=draw.device)
    return Example(lambda: gaussian_field(seed, 1, images, (height, width)), [])


def _projected_step(draw: Draw, rows: int, _: int, columns: int) -> Example:
    delta, grad, inv_scale = (draw.parameters(*shape) for shape in ((rows, columns), (rows, columns), (columns,)))
    inv_scale = inv_scale.clamp(min=0)  # half of the coordinates may not move
    return Example(lambda: projected_step(delta, grad, inv_scale, 0.5, math.sqrt(columns)), [])


def _identity_last(draw: Draw, networks: int, *sizes: int) -> Example:
    *widths, _, _, _ = sizes
    pairs = zip(widths[1:], widths, strict=False)
    centres = [draw.parameters(networks, out, into, std=into**-0.5) for out, into in pairs]
    return Example(lambda: identity_last(centres), [])


#: operation -> its example.
EXAMPLES: dict[str, Callable[..., Example]] = {
    "conv_act": _conv_act,
    "dense_block": _dense_block,
    "degradation_block": _degradation_block,
    "degradation_forward": _degradation_forward,
    "blur_pool": _blur_pool,
    "gaussian_field": _gaussian_field,
    "projected_step": _projected_step,
    "identity_last": _identity_last,
}


def standard_sizes(device: torch.device) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Operations, types and sizes of usual training: F of the paper, RRDBNet and Compact on 8 images of 128 x 128."""
    types = {
        torch.float32,
        usual_precision(device, "training"),
        usual_precision(device, "degradation"),
    }
    widths = [3, *[64] * 10]
    found: list[tuple[str, torch.dtype, tuple[int, ...]]] = [
        ("identity_last", torch.float32, (8, *widths, 1, 1, 1)),
        ("gaussian_field", torch.int64, (8, 128, 128)),
        ("projected_step", torch.float32, (8, 1, 430_000)),
    ]
    for dtype in sorted(types, key=str):
        found += [
            ("blur_pool", dtype, (64, 4, 8, 128, 128)),
            ("degradation_block", dtype, (8, 64, 64, 0, 8, 128, 128)),
            ("degradation_forward", dtype, (8, 3, 64, 5, 4, 0, 8, 128, 128)),
        ]
        for passes in range(4):
            found.append(("dense_block", dtype, (64, 32, passes, 8, 32, 32)))
            found += [("conv_act", dtype, (*channels, passes, 8, 32, 32)) for channels in ((3, 64), (64, 64), (64, 48))]
    return found


def _by_passes(call: Callable[[], Tensor], passes: int, *tensors: Tensor) -> Example:
    """An example of a generator's operation with the passes of `conv_act.work`."""

    def in_large_tiles() -> Tensor:
        with dispatch.allow_large_tiles():
            return call()

    trained = (0, 1, len(tensors), 0)[passes]
    return Example(in_large_tiles if passes == 3 else call, tensors[:trained], tensors[trained:])


def _std(inputs: int) -> float:
    """Of a 3x3 convolution's weights: it then keeps its input's variance."""
    return (9 * inputs) ** -0.5


def _multiple(size: int, of: int) -> int:
    """The smallest positive multiple of `of` that is at least `size`."""
    return max(-(-size // of), 1) * of
