"""Between 8-bit images and the tensors that networks take."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) -> float32 (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def to_array(image: Tensor) -> np.ndarray:
    """float (1, 3, H, W) or (3, H, W), on any device -> uint8 (H, W, 3), clipped and rounded."""
    image = image.detach().float().reshape(image.shape[-3:])
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().cpu().numpy()
