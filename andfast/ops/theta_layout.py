"""The layout of theta: all adversarial parameters of one degradation network in one row of a matrix.

Everything about the attack is then row arithmetic on (N, P) matrices, and a scale factor a group of parameters is
one vector of length P (the paper's Sec 4.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

NoiseKind = Literal["map", "gaussian"]


@dataclass(frozen=True)
class ScaleFactors:
    """How strongly each group of parameters is held back: ||s * delta||_2 is the norm of the paper's Sec 4.3.

    Every factor is positive; a larger one means a stronger suppression, `math.inf` forbids the group. The term of
    the convolutions splits by the moments of each 3x3 kernel's deviation, which are orthogonal, so that the norm
    stays a weighted sum of squares. The paper's factors are 1 for all of a convolution, 10 for noise, 50 for slopes;
    here the moments that no restoration could undo are forbidden, and noise at 1 takes its share beside what then is
    left of the convolutions.

    Attributes:
        conv_dc: the mean over the nine taps: brightness and colour.
        conv_shift: the two first moments: translation of the image.
        conv: the six other directions: blur, ringing, sharpening.
        noise: the noise injections.
        slope: the slopes of the LeakyReLUs.
    """

    conv_dc: float = math.inf
    conv_shift: float = math.inf
    conv: float = 1.0
    noise: float = 1.0
    slope: float = 50.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"scale factor {field.name} is {value}; it must be positive (inf forbids the group)")
        if all(math.isinf(getattr(self, field.name)) for field in fields(self)):
            raise ValueError("all scale factors are infinite; at least one group must be free")


def moment_basis() -> Tensor:
    """The orthonormal basis of the nine taps in which a kernel's deviation is kept: (9, 9) float64, a row a vector.

    Products of the one-dimensional moments (1,1,1), (-1,0,1), (1,-2,1). Row 0 is the mean (DC), rows 1 and 2 the
    shifts in x and y, rows 3 to 8 the rest. Columns are the taps in row-major order.
    """
    one = torch.tensor([[1.0, 1.0, 1.0], [-1.0, 0.0, 1.0], [1.0, -2.0, 1.0]], dtype=torch.float64)
    one = one / one.norm(dim=1, keepdim=True)
    order = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2)]
    return torch.stack([torch.outer(one[y], one[x]).flatten() for y, x in order])


@dataclass(frozen=True)
class Segment:
    """A contiguous run of columns of theta: the parameters of one kind in one layer."""

    group: Literal["conv", "noise", "slope"]
    layer: int
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)

    def view(self, matrix: Tensor) -> Tensor:
        """The segment's columns of an (N, P) matrix as an (N, *shape) view."""
        return matrix[:, self.start : self.stop].unflatten(1, self.shape)


class ThetaLayout:
    """Which columns of theta hold what: convolutions, then noise, then slopes, each in the order of the layers.

    A convolution's segment has shape (out, in, 9). In `theta` and `theta_id` the nine are the kernel's taps in
    row-major order; in `delta` they are its coordinates in `moment_basis()`, where the groups of `ScaleFactors`
    are coordinates, so that one vector s scales them. `to_taps` goes from the one to the other; it is a rotation,
    so norms are the same in both.

    Args:
        image_size: (H, W) of the HR image; noise maps before the pooling have this size, those after it
            (H/scale, W/scale).
        scale, channels, blocks, image_channels: as in `DegradationNetwork`; kept as attributes.
        noise: "map", a value a pixel, or "gaussian", a strength a channel.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        scale: int,
        channels: int = 64,
        blocks: int = 5,
        noise: NoiseKind = "map",
        image_channels: int = 3,
    ) -> None:
        self.image_size = image_size
        self.scale = scale
        self.channels = channels
        self.blocks = blocks
        self.noise_kind = noise
        height, width = image_size
        widths = [image_channels] + [channels] * (2 * blocks) + [image_channels]
        conv_shapes = [(out, into, 9) for into, out in pairwise(widths)]
        noise_shapes: list[tuple[int, ...]] = [(channels, 1, 1)] * (2 * blocks)
        if noise == "map":
            noise_shapes = [(1, height, width)] * blocks + [(1, height // scale, width // scale)] * blocks
        self.size = 0
        self.conv = [self._append("conv", layer, shape) for layer, shape in enumerate(conv_shapes)]
        self.noise = [self._append("noise", layer, shape) for layer, shape in enumerate(noise_shapes)]
        self.slope = [self._append("slope", layer, (1, 1, 1)) for layer in range(2 * blocks)]

    def _append(self, group: Literal["conv", "noise", "slope"], layer: int, shape: tuple[int, ...]) -> Segment:
        segment = Segment(group, layer, self.size, shape)
        self.size = segment.stop
        return segment

    @property
    def segments(self) -> list[Segment]:
        return [*self.conv, *self.noise, *self.slope]

    @property
    def groups(self) -> dict[str, slice]:
        """The columns of all parameters of a kind, which lie side by side: "conv", "noise", "slope", in this order."""
        return {run[0].group: slice(run[0].start, run[-1].stop) for run in (self.conv, self.noise, self.slope)}

    def split(self, row: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """One network's row (P,) as views: its convolutions, noise and slopes, each in the order of the layers.

        All at once, because the gradient of a split is one concatenation, where that of a single segment's view is
        a row of zeros.
        """
        parts = row.split([math.prod(segment.shape) for segment in self.segments])
        views = [part.view(segment.shape) for part, segment in zip(parts, self.segments, strict=True)]
        layers = len(self.slope)
        return views[: layers + 1], views[layers + 1 : -layers], views[-layers:]

    def to_taps(self, delta: Tensor) -> Tensor:
        """`delta` (N, P) with its convolution columns turned from moments into taps."""
        return self._rotate(delta, moment_basis())

    def to_moments(self, deviation: Tensor) -> Tensor:
        """The inverse of `to_taps`: theta - theta_id (N, P) with its convolution columns turned into moments."""
        return self._rotate(deviation, moment_basis().T)

    def _rotate(self, matrix: Tensor, basis: Tensor) -> Tensor:
        stop = self.conv[-1].stop
        conv = matrix[:, :stop].unflatten(1, (-1, 9)) @ basis.to(matrix)
        return torch.cat([conv.flatten(1), matrix[:, stop:]], dim=1)

    def scale_vector(self, factors: ScaleFactors, device: torch.device | str = "cpu") -> Tensor:
        """The vector s of the scaled norm ||s * delta||_2: float32, shape (P,), entries positive or infinite."""
        kernel = [factors.conv_dc, factors.conv_shift, factors.conv_shift] + [factors.conv] * 6
        scale = torch.empty(self.size)
        for segment in self.segments:
            value = torch.tensor(kernel if segment.group == "conv" else getattr(factors, segment.group))
            scale[segment.start : segment.stop] = value.expand(segment.shape).flatten()
        return scale.to(device)
