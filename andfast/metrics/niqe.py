"""NIQE: how far an image's local statistics are from those of undistorted photographs.

Mittal, Soundararajan, Bovik, "Making a 'completely blind' image quality analyzer" (2013), as its authors' MATLAB code
has it: the equations are the paper's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.metrics.matlab import halve
from andfast.metrics.pristine import PristineModel, load_pristine

BLOCK = 96
"""Height and width of a block in pixels; at the second scale half as many."""

# Pairs of neighbours: right, below, and the two diagonals. Blocks are closed to a ring for them, as in the MATLAB code.
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


def niqe(images: Tensor, pristine: PristineModel | None = None) -> Tensor:
    """NIQE of images as they would be saved: clamped and rounded to 8 bits, of these Y, rounded; the lower, the better.

    Only whole blocks of 96 x 96 pixels count, from the upper left corner on. Computed in float64 on the images' device.

    Args:
        images: float tensor (3, H, W) or (B, 3, H, W), RGB in [0, 1]; at least two blocks.
        pristine: what to compare with; None: the model that comes with andfast.

    Returns:
        float64 tensor, (B,) or () for a single image; NaN where fewer than two blocks have any texture.

    Raises:
        TypeError: the tensor is not of a floating-point type.
        ValueError: the shape is no image's, or there are fewer than two blocks.
    """
    if not images.is_floating_point():
        raise TypeError(f"images are floating-point tensors, not {images.dtype}")
    if images.ndim not in (3, 4) or images.shape[-3] != 3:
        raise ValueError(f"wanted images (3, H, W) or (B, 3, H, W), not {tuple(images.shape)}")
    if whole_blocks(*images.shape[-2:]) < 2:
        raise ValueError(
            f"{images.shape[-2]} x {images.shape[-1]} pixels hold less than two blocks of {BLOCK} x {BLOCK}"
        )
    model = (pristine or load_pristine()).to(images.device)
    batch = images if images.ndim == 4 else images[None]
    features, _ = block_features(niqe_luma(batch), model.window)
    mean, covariance, count = moments(features)
    inverse = torch.linalg.pinv((model.covariance + covariance) / 2)
    distance = (model.mean - mean)[:, None]
    found = (distance @ inverse @ distance.mT).sqrt().flatten()
    found = torch.where(count > 1, found, torch.nan)
    return found if images.ndim == 4 else found[0]


def whole_blocks(height: int, width: int) -> int:
    """How many blocks an image holds."""
    return (height // BLOCK) * (width // BLOCK)


def niqe_luma(images: Tensor) -> Tensor:
    """What NIQE looks at: (B, 3, H, W) in [0, 1] -> float64 (B, H, W), `to_y` rounded to whole numbers.

    In whole numbers throughout, as some 8-bit colours lie exactly between two of them; these are rounded up.
    """
    red, green, blue = (images.double().clamp(0, 1) * 255).round().long().unbind(1)
    return (16 + (65_481 * red + 128_553 * green + 24_966 * blue + 127_500) // 255_000).double()


def block_features(luma: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """The features of all whole blocks, and how sharp they are.

    Args:
        luma: float64 (B, H, W), 0..255.
        window: (7, 7), the weights of a pixel's surroundings.

    Returns:
        float64 (B, blocks, 36), NaN in blocks without texture; and (B, blocks), the mean local deviation.
    """
    rows, columns = luma.shape[-2] // BLOCK, luma.shape[-1] // BLOCK
    luma = luma[..., : rows * BLOCK, : columns * BLOCK]
    found = []
    for size in (BLOCK, BLOCK // 2):
        normalised, deviation = _normalised(luma, window)
        if size == BLOCK:
            sharpness = _blocks(deviation, size).mean(dim=(-2, -1))
            luma = halve(luma)
        found.append(_features(_blocks(normalised, size)))
    return torch.cat(found, dim=-1), sharpness


def moments(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance over blocks, without NaN.

    As MATLAB's `nanmean`, the mean of a feature leaves out only the blocks in which it is NaN itself; and as `nancov`,
    the covariance leaves out blocks with any NaN.

    Args:
        features: float64 (B, blocks, 36).

    Returns:
        (B, 36); (B, 36, 36), zeros where fewer than two blocks are left; and how many are left, (B,).
    """
    whole = ~features.isnan().any(dim=-1, keepdim=True)
    count = whole.sum(dim=1)
    kept = torch.where(whole, features, 0)
    centred = torch.where(whole, features - kept.sum(dim=1, keepdim=True) / count[:, None], 0)
    covariance = centred.mT @ centred / (count[..., None] - 1).clamp(min=1)
    return features.nanmean(dim=1), covariance, count[:, 0]


