"""Blind image super-resolution, trained against an adversary that learns the degradation.

An implementation of "AND: Adversarial Neural Degradation for Learning Blind Image Super-Resolution" (Luo, Wu and
Guo, NeurIPS 2023).
"""

from typing import NoReturn

from andfast.utils import openmp  # noqa: F401  # isort: skip  # before anything imports torch

from andfast.attack import (
    BSRGAN,
    PGD,
    YOPO,
    AdversarialNoise,
    Attack,
    AttackResult,
    Bicubic,
    FreeAT,
    Lens,
    RandomDeviation,
    RealESRGAN,
    Replay,
    StyleShift,
    SubsetPGD,
)
from andfast.degradation.network import DegradationNetwork
from andfast.inference.upscale_image import upscale_image
from andfast.losses import l1_objective
from andfast.models import Compact, RRDBNet, load_model, save_model
from andfast.ops.theta_layout import ScaleFactors
from andfast.pretrained import load_pretrained
from andfast.utils import moved_modules
from andfast.utils.optional import version

moved_modules.install()

__version__ = version("andfast") or "unknown"  # in a checkout that is not installed

_RENAMED = {
    "Free": "FreeAT",
    "Noise": "AdversarialNoise",
    "Random": "RandomDeviation",
    "Style": "StyleShift",
    "Subset": "SubsetPGD",
    "upscale": "upscale_image",
}

__all__ = [
    "BSRGAN",
    "PGD",
    "YOPO",
    "AdversarialNoise",
    "Attack",
    "AttackResult",
    "Bicubic",
    "Compact",
    "DegradationNetwork",
    "FreeAT",
    "Lens",
    "RRDBNet",
    "RandomDeviation",
    "RealESRGAN",
    "Replay",
    "ScaleFactors",
    "StyleShift",
    "SubsetPGD",
    "l1_objective",
    "load_model",
    "load_pretrained",
    "save_model",
    "upscale_image",
]


def __getattr__(name: str) -> NoReturn:
    now = f"; it is andfast.{_RENAMED[name]} now" if name in _RENAMED else ""
    raise AttributeError(f"module 'andfast' has no attribute {name!r}{now}", name=name)
