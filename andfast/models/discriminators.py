"""The discriminators of ESRGAN and Real-ESRGAN, which tell restored images from real ones (Sec 3.4)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from andfast.models.spectral_norm import SpectralNormConv2d
from andfast.models.weights import Shapes, UnknownModelError, portable, read_model, some
from andfast.utils.files import write_torch, written_whole

_SLOPE = 0.2


class VGGStyleDiscriminator(nn.Module):
    """ESRGAN's discriminator: (B, in_channels, P, P) in [0, 1] -> logits (B, 1), positive for "real".

    Each stage is a 3x3 convolution and a 4x4 one of stride 2, with batch normalisation; two linear layers follow. P is
    4, 5, 6 or 7 times a power of two from 4 up (16, 20, 24, 28, 32, 40, ..., 128, 160, 192, 224, 256, ...): stages
    halve it until 4 to 7 pixels are left. For 128 and 256 these are the layers of BasicSR's class of this name, whose
    names the state dict has.

    In training mode batch normalisation couples the images of a batch and updates its running statistics. The generator
    and the adversary call it in evaluation mode, which does neither.

    Args:
        patch_size: height and width of the images, P.
        in_channels: colours.
        features: channels of the first stage; the following ones have 2, 4, 8, 8, ... times as many.

    Raises:
        ValueError: another P, or another argument below 1.
    """

    couples_images = True
    """Whether in training mode the result of an image depends on the others of its batch."""

    def __init__(self, patch_size: int, in_channels: int = 3, features: int = 64) -> None:
        super().__init__()
        self.check_patch_size(patch_size)
        _check_channels(type(self), in_channels, features)
        self.patch_size, self.in_channels, self.features = patch_size, in_channels, features
        self.stages = _stages(patch_size)
        channels = in_channels
        for stage in range(self.stages):
            outputs = _width(features, stage)
            # Batch normalisation makes a bias useless.
            self.add_module(f"conv{stage}_0", nn.Conv2d(channels, outputs, 3, padding=1, bias=stage == 0))
            if stage:
                self.add_module(f"bn{stage}_0", nn.BatchNorm2d(outputs))
            self.add_module(f"conv{stage}_1", nn.Conv2d(outputs, outputs, 4, stride=2, padding=1, bias=False))
            self.add_module(f"bn{stage}_1", nn.BatchNorm2d(outputs))
            channels = outputs
        self.linear1 = nn.Linear(channels * (patch_size >> self.stages) ** 2, 100)
        self.linear2 = nn.Linear(100, 1)

    @staticmethod
    def check_patch_size(patch_size: int) -> None:
        """Raise a ValueError unless `patch_size` is 4, 5, 6 or 7 times a power of two from 4 up."""
        if patch_size < 16 or patch_size % (1 << _stages(patch_size)):
            raise ValueError(
                f"a VGG-style discriminator takes patches of 4, 5, 6 or 7 times a power of two from 4 up (64, 80, 96, "
                f"112, 128, ...), not of {patch_size}"
            )

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, in_channels, patch_size, patch_size) in [0, 1] -> logits (B, 1); ValueError for another size."""
        if x.shape[-2:] != (self.patch_size, self.patch_size):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this VGG-style discriminator was made for images of "
                f"{self.patch_size} x {self.patch_size}"
            )
        for stage in range(self.stages):
            for part in range(2):
                x = self.get_submodule(f"conv{stage}_{part}")(x)
                if stage or part:
                    x = self.get_submodule(f"bn{stage}_{part}")(x)
                x = _leaky(x)
        return self.linear2(_leaky(self.linear1(x.flatten(1))))


