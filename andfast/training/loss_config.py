"""The settings of the losses and the discriminator: ANDNet's L1 alone, or ANDGAN's (Sec 3.4, 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from andfast.losses import (
    GAN_LOSSES,
    PERCEPTUAL_WEIGHTS,
    AdversarialLoss,
    GANLoss,
    GeneratorLoss,
    ImageLoss,
    PerceptualLoss,
)
from andfast.models import DISCRIMINATORS, build_discriminator, load_discriminator, load_vgg_features
from andfast.models.discriminators import UNetDiscriminatorSN
from andfast.models.frozen import FrozenModule
from andfast.models.vgg import DOWNLOAD, LAYERS, URL, VGGFeatures, fetch_vgg, least_size
from andfast.utils.formatting import counted
from andfast.utils.import_path import ImportPath, import_class
from andfast.utils.rng import seeded


@dataclass
class DiscriminatorConfig:
    """The discriminator D, for loss.gan above 0.

    Attributes:
        name: vgg (ESRGAN's, a logit for each image; patches of 4, 5, 6 or 7 times a power of two, from 16 on) or unet
            (Real-ESRGAN's, with spectral normalisation, a logit for each pixel; patches of multiples of 8).
        features: width; null: 64, or that of the weights in init.
        init: a file of weights to start from.
        learning_rate: the optimizer's, at its highest; null: train.learning_rate. It follows the same schedule.
    """

    name: Literal["vgg", "unet"] = "vgg"
    features: PositiveInt | None = None
    init: str | None = None
    learning_rate: PositiveFloat | None = None

    def check(self, patch_size: int) -> None:
        """Raise a ValueError for a size of HR patches that the discriminator does not take."""
        try:
            DISCRIMINATORS[self.name].check_patch_size(patch_size)
        except ValueError as error:
            raise ValueError(f"train.patch_size is {patch_size}; discriminator.name {self.name}: {error}") from None

    def build(self, patch_size: int) -> nn.Module:
        """The discriminator, in training mode on the CPU, with the weights of init or new ones from torch's generator.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the patches do not fit, or the file has no discriminator (`ModelError`) or another one.
        """
        self.check(patch_size)
        if self.init is None:
            return build_discriminator(self.name, patch_size, features=self.features or 64)
        model = load_discriminator(self.init)
        made_for = getattr(model, "patch_size", patch_size)
        if not isinstance(model, DISCRIMINATORS[self.name]):
            wrong = f"a {type(model).__name__}; discriminator.name is {self.name}"
        elif self.features not in (None, model.features):
            wrong = f"a network of {model.features} features; discriminator.features is {self.features}"
        elif made_for != patch_size:
            wrong = f"a discriminator of patches of {made_for}; train.patch_size is {patch_size}"
        elif model.in_channels != 3:
            wrong = f"a discriminator of images with {counted(model.in_channels, 'channel')}; RGB has 3"
        else:
            return model
        raise ValueError(f"discriminator.init {self.init}: {wrong}")


@dataclass
class LossConfig:
    """What the generator minimises and the adversary maximises: L1 + perceptual * L_VGG + gan * L_GAN and more terms.

    The default is ANDNet's, L1 alone. The paper's ANDGAN has perceptual 1 and gan 0.1, and starts from an ANDNet
    (generator.init) with train.learning_rate 1e-4 (Sec 3.4 and 4.3).

    Attributes:
        pixel: l1 (the paper's), or charbonnier, which is smooth around 0, in its place.
        charbonnier_eps: where charbonnier turns from a square into L1, in the unit of images in [0, 1].
        frequency: weight of the L1 distance of Fourier transforms (MIMO-UNet's, but orthonormal); 0: without.
        perceptual: weight of the distance in VGG19's features; 0: without. The paper has 1.
        perceptual_layers: weights of VGG19's layers in it.
        perceptual_distance: l2, the squared 2-norm of the paper, or l1, as in ESRGAN and Real-ESRGAN; means, both.
        vgg: torchvision's file of VGG19's weights, for perceptual above 0; download: fetch it.
        gan: weight of the GAN loss, lambda; 0: without, and without a discriminator. The paper has 0.1.
        gan_loss: vanilla (SRGAN's; for the generator the paper's Eq. 3), relativistic (ESRGAN's), hinge, or eq3 (Eq. 3
            for the discriminator, too, whose loss then has no lower bound).
        custom: a loss of your own, a class my_file.py:MyLoss or package.module:MyLoss, called as (restored, hr), both
            (B, 3, H, W), hr in [0, 1], for a loss of each image, (B,); null: without. The adversary raises it, too.
        custom_weight: its weight.
        custom_options: arguments of the class, by their names.
        matching: weight of the distance (1-norm) in the features of the U-Net discriminator, as in pix2pixHD, for those
            who have no VGG19; 0: without.
    """

    pixel: Literal["l1", "charbonnier"] = "l1"
    charbonnier_eps: PositiveFloat = 1e-3
    frequency: NonNegativeFloat = 0.0
    perceptual: NonNegativeFloat = 0.0
    perceptual_layers: dict[str, NonNegativeFloat] = field(default_factory=lambda: dict(PERCEPTUAL_WEIGHTS))
    perceptual_distance: Literal["l2", "l1"] = "l2"
    vgg: str | None = None
    gan: NonNegativeFloat = 0.0
    gan_loss: Literal["vanilla", "relativistic", "hinge", "eq3"] = "vanilla"
    matching: NonNegativeFloat = 0.0
    custom: ImportPath | None = None
    custom_weight: NonNegativeFloat = 1.0
    custom_options: dict[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> list[str]:
        """The layers of VGG19 with a weight above 0."""
        return [layer for layer, weight in self.perceptual_layers.items() if weight]

    def gan_kind(self) -> GANLoss:
        """The GAN loss."""
        return GAN_LOSSES[self.gan_loss]()

    def check(self, discriminator: DiscriminatorConfig, patch_size: int, micro_batch: int | None = None) -> None:
        """Raise a ValueError for settings that do not go together; reads no files.

        Args:
            discriminator: its settings.
            patch_size: height and width of the HR patches.
            micro_batch: images computed at once; None: all of a batch.
        """
        if self.perceptual:
            self._check_perceptual(patch_size)
        if self.gan:
            discriminator.check(patch_size)
        if self.matching and not (self.gan and discriminator.name == "unet"):
            raise ValueError(
                f"loss.matching is {self.matching:g}, a distance in the features of a U-Net discriminator; it needs "
                f"loss.gan above 0 and discriminator.name unet, which are {self.gan:g} and {discriminator.name}"
            )
        if self.custom_options and self.custom is None:
            raise ValueError(f"loss.custom_options is {self.custom_options}, and loss.custom null")
        coupled = self.coupled(discriminator)
        if micro_batch is not None and coupled:
            raise ValueError(
                f"train.micro_batch is {micro_batch}; {coupled[0]} looks at all images of a batch at once: it must be "
                "null (discriminator.name unet with loss.gan_loss vanilla, hinge or eq3 looks at them one by one)"
            )

    def coupled(self, discriminator: DiscriminatorConfig) -> list[str]:
        """The settings that couple the images of a batch, so that micro-batches would change the result."""
        kinds = {
            f"loss.gan_loss {self.gan_loss}": GAN_LOSSES[self.gan_loss],
            f"discriminator.name {discriminator.name}": DISCRIMINATORS[discriminator.name],
        }
        return [key for key, kind in kinds.items() if self.gan and kind.couples_images]

    def _check_perceptual(self, patch_size: int) -> None:
        if self.vgg is None:
            raise ValueError(
                f"loss.perceptual is {self.perceptual:g} and loss.vgg null; it needs the weights of VGG19: give "
                f"torchvision's file ({URL}), or {DOWNLOAD}, which fetches it"
            )
        unknown = [layer for layer in self.perceptual_layers if layer not in LAYERS]
        if unknown:
            raise ValueError(f"loss.perceptual_layers has {', '.join(unknown)}; VGG19's layers are {', '.join(LAYERS)}")
        if not self.layers:
            raise ValueError(f"loss.perceptual is {self.perceptual:g}; no layer of loss.perceptual_layers is above 0")
        least = least_size(self.layers)
        if patch_size < least:
            raise ValueError(
                f"train.patch_size is {patch_size}; the deepest layer of loss.perceptual_layers needs at least {least}"
            )

    def fetch(self) -> None:
        """Download VGG19's weights if `vgg` says so; raises a ModelError if that fails."""
        if self.perceptual and self.vgg == DOWNLOAD:
            fetch_vgg()

    def load_features(self, device: torch.device, dtype: torch.dtype) -> VGGFeatures | None:
        """VGG19 up to the last layer that the perceptual term needs; None without that term.

        Raises:
            FileNotFoundError, ModelError: the file of vgg is missing, or does not have VGG19's weights.
        """
        return load_vgg_features(self.vgg, self.layers, device, dtype) if self.perceptual else None

    def build(
        self,
        features: Callable[[Tensor], Mapping[str, Tensor]] | None,
        discriminator: FrozenModule | None,
        device: torch.device | None = None,
        patch_size: int = 32,
    ) -> GeneratorLoss:
        """The generator's loss with these settings.

        Args:
            features: from `load_features`; needed for perceptual above 0.
            discriminator: a `FrozenModule` of D; needed for gan above 0.
            device: where images will be; None: the CPU.
            patch_size: their height and width, on which a loss of one's own is tried.

        Raises:
            ValueError: a network that a term needs is missing, or a loss of one's own does not fit.
        """
        perceptual = adversarial = matching = None
        if self.perceptual:
            if features is None:
                raise ValueError(f"loss.perceptual is {self.perceptual:g}; it needs VGG19's features")
            perceptual = PerceptualLoss(features, self.perceptual_layers, self.perceptual_distance)
        if self.gan:
            if discriminator is None:
                raise ValueError(f"loss.gan is {self.gan:g}; it needs a discriminator")
            adversarial = AdversarialLoss(discriminator, self.gan_kind())
            if self.matching:
                maps = partial(discriminator.run_part, discriminator.module.feature_maps)
                matching = PerceptualLoss(maps, dict.fromkeys(UNetDiscriminatorSN.FEATURE_MAPS, 1.0), "l1")
        return GeneratorLoss(
            perceptual,
            adversarial,
            self.perceptual,
            self.gan,
            matching,
            self.matching,
            charbonnier_eps=self.charbonnier_eps if self.pixel == "charbonnier" else None,
            frequency_weight=self.frequency,
            custom=self._build_custom(device or torch.device("cpu"), patch_size),
            custom_weight=self.custom_weight,
        )

    def _build_custom(self, device: torch.device, size: int) -> ImageLoss | None:
        if self.custom is None:
            return None
        kind = import_class(self.custom, "loss.custom")
        restored, hr = torch.rand(2, 2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
        try:
            with seeded(0):  # the same in all processes, and when a run resumes
                loss = kind(**self.custom_options)
            if isinstance(loss, nn.Module):
                loss = loss.to(device).eval().requires_grad_(False)
            found = loss(restored.requires_grad_(), hr)
        except Exception as error:  # whatever the user's code raises
            options = f" with {self.custom_options}" if self.custom_options else ""
            raise ValueError(f"loss.custom {self.custom}{options}: {type(error).__name__}: {error}") from error
        if not isinstance(found, Tensor) or found.shape != (2,) or not found.requires_grad:
            made = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            without = "" if made != (2,) else " without a gradient"
            raise ValueError(
                f"loss.custom {self.custom} makes {made}{without} of two images; it must be a loss for each, (2,)"
            )
        return loss

    def describe(self) -> str:
        """For people, e.g. "L1 + 0.1 GAN (vanilla), without a perceptual term (loss.perceptual 0)"."""
        words = "L1" if self.pixel == "l1" else f"Charbonnier (eps {self.charbonnier_eps:g})"
        words += f" + {self.frequency:g} frequency" if self.frequency else ""
        words += f" + {self.custom_weight:g} {self.custom}" if self.custom else ""
        if self.perceptual:
            distance = f"{self.perceptual_distance} in VGG19's {', '.join(self.layers)}"
            words += f" + {self.perceptual:g} perceptual ({distance})"
        if self.gan:
            words += f" + {self.gan:g} GAN ({self.gan_loss})"
            words += f" + {self.matching:g} matching of the discriminator's features" if self.matching else ""
            words += "" if self.perceptual else ", without a perceptual term (loss.perceptual is 0)"
        return words
