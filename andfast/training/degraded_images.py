"""What an attack makes of HR images, taken apart, and drawn."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from andfast.attack import AttackResult
from andfast.attack.base import NetworkAttack
from andfast.data.images import DataError, read_image
from andfast.data.tensors import to_array
from andfast.degradation.camera import crop_to_multiple
from andfast.degradation.network import DegradationNetwork
from andfast.inference.upscaler import upscale_tensor
from andfast.losses import Objective
from andfast.metrics import psnr
from andfast.ops.theta_layout import ScaleFactors, ThetaLayout
from andfast.training.config import Config
from andfast.training.randomness import step_generator
from andfast.training.samples import draw_sheet
from andfast.training.validation import centre_crop

CLEAN, LENS, ATTACKED = "clean LR", "LR through a lens", "attacked LR"
#: What the groups of parameters do to an image when nothing else moves, by the names of their scale factors.
TYPES = {
    "conv_dc": "colour alone",
    "conv_shift": "shift alone",
    "conv": "blur alone",
    "noise": "noise alone",
    "slope": "slopes alone",
}


def read_hr(source: Path, scale: int, crop: int | None = None) -> np.ndarray:
    """An HR image as it is degraded: uint8 (H, W, 3), H and W multiples of the scale.

    Args:
        source: the file.
        scale: the super-resolution factor.
        crop: take the middle of larger images, so many pixels high and wide at most.

    Raises:
        DataError: it cannot be read, or is too small.
    """
    image = read_image(source)
    image = crop_to_multiple(image, scale) if crop is None else centre_crop(image, scale, crop)
    if min(image.shape[:2]) < 2 * scale:
        raise DataError(f"{source}: smaller than {2 * scale} x {2 * scale} pixels")
    return np.ascontiguousarray(image)


def degrade(
    hr: Tensor,
    config: Config,
    objective: Objective,
    networks: int,
    number: int = 0,
    identity: bool = False,
    parts: bool = False,
) -> dict[str, Tensor]:
    """LR images by what made them.

    Args:
        hr: (B, 3, H, W) in [0, 1], on the device to compute on.
        config: its attack and degradation networks, scale and seed.
        objective: what the adversary raises.
        networks: how many there are; divides B.
        number: of the random choices, beside the seed.
        identity: search nothing: the networks stay the identity, behind their lens.
        parts: of what was found, show each group of parameters alone, too.

    Returns:
        CLEAN, LENS (where there is one), ATTACKED (but for an identity), and with `parts` those of `TYPES` that are not
        forbidden: (B, 3, h, w) each, the last one of CLEAN, LENS and ATTACKED being what the settings ask for.

    Raises:
        ValueError: images do not go with the configuration.
    """
    scale = config.scale
    if config.attack.method == "pairs":
        raise ValueError("attack.method is pairs: that degrades no images")
    if len(hr) % networks:
        raise ValueError(f"degradation.num_networks is {networks}; it must divide the {len(hr)} images, or be batch")
    height, width = hr.shape[2:]
    if height % scale or width % scale or min(height, width) < 2 * scale:
        raise ValueError(f"images are {height} x {width}; wanted are multiples of {scale}, {2 * scale} at least")
    attack, network = config.attack.build(), config.degradation.build(scale, networks, hr.device)
    by_network = isinstance(attack, NetworkAttack)
    made = {CLEAN: network.clean(hr) if identity else attack.clean(network, hr)}
    seen = hr
    if by_network:
        seen = attack.see(hr, networks, _random(config, number, hr.device))
        if attack.lens is not None:
            made[LENS] = network.clean(seen)
    if identity:
        return made
    network.reset_identity((height, width), step_generator(config.seed, number, hr.device))
    result = attack(network, hr, objective, _random(config, number, hr.device))
    made[ATTACKED] = result.lr.detach()
    # Around random networks, deviations do nothing by themselves.
    if parts and by_network and config.attack.method != "style":
        made |= _taken_apart(network, seen, result, attack.scale_factors)
    return made


def _random(config: Config, number: int, device: torch.device) -> torch.Generator:
    return step_generator(config.seed, number, device, 1)


@torch.no_grad()
def _taken_apart(
    network: DegradationNetwork, seen: Tensor, result: AttackResult, factors: ScaleFactors
) -> dict[str, Tensor]:
    """By `TYPES`, what the networks make of images with a group of their deviations' columns alone."""
    free = [name for name in TYPES if math.isfinite(getattr(factors, name))]
    return {TYPES[name]: network(seen, result.delta * columns_of(network.layout, name)) for name in free}


def columns_of(layout: ThetaLayout, name: str) -> Tensor:
    """(P,) bool: the columns of `delta` that a factor of `ScaleFactors` scales."""
    alone = {field.name: 1.0 if field.name == name else math.inf for field in fields(ScaleFactors)}
    return layout.scale_vector(ScaleFactors(**alone)).isfinite()


def draw(hr: Tensor, made: Mapping[str, Tensor], model: nn.Module | None) -> np.ndarray:
    """A labelled table of images: uint8 (H, W, 3).

    An image a line, from left to right what `shown` gives; LR images are enlarged by repeating pixels, and say how far
    they are from the clean one.

    Args:
        hr: (B, 3, size, size) in [0, 1].
        made: as `degrade` returns it.
        model: on the device of the images; None: nothing is restored.
    """
    columns = [(label, [to_array(image) for image in batch]) for label, batch in shown(hr, made, model).items()]
    return draw_sheet(columns, hr.shape[-1], distances(made))


def shown(hr: Tensor, made: Mapping[str, Tensor], model: nn.Module | None) -> dict[str, Tensor]:
    """By their labels: the images, what was made of them, and what the model makes of the clean and the attacked LR.

    Args:
        hr: (B, 3, H, W) in [0, 1].
        made, model: as for `draw`.
    """
    restored = {}
    if model is not None:
        restored = {
            restored_from(label): upscale_tensor(model, made[label]) for label in (CLEAN, ATTACKED) if label in made
        }
    return {"HR": hr} | dict(made) | restored


def restored_from(label: str) -> str:
    """The label of what a model makes of those LR images."""
    return f"SR of {label}"


def distances(made: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """How far LR images are from the clean ones, by their labels: PSNR, for people.

    With a lens, what a group of parameters does alone says how far it is from the lens's image.
    """
    notes = {label: _decibels(lr, made[CLEAN]) for label, lr in made.items() if label != CLEAN}
    if LENS in made:  # beside which what a group does alone is next to nothing
        alone = [label for label in made if label in TYPES.values()]
        notes |= {label: [f"from lens {note}" for note in _decibels(made[label], made[LENS])] for label in alone}
    return notes


def _decibels(lr: Tensor, start: Tensor) -> list[str]:
    return [f"{distance:.1f} dB" for distance in psnr(lr, start).tolist()]


def image_number(name: str) -> int:
    """The `number` of an image for `degrade`: a checksum of its name, so that it does not depend on other images."""
    return zlib.crc32(os.fsencode(name))
