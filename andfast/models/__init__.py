"""Generators, discriminators and perceptual features."""

from andfast.models.checkpoints import GENERATORS, build_generator, load_model, save_model
from andfast.models.compact import Compact
from andfast.models.rrdbnet import RRDBNet
from andfast.models.weights import ModelError

__all__ = ["GENERATORS", "Compact", "ModelError", "RRDBNet", "build_generator", "load_model", "save_model"]
