"""Images with transparency: what colours stand where nothing is seen."""

from __future__ import annotations

import numpy as np


def without_holes(image: np.ndarray) -> np.ndarray:
    """Give fully transparent pixels the colours of those around them that are seen.

    Files hold anything there, mostly black, and a network would draw it into the edges. The colours come from ever
    coarser images, in which each pixel is the mean of those seen (as in "pull-push" of Gortler et al., The lumigraph,
    1996).

    Args:
        image: (H, W, C), the last channel alpha, of uint8, uint16 or floating point.

    Returns:
        The same type and size; only colours where alpha is 0 are changed.
    """
    alpha = image[..., -1:]
    if alpha.min() > 0 or alpha.max() == 0:
        return image
    filled = _fill(image[..., :-1].astype(np.float32), (alpha > 0).astype(np.float32))
    if image.dtype.kind == "u":
        filled = np.rint(filled)
    colours = np.where(alpha > 0, image[..., :-1], filled.astype(image.dtype))
    return np.concatenate([colours, alpha], axis=2)


def _fill(colours: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colours where `weight` is not 0, and elsewhere those of the next coarser image."""
    if weight.min() > 0:
        return colours
    height, width = weight.shape[:2]
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    sums, weights = (np.pad(values, pad) for values in (colours * weight, weight))
    sums, weights = (
        values.reshape((height + 1) // 2, 2, (width + 1) // 2, 2, -1).sum((1, 3)) for values in (sums, weights)
    )
    coarse = _fill(sums / np.maximum(weights, 1), np.minimum(weights, 1))
    large = coarse.repeat(2, 0).repeat(2, 1)[:height, :width]
    return np.where(weight > 0, colours, large)
