"""MATLAB's `imresize`, as far as metrics need it."""

from __future__ import annotations

import torch
from torch import Tensor


def halve(image: Tensor) -> Tensor:
    """`imresize(image, 0.5)`: the bicubic filter (a = -0.5) stretched to twice its width against aliasing.

    Beyond the borders the image is mirrored, the outermost pixels included. Nothing is rounded or clipped, as MATLAB
    does with images of type double.

    Args:
        image: float tensor (..., H, W), H and W even and at least 4.

    Returns:
        (..., H / 2, W / 2) of the same type.
    """
    # Each result lies in the middle between two pixels: for all the same eight weights.
    distance = (torch.arange(8, dtype=torch.float64) - 3.5).abs() / 2
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = torch.where(distance <= 1, near, far)
    weights /= weights.sum()
    for dim in (-2, -1):
        length = image.shape[dim]
        ends = image.narrow(dim, 0, 3).flip(dim), image, image.narrow(dim, length - 3, 3).flip(dim)
        windows = torch.cat(ends, dim).unfold(dim, 8, 2)
        # By differences, which are exact: what is flat stays flat.
        middle = windows[..., 3]
        image = middle + (windows - middle[..., None]) @ weights.to(image)
    return image