def _normalised(luma: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1 to 3: pixels less their local mean over the local deviation and one; and that deviation.

    All by differences to the pixel itself, which are exact. Where an image is flat, the result is then 0, and not what
    rounding leaves: the sign of that would count below.
    """
    height, width = luma.shape[-2:]
    padded = F.pad(luma[:, None], (3,) * 4, mode="replicate")[:, 0]
    mean, square = torch.zeros_like(luma), torch.zeros_like(luma)
    for row, weights in enumerate(window.tolist()):
        for column, weight in enumerate(weights):
            difference = padded[..., row : row + height, column : column + width] - luma
            mean.add_(difference, alpha=weight)
            square.addcmul_(difference, difference, value=weight)
    deviation = (square - mean.square()).abs().sqrt()
    return -mean / (deviation + 1), deviation


def _blocks(image: Tensor, size: int) -> Tensor:
    """(B, H, W) -> (B, blocks, size, size)."""
    return image.unflatten(-1, (-1, size)).unflatten(-3, (-1, size)).transpose(-3, -2).flatten(-4, -3)


def _features(blocks: Tensor) -> Tensor:
    """18 numbers of each block, (B, blocks, size, size) -> (B, blocks, 18)."""
    shape, left, right = _fit(blocks)
    found = [shape, (left + right) / 2]
    for shift in _NEIGHBOURS:
        shape, left, right = _fit(blocks * blocks.roll(shift, dims=(-2, -1)))
        # Eq. 8: the mean of the fitted distribution.
        mean = (right - left) * torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))
        found += [shape, mean, left, right]
    return torch.stack(found, dim=-1)


def _fit(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit an asymmetric generalised Gaussian (Eq. 7) to each block by its moments: shape, left and right scale."""
    values = values.flatten(-2)
    square = values.square()
    negative, positive = values < 0, values > 0
    left, right = ((square * side).sum(-1).div(side.sum(-1)).sqrt() for side in (negative, positive))
    ratio = left / right
    moment = values.abs().mean(-1).square() / square.mean(-1)
    moment = moment * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes = 0.2 + 0.001 * torch.arange(9801, dtype=values.dtype, device=values.device)
    shape = shapes[_nearest(_generalised_moment(shapes), moment)]
    scale = torch.exp((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2)
    return shape, left * scale, right * scale


def _generalised_moment(shape: Tensor) -> Tensor:
    """E|x|^2 / E x^2 of a generalised Gaussian of that shape; it grows with the shape."""
    return torch.exp(2 * torch.lgamma(2 / shape) - torch.lgamma(1 / shape) - torch.lgamma(3 / shape))


def _nearest(ascending: Tensor, values: Tensor) -> Tensor:
    """The index of the nearest of `ascending`, the first for NaN, as MATLAB's `min` has it."""
    upper = torch.searchsorted(ascending, values.contiguous()).clamp(1, len(ascending) - 1)
    lower = upper - 1
    nearer = (values - ascending[lower]).abs() <= (ascending[upper] - values).abs()
    return torch.where(values.isnan(), 0, torch.where(nearer, lower, upper))
