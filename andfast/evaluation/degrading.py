"""Make LR images of HR images for an evaluation: `blur=2,noise=10,jpeg=60`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass

import numpy as np

from andfast.degradation.camera import CameraSettings, bicubic_lr, camera_like, crop_to_multiple

_FIELDS = {"blur": ("blur_sigma", float), "noise": ("noise_sigma", float), "jpeg": ("jpeg_quality", int)}
BICUBIC = "bicubic"


def name_seed(text: str) -> int:
    """A 32-bit seed from a text, so that an image's noise does not depend on other images."""
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:4], "big")


@dataclass(frozen=True)
class Degradation:
    """Makes LR images of HR images.

    Attributes:
        camera: the simulated camera; None: bicubic downsampling alone.
        seed: of the noise, together with an image's name.
    """

    camera: CameraSettings | None
    seed: int = 0

    def __call__(self, hr: np.ndarray, scale: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Make the LR image of `hr`, uint8 (H, W, 3), and crop `hr` to a multiple of the scale."""
        hr = np.ascontiguousarray(crop_to_multiple(hr, scale))
        if self.camera is None:
            return bicubic_lr(hr, scale), hr
        return camera_like(hr, scale, name_seed(f"{name} {self.seed}"), **vars(self.camera)), hr

    def settings(self) -> dict[str, float | int | str]:
        """The settings as JSON values."""
        if self.camera is None:
            return {"downscaling": "bicubic, antialiased (Pillow)"}
        return {"downscaling": "mean of the pixels", **asdict(self.camera), "seed": self.seed}


def parse_degradation(text: str, seed: int = 0) -> Degradation:
    """Parse `blur=SIGMA,noise=SIGMA,jpeg=QUALITY`, with the defaults of `CameraSettings`, or `bicubic`.

    Raises:
        ValueError: neither.
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
