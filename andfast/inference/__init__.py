"""Upscaling: images of any size, in tiles, with any model."""

from andfast.inference.models import find_model
from andfast.inference.tiles import NonFiniteError
from andfast.inference.upscale_image import upscale_image
from andfast.inference.upscaler import Upscaler, upscale_tensor

__all__ = ["NonFiniteError", "Upscaler", "find_model", "upscale_image", "upscale_tensor"]