class UNetDiscriminatorSN(nn.Module):
    """Real-ESRGAN's U-Net discriminator with spectral normalisation: one logit for each pixel, positive for "real".

    (B, in_channels, H, W) in [0, 1], H and W multiples of 8 -> (B, 1, H, W). A logit depends on at most 64 x 64 pixels
    of one image. The names in the state dict are those of BasicSR and Real-ESRGAN. In training mode each pass does one
    step of the spectral norms' power iterations.

    Args:
        in_channels: colours.
        features: channels at full size; 2, 4 and 8 times as many below.

    Raises:
        ValueError: an argument is below 1.
    """

    couples_images = False
    FEATURE_MAPS = ("input", "half", "quarter", "eighth", "full size")

    def __init__(self, in_channels: int = 3, features: int = 64) -> None:
        super().__init__()
        _check_channels(type(self), in_channels, features)
        self.in_channels, self.features = in_channels, features
        self.conv0 = nn.Conv2d(in_channels, features, 3, padding=1)
        self.conv1 = SpectralNormConv2d(features, features * 2, 4, stride=2)
        self.conv2 = SpectralNormConv2d(features * 2, features * 4, 4, stride=2)
        self.conv3 = SpectralNormConv2d(features * 4, features * 8, 4, stride=2)
        self.conv4 = SpectralNormConv2d(features * 8, features * 4, 3)
        self.conv5 = SpectralNormConv2d(features * 4, features * 2, 3)
        self.conv6 = SpectralNormConv2d(features * 2, features, 3)
        self.conv7 = SpectralNormConv2d(features, features, 3)
        self.conv8 = SpectralNormConv2d(features, features, 3)
        self.conv9 = nn.Conv2d(features, 1, 3, padding=1)

    @staticmethod
    def check_patch_size(patch_size: int) -> None:
        """Raise a ValueError unless `patch_size` is a multiple of 8."""
        if patch_size < 8 or patch_size % 8:
            raise ValueError(f"a U-Net discriminator takes patches of a multiple of 8, not of {patch_size}")

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, in_channels, H, W) in [0, 1] -> logits (B, 1, H, W); ValueError where H or W is no multiple of 8."""
        return self.conv9(self.feature_maps(x)["full size"])

    def feature_maps(self, x: Tensor) -> dict[str, Tensor]:
        """The features of `x`, as in `forward`, by `FEATURE_MAPS`: downwards, and after the way back to full size."""
        if any(size < 8 or size % 8 for size in x.shape[-2:]):
            raise ValueError(f"x has shape {tuple(x.shape)}; its height and width must be multiples of 8")
        x0 = _leaky(self.conv0(x))
        x1 = _leaky(self.conv1(x0))
        x2 = _leaky(self.conv2(x1))
        x3 = _leaky(self.conv3(x2))
        y = _leaky(self.conv4(_doubled(x3))) + x2
        y = _leaky(self.conv5(_doubled(y))) + x1
        y = _leaky(self.conv6(_doubled(y))) + x0
        y = _leaky(self.conv8(_leaky(self.conv7(y))))
        return dict(zip(self.FEATURE_MAPS, (x0, x1, x2, x3, y), strict=True))


DISCRIMINATORS: dict[str, type[VGGStyleDiscriminator] | type[UNetDiscriminatorSN]] = {
    "vgg": VGGStyleDiscriminator,
    "unet": UNetDiscriminatorSN,
}
"""The discriminators by the names that configurations use."""


def build_discriminator(name: str, patch_size: int, **options: Any) -> nn.Module:
    """Build a new discriminator.

    Args:
        name: a key of `DISCRIMINATORS`: "vgg" or "unet".
        patch_size: height and width of the images.
        **options: further arguments of that class, as `features`.

    Raises:
        ValueError: an unknown discriminator, or an invalid value.
        TypeError: an unknown option.
    """
    if name not in DISCRIMINATORS:
        raise ValueError(f"there is no discriminator {name!r}; there are {', '.join(DISCRIMINATORS)}")
    kind = DISCRIMINATORS[name]
    kind.check_patch_size(patch_size)
    return kind(patch_size, **options) if kind is VGGStyleDiscriminator else kind(**options)


def save_discriminator(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the weights of `model` to a `.pth` file, `path`, under "params" as BasicSR and Real-ESRGAN do, whole or not
    at all; raises OSError."""
    with written_whole(path) as temporary:
        write_torch({"params": portable(model)}, temporary)


def load_discriminator(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> nn.Module:
    """Read a discriminator from a file of andfast, BasicSR, Real-ESRGAN or a similar program; see `load_model`.

    Args:
        path: the file; it may hold a generator, too.
        device: where the discriminator goes.

    Returns:
        A `VGGStyleDiscriminator` or a `UNetDiscriminatorSN` in training mode with float32 weights.

    Raises:
        FileNotFoundError: no such file.
        ModelError: not a model file, a damaged one, or another architecture.
        OSError: the file cannot be read.
    """
    return read_model(path, _recognise).to(device)


def _recognise(shapes: Shapes, record: Mapping[str, str]) -> tuple[type[nn.Module], dict[str, Any]]:
    """The architecture that the names and shapes describe, and its arguments."""
    if "conv0_0.weight" in shapes and "conv0_1.weight" in shapes:
        return VGGStyleDiscriminator, _vgg_options(shapes)
    if "conv0.weight" in shapes and "conv1.weight_orig" in shapes:
        features, channels = shapes["conv0.weight"][0], shapes["conv0.weight"][1]
        return UNetDiscriminatorSN, {"in_channels": channels, "features": features}
    raise UnknownModelError(
        f"an unknown architecture (its weights are called {some(shapes)}); known are the discriminators of ESRGAN "
        "(VGGStyleDiscriminator) and Real-ESRGAN (UNetDiscriminatorSN), with the names that BasicSR gives"
    )


def _vgg_options(shapes: Shapes) -> dict[str, int]:
    features, channels = shapes["conv0_0.weight"][0], shapes["conv0_0.weight"][1]
    stages = sum(bool(re.fullmatch(r"conv\d+_1\.weight", key)) for key in shapes)
    last = max(_width(features, stages - 1), 1)
    side = math.isqrt(shapes["linear1.weight"][1] // last)
    return {"patch_size": side << stages, "in_channels": channels, "features": features}


def _stages(patch_size: int) -> int:
    """How often to halve a patch until 4 to 7 pixels are left."""
    return (patch_size // 4).bit_length() - 1


def _width(features: int, stage: int) -> int:
    return features * min(2**stage, 8)


def _check_channels(kind: type[nn.Module], in_channels: int, features: int) -> None:
    if min(in_channels, features) < 1:
        raise ValueError(f"{kind.__name__} needs at least one channel and feature")


def _leaky(x: Tensor) -> Tensor:
    # In place: the backward passes of the layers before it need their inputs, never their output.
    return F.leaky_relu(x, _SLOPE, inplace=True)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
