"""LR images made from originals, by a stated degradation: `blur=2,noise=10,jpeg=60`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass

import numpy as np

from andfast.degradation.camera import CameraSettings, bicubic_lr, camera_like, crop_to_multiple

_FIELDS = {"blur": ("blur_sigma", float), "noise": ("noise_sigma", float), "jpeg": ("jpeg_quality", int)}
BICUBIC = "bicubic"


def name_seed(text: str) -> int:
    """A seed of 32 bits made of a text, so that an image's noise is the same whichever others there are."""
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:4], "big")


@dataclass(frozen=True)
class Degradation:
    """How LR images are made.

    Attributes:
        camera: the simulated camera (`andfast.degradation.camera`); None: bicubic downsampling, and nothing else.
        seed: of the noise, together with an image's name.
    """

    camera: CameraSettings | None
    seed: int = 0

    def __call__(self, hr: np.ndarray, scale: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The LR image of an original, and the original without what is beyond a multiple of the scale.

        Args:
            hr: uint8 (H, W, 3).
            scale: the super-resolution factor.
            name: the image's.
        """
        hr = np.ascontiguousarray(crop_to_multiple(hr, scale))
        if self.camera is None:
            return bicubic_lr(hr, scale), hr
        return camera_like(hr, scale, name_seed(f"{name} {self.seed}"), **vars(self.camera)), hr

    def settings(self) -> dict[str, float | int | str]:
        """All of it, as JSON values."""
        if self.camera is None:
            return {"downscaling": "bicubic, antialiased (Pillow)"}
        return {"downscaling": "mean of the pixels", **asdict(self.camera), "seed": self.seed}


def parse_degradation(text: str, seed: int = 0) -> Degradation:
    """Read `blur=SIGMA,noise=SIGMA,jpeg=QUALITY`, of which what is left out is as in `CameraSettings`, or `bicubic`.

    Raises:
        ValueError: it is neither; the message says what would be right.
    """
    if text == BICUBIC:
        return Degradation(None, seed)
    values = {}
    try:
        for part in text.split(","):
            key, _, value = part.partition("=")
            name, kind = _FIELDS[key.strip()]
            if name in values:
                raise ValueError(f"{key} twice")
            values[name] = kind(value)
        return Degradation(CameraSettings(**values), seed)
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"--degrade {text}: {error}; wanted blur=SIGMA,noise=SIGMA,jpeg=QUALITY (any of them; in HR pixels, in "
            f"8-bit units, 1 to 95), or {BICUBIC}"
        ) from None
