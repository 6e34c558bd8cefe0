"""The layout of theta: all adversarial parameters of one degradation network in one row of a matrix (Sec 3.2).

The attack is then row arithmetic on (N, P) matrices, and the scale factors of Sec 4.3 are one vector of length P.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

NoiseKind = Literal["map", "gaussian"]
GroupName = Literal["conv", "noise", "slope"]


@dataclass(frozen=True)
class ScaleFactors:
    """The weights s of the norm ||s * delta||_2 by group of parameters (Sec 4.3).

    Every factor is positive; a larger one means a stronger suppression, `math.inf` forbids the group. The term of
    the convolutions splits by the moments of each 3x3 kernel's deviation, which are orthogonal, so that the norm
    stays a weighted sum of squares. The paper's factors are 1 for all of a convolution, 10 for noise, 50 for slopes;
    here the moments that no restoration could undo are forbidden, and noise has 1, in proportion to the remaining
    convolution moments.

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


def moment_basis(device: torch.device | str = "cpu") -> Tensor:
    """The orthonormal basis of the nine taps in which a kernel's deviation is kept: (9, 9) float64, a row a vector.

    Products of the one-dimensional moments (1,1,1), (-1,0,1), (1,-2,1). Row 0 is the mean (DC), rows 1 and 2 the
    shifts in x and y, rows 3 to 8 the rest. Columns are the taps in row-major order.
    """
    x = torch.arange(-1.0, 2.0, dtype=torch.float64, device=device)  # made there: copying it would wait for the device
    one = torch.stack([torch.ones_like(x), x, 3 * x * x - 2])
    one = one / one.norm(dim=1, keepdim=True)
    order = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2)]
    return torch.stack([torch.outer(one[y], one[x]).flatten() for y, x in order])


@dataclass(frozen=True)
class Segment:
    """A contiguous run of columns of theta: the parameters of one kind in one layer."""

    group: GroupName
    layer: int
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)

    def view(self, matrix: Tensor) -> Tensor:
        """The segment's columns of an (N, P) matrix as an (N, *shape) view."""
        return matrix[:, self.start : self.stop].unflatten(1, self.shape)


def _segments(group: GroupName, start: int, shapes: list[tuple[int, ...]]) -> list[Segment]:
    """Consecutive segments of these shapes, from column `start`, a layer each."""
    segments = []
    for layer, shape in enumerate(shapes):
        segments.append(Segment(group, layer, start, shape))
        start = segments[-1].stop
    return segments


@dataclass(frozen=True)
class ThetaLayout:
    """The columns of theta: convolutions, then noise, then slopes, each in the order of the layers.

    Frozen and hashable, so that what depends on the layout alone can be cached by it.

    A convolution's segment has shape (out, in, 9). In `theta` and `theta_id` the nine are the kernel's taps in
    row-major order; in `delta` they are its coordinates in `moment_basis()`, where the groups of `ScaleFactors`
    are coordinates, so that one vector s scales them. `to_taps` converts `delta` to taps; it is a rotation, so norms
    are the same in both.

    Attributes:
        image_size: (H, W) of the HR image; noise maps before the pooling have this size, those after it
            (H/scale, W/scale).
        scale, channels, blocks, image_channels: as in `DegradationNetwork`.
        noise_kind: "map", a value a pixel, or "gaussian", a strength a channel.
    """

    image_size: tuple[int, int]
    scale: int
    channels: int = 64
    blocks: int = 5
    noise_kind: NoiseKind = "map"
    image_channels: int = 3

    @cached_property
    def conv(self) -> list[Segment]:
        """The convolutions."""
        widths = [self.image_channels] + [self.channels] * (2 * self.blocks) + [self.image_channels]
        return _segments("conv", 0, [(out, into, 9) for into, out in pairwise(widths)])

    @cached_property
    def noise(self) -> list[Segment]:
        """The noise injections."""
        height, width = self.image_size
        shapes: list[tuple[int, ...]] = [(self.channels, 1, 1)] * (2 * self.blocks)
        if self.noise_kind == "map":
            low = (1, height // self.scale, width // self.scale)
            shapes = [(1, height, width)] * self.blocks + [low] * self.blocks
        return _segments("noise", self.conv[-1].stop, shapes)

    @cached_property
    def slope(self) -> list[Segment]:
        """The slopes of the LeakyReLUs."""
        return _segments("slope", self.noise[-1].stop, [(1, 1, 1)] * (2 * self.blocks))

    @property
    def pooled_layer(self) -> int | None:
        """The block whose result is pooled; None at scale 1, which pools nothing."""
        return None if self.scale == 1 else self.blocks - 1

    @property
    def size(self) -> int:
        """P, the number of columns."""
        return self.slope[-1].stop

    @property
    def segments(self) -> list[Segment]:
        """All segments, in the order of the columns."""
        return [*self.conv, *self.noise, *self.slope]

    @property
    def groups(self) -> dict[str, slice]:
        """The columns of each group: "conv", "noise", "slope", in this order."""
        return {run[0].group: slice(run[0].start, run[-1].stop) for run in (self.conv, self.noise, self.slope)}

    def split(self, row: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Split one network's row (P,) into views: convolutions, noise and slopes, each in the order of the layers.

        One split of all segments, because its gradient is one concatenation; the gradient of each single view would be
        a row of zeros.
        """
        parts = row.split([math.prod(segment.shape) for segment in self.segments])
        views = [part.view(segment.shape) for part, segment in zip(parts, self.segments, strict=True)]
        layers = len(self.slope)
        return views[: layers + 1], views[layers + 1 : -layers], views[-layers:]

    def to_taps(self, delta: Tensor) -> Tensor:
        """Convert the convolution columns of `delta` (N, P) from moments to taps."""
        return self._rotate(delta, moment_basis(delta.device))

    def to_moments(self, deviation: Tensor) -> Tensor:
        """Convert the convolution columns of theta - theta_id (N, P) from taps to moments: the inverse of `to_taps`."""
        return self._rotate(deviation, moment_basis(deviation.device).T)

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
