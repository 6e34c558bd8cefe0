"""What a camera does to a scene before the degradation network: its lens blurs, and its software sharpens.

The paper's search starts at the identity, whose LR images are pooled HR images. LR images of cameras have lost the
finest octave, and most have sharpened mid frequencies (docs/calibration.md). Behind a lens the adversary searches
around images that a camera could have taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from andfast.degradation.blur_kernels import gaussian_blur
from andfast.utils.rng import draw_rows


@dataclass(frozen=True)
class Lens:
    """A Gaussian blur and unsharp masking, x + a (x - G x), of strengths drawn uniformly for each camera.

    Args:
        blur: (low, high), the blur's standard deviation in HR pixels.
        sharpen: (low, high), the amount a of unsharp masking; 0: no sharpening.
        sharpen_radius: standard deviation of its G, in HR pixels: a camera's software sharpens LR images, so about
            as many as the scale.

    Raises:
        ValueError: an invalid range or radius; the message begins with the argument's name.
    """

    blur: tuple[float, float] = (2.0, 4.0)
    sharpen: tuple[float, float] = (0.8, 1.8)
    sharpen_radius: float = 4.0

    def __post_init__(self) -> None:
        for name in ("blur", "sharpen"):
            low, high = getattr(self, name)
            if not 0 <= low <= high < float("inf"):
                raise ValueError(f"{name} is {[low, high]}; it must be [low, high] with 0 <= low <= high")
        if not 0 < self.sharpen_radius < float("inf"):
            raise ValueError(f"sharpen_radius is {self.sharpen_radius}; it must be positive and finite")

    def __call__(self, hr: Tensor, cameras: int, rng: torch.Generator | None = None) -> Tensor:
        """Blur and sharpen images (B, C, H, W) in [0, 1].

        Args:
            hr: the images.
            cameras: the number of lenses; B / cameras consecutive images share one, like a degradation network.
            rng: on hr's device; None for torch's own.
        """
        drawn = draw_rows(
            lambda count: torch.rand(2, count, device=hr.device, generator=rng), cameras, rng, dim=1
        ).repeat_interleave(len(hr) // cameras, 1)
        ranges = (self.blur, self.sharpen)
        sigma, amount = (low + (high - low) * part for (low, high), part in zip(ranges, drawn, strict=True))
        blurred = gaussian_blur(hr, sigma, self.blur[1])
        smooth = gaussian_blur(blurred, torch.full_like(sigma, self.sharpen_radius), self.sharpen_radius)
        return torch.lerp(smooth, blurred, 1 + amount[:, None, None, None].to(hr.dtype)).clamp(0, 1)
