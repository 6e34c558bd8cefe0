"""One layer of the degradation network: conv 3x3 -> LeakyReLU -> noise injection (Sec 3.1)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def split_conv(x: Tensor, centre: Tensor, deviation: Tensor) -> Tensor:
    """A 3x3 convolution whose weight is an identity network's centre tap plus a small deviation, kept apart.

    Half types cannot hold the sum: beside a centre of 0.125, bfloat16 rounds in steps of 5e-4, which is the size
    of a deviation. Each part alone keeps its own relative precision, and so does a deviation's zero sum of taps.

    Args:
        x: (B, in, H, W).
        centre: (out, in), in the type of `x`.
        deviation: (out, in, 3, 3), in the type of `x`.

    Returns:
        (B, out, H, W). The border is replicated: zeros would draw a dark frame.
    """
    identity = F.conv2d(x, centre[:, :, None, None])
    return identity + F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), deviation)


def degradation_block(x: Tensor, centre: Tensor, deviation: Tensor, bend: Tensor, noise: Tensor) -> Tensor:
    """conv 3x3 -> LeakyReLU -> noise injection.

    Args:
        x, centre, deviation: as in `split_conv`.
        bend: the LeakyReLU's negative slope minus one, a scalar tensor (no dimensions) in the type of `x`: 0 at
            the identity. The slope itself would lose small deviations, for half types are coarse near one.
        noise: what is added, broadcastable to (B, out, H, W), in the type of `x`.

    Returns:
        (B, out, H, W) in the type of `x`.
    """
    y = split_conv(x, centre, deviation)
    # hardtanh is min(y, 0) with a backward pass of one read and one write; clamp's takes three of each.
    return torch.addcmul(y, bend, F.hardtanh(y, -math.inf, 0.0)).add_(noise)
