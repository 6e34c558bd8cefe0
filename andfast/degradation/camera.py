"""LR images for validation: bicubic ones, and those of a simulated camera, which is not the degradation network."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class CameraSettings:
    """Settings of `camera_like`.

    The defaults are about those of an ordinary phone: over 12 photographs the median PSNR (RGB) between the LR image
    and the bicubic one was 29.2 dB (25.8 to 33.2) at scale 4 and 27.3 dB (22.8 to 31.9) at scale 2.

    Args:
        blur_sigma: standard deviation of the lens's Gaussian blur in HR pixels; 0 for none.
        noise_sigma: standard deviation of the sensor's Gaussian noise in 8-bit units (0..255); 0 for none.
        jpeg_quality: Pillow's JPEG quality, 1..95, with its usual halved chroma resolution.

    Raises:
        ValueError: a value is out of its range.
    """

    blur_sigma: float = 2.0
    noise_sigma: float = 4.0
    jpeg_quality: int = 80

    def __post_init__(self) -> None:
        if not (self.blur_sigma >= 0 and self.noise_sigma >= 0 and 1 <= self.jpeg_quality <= 95):
            raise ValueError(f"wanted sigmas >= 0 and a JPEG quality of 1 to 95, not {self}")


def camera_like(
    hr: np.ndarray,
    scale: int,
    seed: int,
    blur_sigma: float = CameraSettings.blur_sigma,
    noise_sigma: float = CameraSettings.noise_sigma,
    jpeg_quality: int = CameraSettings.jpeg_quality,
) -> np.ndarray:
    """Simulate a small camera: lens blur, pixels that average light, sensor noise, JPEG.

    Args:
        hr: uint8 (H, W, 3) RGB, H and W multiples of `scale` (see `crop_to_multiple`), else a ValueError is raised.
        scale: side in HR pixels of the square that an LR pixel averages.
        seed: of the noise, a non-negative integer.
        blur_sigma, noise_sigma, jpeg_quality: see `CameraSettings` (`**vars(settings)` passes one).

    Returns:
        uint8 (H / scale, W / scale, 3) RGB.
    """
    CameraSettings(blur_sigma, noise_sigma, jpeg_quality)
    height, width = _low_size(hr, scale)
    light = gaussian_blur(hr.astype(np.float64), blur_sigma)
    light = light.reshape(height, scale, width, scale, 3).mean(axis=(1, 3))
    light += noise_sigma * np.random.default_rng(seed).standard_normal(light.shape)
    sensor = np.rint(light.clip(0, 255)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(sensor).save(file, format="JPEG", quality=jpeg_quality)
    return np.array(Image.open(file).convert("RGB"))


def bicubic_lr(hr: np.ndarray, scale: int) -> np.ndarray:
    """The clean LR image by Pillow's antialiased bicubic filter; images as for `camera_like`."""
    height, width = _low_size(hr, scale)
    return np.array(Image.fromarray(hr).resize((width, height), Image.Resampling.BICUBIC))


def crop_to_multiple(image: np.ndarray, scale: int) -> np.ndarray:
    """`image` (H, W, ...) without the last rows and columns beyond a multiple of `scale`."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur float (H, W, C) by a Gaussian of `sigma` pixels, cut off at 4 sigma, mirrored at the borders' edges."""
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return image
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        margin = [(radius, radius) if each == axis else (0, 0) for each in range(image.ndim)]
        padded = np.pad(image, margin, mode="symmetric")
        length = image.shape[axis]
        image = sum(tap * padded.take(range(i, i + length), axis) for i, tap in enumerate(taps))
    return image


def _low_size(hr: np.ndarray, scale: int) -> tuple[int, int]:
    if hr.dtype != np.uint8 or hr.ndim != 3 or hr.shape[2] != 3:
        raise ValueError(f"an image is uint8 (H, W, 3), not {hr.dtype} {hr.shape}")
    height, width = hr.shape[:2]
    if scale < 1 or height % scale or width % scale or not hr.size:
        raise ValueError(f"the image's {height} x {width} pixels are not a multiple of the scale {scale}")
    return height // scale, width // scale
