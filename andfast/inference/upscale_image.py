"""`andfast.upscale_image`: upscale an array, a tensor or a Pillow image."""

from __future__ import annotations

import os
import warnings
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from andfast.data.picture import Picture, eight_bits, from_pil, to_pil
from andfast.inference.models import find_model, precision_for
from andfast.inference.upscaler import Upscaler
from andfast.pretrained import DEFAULT
from andfast.utils.devices import choose_device

Kind = TypeVar("Kind", np.ndarray, Tensor, Image.Image)


def upscale_image(
    image: Kind,
    model: nn.Module | str | os.PathLike[str] = DEFAULT,
    output_scale: float | None = None,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    precision: str = "float32",
    device: str = "auto",
) -> Kind:
    """Upscale an image, and return the same kind of image.

    Args:
        image: one of
            a NumPy array (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4): gray, gray with alpha, RGB, RGBA; uint8,
            uint16, or floating point in [0, 1];
            a tensor (C, H, W) or (B, C, H, W) with 1 to 4 such channels, on any device;
            a Pillow image, which is rotated as its EXIF data says; palettes become RGB.
        model: a network, which stays on its device; or the name of a pretrained model or a file, which is cached.
        output_scale: size of the result relative to the image; None: the model's scale.
        tile, overlap: see `andfast.inference.upscaler.Upscaler`; by default chosen by the free memory and the model.
        precision: "float32", "bfloat16", "float16", or "auto": float32, but on CUDA float16 for images of 8 bits.
        device: "auto", "cpu" or "cuda": where a named model is loaded to.

    Returns:
        The same kind of image, in the same type (floating point clipped to [0, 1]), on the same device.

    Raises:
        TypeError: another kind of image, or of pixels.
        ValueError: an unsupported shape or mode, floating point above 2, or `output_scale` not above 0.
        ModelError: no such model.
        NonFiniteError: the model's output holds NaN or infinity.
    """
    if output_scale is not None and not 0 < output_scale < float("inf"):
        raise ValueError(f"output_scale must be above 0, not {output_scale}")
    if not isinstance(model, nn.Module):
        path = os.fspath(model)
        modified = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
        model = _loaded(path, modified, choose_device(device))
    deep = precision_for(model, precision, "deep upscaling")
    upscaler = Upscaler(model, precision_for(model, precision), tile, overlap, deep=deep)
    if isinstance(image, np.ndarray):
        return _array(upscaler, image, output_scale)
    if isinstance(image, Tensor):
        return _tensor(upscaler, image, output_scale)
    if isinstance(image, Image.Image):
        picture = from_pil(image)
        for note in picture.notes:
            warnings.warn(note, stacklevel=3)
        pixels = upscaler.pixels(picture.pixels, output_scale)
        if pixels.shape[2] > 1:  # Pillow has 16 bits for gray without alpha only
            pixels = eight_bits(pixels)
        return to_pil(Picture(pixels, picture.icc))
    raise TypeError(f"an image is a NumPy array, a tensor or an image of Pillow, not a {type(image).__name__}")


@lru_cache(maxsize=1)
def _loaded(path: str, modified: int, device: torch.device) -> nn.Module:
    return find_model(path, device)


def _array(upscaler: Upscaler, image: np.ndarray, factor: float | None) -> np.ndarray:
    _check(image.dtype.kind == "f" or image.dtype.newbyteorder("=") in (np.uint8, np.uint16), image.dtype)
    if image.ndim not in (2, 3) or image.size == 0 or (image.ndim == 3 and image.shape[2] > 4):
        raise ValueError(f"an array is (H, W) or (H, W, 1 to 4) and not empty, not {image.shape}")
    # A copy in native byte order: torch wants writable memory.
    copied = np.array(image, image.dtype.newbyteorder("=")).reshape(*image.shape[:2], -1)
    _check_range(copied)
    large = upscaler.pixels(copied, factor)
    return large[..., 0] if image.ndim == 2 else large


def _tensor(upscaler: Upscaler, image: Tensor, factor: float | None) -> Tensor:
    _check(image.is_floating_point() or image.dtype in (torch.uint8, torch.uint16), image.dtype)
    if image.ndim not in (3, 4) or image.numel() == 0 or image.shape[-3] > 4:
        raise ValueError(f"a tensor is (C, H, W) or (B, C, H, W) with 1 to 4 channels, not {tuple(image.shape)}")
    batch = image.detach().reshape(-1, *image.shape[-3:]).cpu()
    if batch.dtype in (torch.float16, torch.bfloat16):
        batch = batch.float()
    _check_range(batch.numpy())
    results = [upscaler.pixels(one.permute(1, 2, 0).contiguous().numpy(), factor) for one in batch]
    large = torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2).contiguous().to(image.device, image.dtype)
    return large[0] if image.ndim == 3 else large


def _check(known: bool, dtype: object) -> None:
    if not known:
        raise TypeError(f"pixels are of uint8, uint16 or floating point, not of {dtype}")


def _check_range(pixels: np.ndarray) -> None:
    """Refuse floating-point values of 0 to 255; values slightly above 1 are clipped later."""
    if pixels.dtype.kind == "f" and pixels.max() > 2:
        raise ValueError(f"floating-point pixels are in [0, 1], not up to {pixels.max():g}: divide 0 to 255 by 255")
