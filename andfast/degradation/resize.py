"""Resizing as the published degradations do it: with the aliasing that plain interpolation leaves."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Mode = Literal["area", "bilinear", "bicubic"]
MODES: tuple[Mode, ...] = ("area", "bilinear", "bicubic")


def resize(images: Tensor, size: tuple[int, int], mode: Mode) -> Tensor:
    """Images (B, C, H, W) in another size (H, W), as BSRGAN's and Real-ESRGAN's code has it.

    "bilinear" and "bicubic" (with a = -0.75) look at the two and four nearest pixels a side, however much the image
    shrinks, as `cv2.resize` does: no antialiasing, and so aliasing is a part of these degradations. "area" is PyTorch's
    and averages whole pixels, where OpenCV's INTER_AREA takes parts of pixels, too. Bicubic values may leave [0, 1].
    """
    size = (max(size[0], 1), max(size[1], 1))
    if size == tuple(images.shape[-2:]):
        return images
    return F.interpolate(images, size=size, mode=mode)


def check_scale(hr: Tensor, scale: int) -> None:
    """Refuse HR images (B, 3, H, W) that LR images `scale` times smaller cannot be made from.

    Raises:
        ValueError: the shape does not fit.
    """
    if hr.ndim != 4 or hr.shape[1] != 3 or hr.shape[2] % scale or hr.shape[3] % scale or 0 in hr.shape[2:]:
        raise ValueError(
            f"hr has shape {tuple(hr.shape)}; it must be (B, 3, H, W), H and W multiples of the scale, {scale}"
        )
