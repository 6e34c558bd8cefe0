"""Degradations that others train with, to compare the adversary with: batched, on the images' device.

BSRGAN's and Real-ESRGAN's, each a chain of blurs, resizings, noises and JPEG, and the parts that they are made of. All
take float images (B, 3, H, W) in [0, 1], and parameters of which each image has its own.
"""

from andfast.degradation.bsrgan import BSRGANSettings, bsrgan
from andfast.degradation.jpeg import jpeg
from andfast.degradation.real_esrgan import RealESRGANSettings, real_esrgan

__all__ = ["BSRGANSettings", "RealESRGANSettings", "bsrgan", "jpeg", "real_esrgan"]
