"""Generators, discriminators and perceptual features."""

from andfast.models.compact import Compact
from andfast.models.discriminators import (
    DISCRIMINATORS,
    UNetDiscriminatorSN,
    VGGStyleDiscriminator,
    build_discriminator,
    load_discriminator,
    save_discriminator,
)
from andfast.models.generators import GENERATORS, build_generator, load_model, save_model
from andfast.models.rrdbnet import RRDBNet
from andfast.models.vgg import VGGFeatures, load_vgg_features
from andfast.models.weights import ModelError

__all__ = [
    "DISCRIMINATORS",
    "GENERATORS",
    "Compact",
    "ModelError",
    "RRDBNet",
    "UNetDiscriminatorSN",
    "VGGFeatures",
    "VGGStyleDiscriminator",
    "build_discriminator",
    "build_generator",
    "load_discriminator",
    "load_model",
    "load_vgg_features",
    "save_discriminator",
    "save_model",
]
