"""The compact generator: the small network of Real-ESRGAN (Wang et al., ICCVW 2021, arXiv:2107.10833)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from andfast.ops.conv_chain import ChainConv, conv_chain

# The slope each activation starts with for negative values: PReLU's is learned, one a channel.
_SLOPES = {"prelu": 0.25, "relu": 0.0, "leakyrelu": 0.1}

# Factor of the last convolution's initial weights: see `Compact`. Learns as fast as 0 and faster than 0.1, and unlike
# with 0 every layer has a gradient from the first update on.
_LAST_GAIN = 0.01


class Compact(nn.Module):
    """Convolutions at the input's size, one pixel shuffle, plus the nearest-neighbour image.

    (B, in_channels, H, W) -> (B, out_channels, scale * H, scale * W), any H and W >= 1. The names in the state dict are
    those of BasicSR's SRVGGNetCompact. A new network is close to nearest-neighbour interpolation, and keeps the
    signal's magnitude from layer to layer; PyTorch's default initialisation loses it, and training stays at
    nearest-neighbour level for long.

    Args:
        scale: an integer of at least 1.
        in_channels, out_channels: equal, or one input channel; values in [0, 1] by convention, not clipped.
        features: channels of the hidden layers.
        convs: number of hidden convolutions after the first one.
        activation: "prelu", "relu" or "leakyrelu" (slope 0.1).

    Raises:
        ValueError: another value.
    """

    def __init__(
        self,
        scale: int = 4,
        in_channels: int = 3,
        out_channels: int = 3,
        features: int = 64,
        convs: int = 16,
        activation: str = "prelu",
    ) -> None:
        super().__init__()
        if int(scale) != scale or scale < 1:
            raise ValueError(f"Compact upscales by a whole number from 1 up, not by {scale!r}")
        if min(in_channels, out_channels, features) < 1 or convs < 0:
            raise ValueError("Compact needs at least one channel and feature, and no fewer than 0 convolutions")
        if in_channels not in (1, out_channels):
            raise ValueError(f"Compact adds its input to its output: {in_channels} channels do not fit {out_channels}")
        if activation not in _SLOPES:
            raise ValueError(f"activation is one of {', '.join(_SLOPES)}, not {activation!r}")
        self.scale = int(scale)
        self.activation = activation
        layers: list[nn.Module] = []
        for channels in [in_channels] + [features] * convs:
            layers += [nn.Conv2d(channels, features, 3, padding=1), _activation(activation, features)]
        layers.append(nn.Conv2d(features, out_channels * self.scale**2, 3, padding=1))
        self.body = nn.Sequential(*layers)
        for layer in self.body:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=_SLOPES[activation])
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.body[-1].weight.mul_(_LAST_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, in_channels, H, W) -> (B, out_channels, scale * H, scale * W)."""
        layers = zip(self.body[::2], [*self.body[1::2], None], strict=True)
        convs = [ChainConv(conv.weight, conv.bias, _slope(activation)) for conv, activation in layers]
        large = F.pixel_shuffle(conv_chain(x, convs), self.scale)
        return large + F.interpolate(x, scale_factor=self.scale, mode="nearest")


def _slope(activation: nn.Module | None) -> Tensor | float | None:
    if isinstance(activation, nn.PReLU):
        return activation.weight
    return 0.0 if isinstance(activation, nn.ReLU) else getattr(activation, "negative_slope", None)


def _activation(name: str, features: int) -> nn.Module:
    if name == "prelu":
        return nn.PReLU(features, init=_SLOPES[name])
    return nn.LeakyReLU(_SLOPES[name]) if name == "leakyrelu" else nn.ReLU()
