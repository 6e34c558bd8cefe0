"""Anti-aliased average pooling: the one place where the degradation network loses resolution (Sec 3.1)."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@lru_cache
def pooling_taps(scale: int) -> tuple[float, ...]:
    """The pooling's taps in one direction: a box of `scale` convolved with [1, 2, 1] / 4; they sum to one.

    For scale 2 this is exactly [1, 3, 3, 1] / 8 of Zhang, "Making convolutional networks shift-invariant again".
    The scale + 2 taps lie symmetrically around the middle of the `scale` pixels that become one, for every scale
    (that paper's own code shifts the image by one pixel at stride 4).
    """
    box = [1.0 / scale] * scale
    padded = [0.0, 0.0, *box, 0.0, 0.0]
    return tuple((padded[i] + 2 * padded[i + 1] + padded[i + 2]) / 4 for i in range(scale + 2))


def blur_pool(image: Tensor, scale: int) -> Tensor:
    """Blur and downsample by an integer factor.

    Args:
        image: (B, C, H, W), floating point; H and W multiples of `scale`, and at least 2.
        scale: the downsampling factor, at least 2.

    Returns:
        (B, C, H/scale, W/scale) in the type and memory format of `image`. Half types are computed in float32 and
        rounded once.

    Raises:
        ValueError: H or W is not a multiple of `scale`, or that is less than 2.
    """
    if scale < 2:
        raise ValueError(f"scale is {scale}; it must be at least 2")
    height, width = image.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"image is {height} x {width}; both must be multiples of the scale, {scale}")
    wide = image if image.dtype in (torch.float32, torch.float64) else image.float()
    taps = torch.tensor(pooling_taps(scale), dtype=wide.dtype, device=wide.device)
    channels = image.shape[1]
    kernel = torch.outer(taps, taps).expand(channels, 1, -1, -1)
    pooled = F.conv2d(F.pad(wide, (1, 1, 1, 1), mode="reflect"), kernel, stride=scale, groups=channels)
    return pooled.to(image.dtype)
