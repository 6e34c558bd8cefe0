"""What the degradation chains of BSRGAN and Real-ESRGAN share: random numbers for a batch, and resizing."""

from __future__ import annotations

import hashlib
import random
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.utils.rng import SharedGenerator

Mode = Literal["area", "bilinear", "bicubic"]
MODES: tuple[Mode, ...] = ("area", "bilinear", "bicubic")


class Draws:
    """Random numbers for a batch: for each image on its device, and for the whole batch on the host.

    Args:
        images: their number.
        device: of the images.
        rng: on that device, the source of all numbers; None for torch's own on the CPU. Of a `SharedGenerator` the
            process's own is used, because numbers on the host cannot be drawn for all processes.

    Attributes:
        host: for shapes and orders, which are the same for the whole batch. Seeded by the state of `rng`, which the
            host knows, so that nothing waits for the device.
    """

    def __init__(self, images: int, device: torch.device, rng: torch.Generator | None = None) -> None:
        if rng is None:
            rng = torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))
        elif isinstance(rng, SharedGenerator):
            rng = rng.local
        self.images, self.device, self.rng = images, device, rng
        state = hashlib.blake2b(rng.get_state().numpy().tobytes(), digest_size=8)
        self.host = random.Random(int.from_bytes(state.digest(), "big"))
        # Change the state, so that the next `Draws` has another seed.
        self.uniform(0, 1)

    def uniform(self, low: float, high: float) -> Tensor:
        """(B,) float32, uniform in [low, high)."""
        return low + (high - low) * torch.rand(self.images, device=self.device, generator=self.rng)

    def integers(self, low: int, high: int) -> Tensor:
        """(B,) float32, whole numbers from low to high, both included."""
        return self.uniform(low, high + 1).floor().clamp(max=high)

    def chance(self, probability: float) -> Tensor:
        """(B,) bool, true with this probability."""
        return self.uniform(0, 1) < probability


def resize(images: Tensor, size: tuple[int, int], mode: Mode) -> Tensor:
    """Resize images (B, C, H, W) to `size` (H, W), like BSRGAN's and Real-ESRGAN's code: without antialiasing.

    "bilinear" and "bicubic" (with a = -0.75, values may leave [0, 1]) use the two and four nearest pixels a side, like
    `cv2.resize`: aliasing is a part of these degradations. "area" is PyTorch's and averages whole pixels; OpenCV's
    INTER_AREA takes parts of pixels, too.
    """
    size = (max(size[0], 1), max(size[1], 1))
    if size == tuple(images.shape[-2:]):
        return images
    return F.interpolate(images, size=size, mode=mode)


def check_scale(hr: Tensor, scale: int) -> None:
    """Raise ValueError unless HR images are (B, 3, H, W), H and W multiples of `scale`."""
    if hr.ndim != 4 or hr.shape[1] != 3 or hr.shape[2] % scale or hr.shape[3] % scale or 0 in hr.shape[2:]:
        raise ValueError(
            f"hr has shape {tuple(hr.shape)}; it must be (B, 3, H, W), H and W multiples of the scale, {scale}"
        )
