"""Blind image super-resolution, trained against an adversary that learns the degradation.

An implementation of "AND: Adversarial Neural Degradation for Learning Blind Image Super-Resolution" (Luo, Wu and
Guo, NeurIPS 2023).
"""

from importlib.metadata import PackageNotFoundError, version

from andfast.attack import (
    BSRGAN,
    PGD,
    YOPO,
    Attack,
    AttackResult,
    Bicubic,
    Free,
    Lens,
    Noise,
    Random,
    RealESRGAN,
    Replay,
    Style,
    Subset,
)
from andfast.degradation.network import DegradationNetwork
from andfast.inference.upscale_image import upscale_image
from andfast.losses import l1_objective
from andfast.models import Compact, RRDBNet, load_model, save_model
from andfast.ops.theta_layout import ScaleFactors
from andfast.pretrained import load_pretrained

try:
    __version__ = version("andfast")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "unknown"

__all__ = [
    "BSRGAN",
    "PGD",
    "YOPO",
    "Attack",
    "AttackResult",
    "Bicubic",
    "Compact",
    "DegradationNetwork",
    "Free",
    "Lens",
    "Noise",
    "RRDBNet",
    "Random",
    "RealESRGAN",
    "Replay",
    "ScaleFactors",
    "Style",
    "Subset",
    "l1_objective",
    "load_model",
    "load_pretrained",
    "save_model",
    "upscale_image",
]
