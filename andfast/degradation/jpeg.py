"""JPEG compression and decompression as libjpeg does it by default, batched and on the device."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# ITU-T T.81, Annex K: the tables that libjpeg scales by its quality.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# JFIF: full-range YCbCr of Rec. 601.
_TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
_TO_RGB = (
    (1.0, 0.0, 1.402),
    (1.0, -0.344136286, -0.714136286),
    (1.0, 1.772, 0.0),
)

# libjpeg rounds halves away from zero, and they are common: in flat blocks every second level is one where the table
# begins with 16. This is more than the error of float32.
_AWAY = 1e-4


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Images as JPEG files would give them back, written with libjpeg's defaults, which are Pillow's.

    Full-range YCbCr, chroma at half the resolution (4:2:0), the 8x8 DCT, Annex K's tables scaled by the quality, and
    the smooth ("fancy") upsampling of chroma. It rounds where a file does; libjpeg's integer arithmetic in between
    differs by single levels. In the backward pass roundings count as the identity (straight-through), so that
    gradients pass; clamping stops them where it binds.

    Args:
        images: (B, 3, H, W) float RGB in [0, 1], of any size.
        quality: (B,), 1 to 100 as libjpeg takes it; fractions are dropped.

    Returns:
        (B, 3, H, W) in [0, 1], float32, multiples of 1/255.

    Raises:
        ValueError: a shape does not fit.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] == 0 or images.shape[3] == 0:
        raise ValueError(f"images have shape {tuple(images.shape)}; wanted (B, 3, H, W)")
    if quality.shape != images.shape[:1]:
        raise ValueError(f"quality has shape {tuple(quality.shape)}; wanted one an image, ({len(images)},)")
    height, width = images.shape[2:]
    # Whole blocks, of chroma, too, by repeating the last pixels, as libjpeg does.
    levels = _round(images.float().clamp(0, 1) * 255)
    levels = F.pad(levels, (0, -width % 16, 0, -height % 16), mode="replicate")
    to_ycc, to_rgb = _matrix(_TO_YCC, levels.device), _matrix(_TO_RGB, levels.device)
    ycc = _round(torch.einsum("ij,bjhw->bihw", to_ycc, levels))  # chroma around 0
    luma = ycc[:, :1] - 128
    # libjpeg rounds halves up and down in turn, which on the mean is what is done here.
    chroma = _round(F.avg_pool2d(ycc[:, 1:], 2))
    luma_table, chroma_table = quantisation_tables(quality.to(levels.device))
    luma = _coded(luma, luma_table)[:, :, :height, :width] + 128
    # The upsampling below repeats the image's edge, not what filled the last block.
    chroma = _coded(chroma, chroma_table)[:, :, : (height + 1) // 2, : (width + 1) // 2]
    chroma = _round(F.interpolate(chroma, scale_factor=2, mode="bilinear"))[:, :, :height, :width]
    rgb = torch.einsum("ij,bjhw->bihw", to_rgb, torch.cat([luma, chroma], dim=1))
    return _round(rgb).clamp(0, 255) / 255


def quantisation_tables(quality: Tensor) -> tuple[Tensor, Tensor]:
    """libjpeg's tables for luma and chroma, each (B, 64) float32 in rows, for qualities (B,) of 1 to 100."""
    quality = quality.float().floor().clamp(1, 100)[:, None]
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    luma, chroma = (
        ((_matrix(table, quality.device).flatten() * scale + 50) / 100).floor().clamp(1, 255)
        for table in (_LUMA, _CHROMA)
    )
    return luma, chroma


def _coded(planes: Tensor, table: Tensor) -> Tensor:
    """Planes (B, C, H, W), centred on 0 and multiples of 8 wide and high, through the quantised DCT and back."""
    basis = _dct(planes.device)
    blocks = planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (B, C, rows, columns, 8, 8)
    table = table[:, None, None, None]
    coefficients = _round((blocks.flatten(4) @ basis.T) / table, halves=_AWAY) * table
    blocks = (coefficients @ basis).unflatten(4, (8, 8)).transpose(3, 4)
    return _round(blocks.flatten(4, 5).flatten(2, 3)).clamp(-128, 127)


def _round(x: Tensor, halves: float = 0.0) -> Tensor:
    """To the nearest whole number, after a step of `halves` away from zero; in the backward pass the identity."""
    nearest = (x.detach() + halves * x.detach().sign()).round()
    return x + (nearest - x).detach() if x.requires_grad else nearest


@lru_cache(maxsize=32)
def _matrix(rows: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32, device=device)


@lru_cache(maxsize=8)
def _dct(device: torch.device) -> Tensor:
    """The orthonormal 8x8 DCT-II as a matrix on blocks in rows: (64, 64)."""
    k, n = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)
    one = torch.cos(math.pi * (2 * n + 1) * k / 16) / 2
    one[0] /= math.sqrt(2)
    return torch.kron(one, one).float().to(device)
