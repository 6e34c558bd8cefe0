"""What the generator minimises and the adversary maximises, and what the discriminator minimises (Sec 3.4)."""

from andfast.losses.adversarial import (
    GAN_LOSSES,
    AdversarialLoss,
    GANLoss,
    discriminator_logits,
    discriminator_loss,
)
from andfast.losses.objective import (
    GeneratorLoss,
    ImageLoss,
    Objective,
    charbonnier_loss,
    frequency_loss,
    generator_objective,
    l1_loss,
    l1_objective,
    no_objective,
    relative_objective,
)
from andfast.losses.perceptual import PERCEPTUAL_WEIGHTS, PerceptualLoss

__all__ = [
    "GAN_LOSSES",
    "PERCEPTUAL_WEIGHTS",
    "AdversarialLoss",
    "GANLoss",
    "GeneratorLoss",
    "ImageLoss",
    "Objective",
    "PerceptualLoss",
    "charbonnier_loss",
    "discriminator_logits",
    "discriminator_loss",
    "frequency_loss",
    "generator_objective",
    "l1_loss",
    "l1_objective",
    "no_objective",
    "relative_objective",
]
