"""What the networks of a training step hold and compute, counted in the code itself: `count()`.

Nothing is computed for that: the networks are built and run on tensors that have shapes and no content.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from andfast import DegradationNetwork
from andfast.losses import PERCEPTUAL_WEIGHTS
from andfast.models import DISCRIMINATORS, VGGFeatures, build_discriminator, build_generator
from andfast.ops import use_backend
from andfast.ops.identity_init import identity_centres

SCALE, PATCH = 4, 256


@dataclass(frozen=True)
class Counts:
    """Of an HR patch of 256 x 256 and the scale 4.

    Attributes:
        parameters: numbers that G and the discriminators learn, that VGG19 has, and (F) in a row of theta.
        macs: multiply-adds of a pass forward for one image, by the same names.
        centres: normal numbers that the identity initialisation of one degradation network draws.
    """

    parameters: dict[str, int]
    macs: dict[str, int]
    centres: int


def count() -> Counts:
    """Count the paper's networks: RRDBNet with 23 blocks, F, VGG19 up to conv5_4, and the discriminators."""
    low, high = PATCH // SCALE, PATCH
    with FakeTensorMode():
        generator = build_generator("rrdbnet", SCALE, features=64, blocks=23)
        networks: dict[str, tuple[nn.Module, int]] = {
            "G": (generator, low),
            "VGG19": (VGGFeatures(PERCEPTUAL_WEIGHTS), high),
            **{f"D {name}": (build_discriminator(name, PATCH).eval(), high) for name in DISCRIMINATORS},
        }
        parameters = {name: sum(map(torch.numel, network.parameters())) for name, (network, _) in networks.items()}
        macs = {name: _macs(network, size) for name, (network, size) in networks.items()}
        bank = DegradationNetwork(SCALE)
        bank.reset_identity((PATCH, PATCH))
        widths = [bank.layout.conv[0].shape[1], *(segment.shape[0] for segment in bank.layout.conv)]
        centres = sum(map(torch.numel, identity_centres(1, widths)[:-1]))
        return Counts(
            {"G": parameters.pop("G"), "F": bank.layout.size, **parameters},
            {"G": macs.pop("G"), "F": _macs(bank, high), **macs},
            centres,
        )


def _macs(network: Callable[[Tensor], object], size: int) -> int:
    """Of all matrix products and convolutions of an image's pass; the references alone consist of PyTorch's own."""
    with FlopCounterMode(display=False) as counter, use_backend("reference"):
        network(torch.empty(1, 3, size, size))
    return counter.get_total_flops() // 2
