"""LR images that an attack makes of HR images, split by groups of parameters, and drawn."""

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

from andfast.attack.base import NetworkAttack
from andfast.data.images import DataError, read_image
from andfast.data.tensors import to_array
from andfast.degradation.camera import crop_to_multiple
from andfast.inference.upscaler import upscale_tensor
from andfast.losses import Objective
from andfast.metrics import psnr
from andfast.ops.theta_layout import ScaleFactors, ThetaLayout
from andfast.training.config import Config
from andfast.training.validation import centre_crop
from andfast.utils.image_grid import draw_grid
from andfast.utils.rng import step_generator

# The attack's stream of an image's random numbers; that of the networks' initialisation has no number.
_ATTACK = 1

CLEAN, LENS, ATTACKED = "clean LR", "LR through a lens", "attacked LR"
#: Labels of LR images in which one group of parameters deviates alone, by the group's name in `ScaleFactors`.
GROUP_LABELS = {
    "conv_dc": "colour alone",
    "conv_shift": "shift alone",
    "conv": "blur alone",
    "noise": "noise alone",
    "slope": "slopes alone",
}


def read_hr(source: Path, scale: int, crop: int | None = None) -> np.ndarray:
    """Read an HR image, uint8 (H, W, 3), cropped to multiples of the scale, and to the `crop` pixels in its centre.

    Raises:
        DataError: it cannot be read, or is too small.
    """
    image = read_image(source)
    image = crop_to_multiple(image, scale) if crop is None else centre_crop(image, scale, crop)
    if min(image.shape[:2]) < 2 * scale:
        raise DataError(f"{source}: smaller than {2 * scale} x {2 * scale} pixels")
    return np.ascontiguousarray(image)


def image_number(name: str) -> int:
    """The `number` of `degrade` for an image of that name, the same beside any other images."""
    return zlib.crc32(os.fsencode(name))


def degrade(
    hr: Tensor,
    config: Config,
    objective: Objective,
    networks: int,
    number: int = 0,
    identity: bool = False,
    parts: bool = False,
) -> dict[str, Tensor]:
    """Make LR images of HR images, by label.

    Args:
        hr: (B, 3, H, W) in [0, 1], on the device to compute on.
        config: its attack, degradation networks, scale and seed are used.
        objective: the loss that the adversary raises.
        networks: how many there are; divides B.
        number: determines the random choices, with the seed.
        identity: no attack: the networks stay the identity, behind their lens.
        parts: also return images in which one group of parameters deviates alone.

    Returns:
        CLEAN, LENS (with a lens), ATTACKED (unless `identity`), and with `parts` those of `GROUP_LABELS` that may
        deviate: (B, 3, h, w) each. The last one of CLEAN, LENS and ATTACKED is the result.

    Raises:
        ValueError: the images do not fit the configuration.
    """
    scale = config.scale
    if config.attack.method == "pairs":
        raise ValueError("attack.method is pairs: that degrades no images")
    if len(hr) % networks:
        raise ValueError(
            f"degradation.num_networks is {networks}; it must divide the batch size, {len(hr)}, or be batch"
        )
    height, width = hr.shape[2:]
    if height % scale or width % scale or min(height, width) < 2 * scale:
        raise ValueError(f"images are {height} x {width}; wanted are multiples of {scale}, {2 * scale} at least")
    attack, network = config.attack.build(), config.degradation.build(scale, networks, hr.device)
    by_network = isinstance(attack, NetworkAttack)
    results = {CLEAN: network.clean(hr) if identity else attack.clean(network, hr)}
    inputs = hr
    if attack.lens is not None:
        count = networks if by_network else len(hr)
        inputs = attack.preprocess(hr, count, step_generator(config.seed, number, hr.device, _ATTACK))
        results[LENS] = attack.clean(network, inputs)
    if identity:
        return results
    network.reset_identity((height, width), step_generator(config.seed, number, hr.device))
    result = attack(network, hr, objective, step_generator(config.seed, number, hr.device, _ATTACK))
    results[ATTACKED] = result.lr.detach()
    # Deviations from random networks mean nothing by themselves.
    if parts and by_network and config.attack.method != "style":
        for name, label in GROUP_LABELS.items():
            if math.isfinite(getattr(attack.scale_factors, name)):
                with torch.no_grad():
                    results[label] = network(inputs, result.delta * group_columns(network.layout, name))
    return results


def group_columns(layout: ThetaLayout, name: str) -> Tensor:
    """(P,) bool: the columns of `delta` that a factor of `ScaleFactors` scales."""
    alone = {field.name: 1.0 if field.name == name else math.inf for field in fields(ScaleFactors)}
    return layout.scale_vector(ScaleFactors(**alone)).isfinite()


def draw_degraded(hr: Tensor, degraded: Mapping[str, Tensor], model: nn.Module | None) -> np.ndarray:
    """Draw a row for each image: `with_restored`, LR images with their `psnr_notes`; returns uint8 (H, W, 3).

    Args:
        hr: (B, 3, size, size) in [0, 1].
        degraded: as `degrade` returns it.
        model: on the device of the images; None: nothing is restored.
    """
    columns = [(key, [to_array(image) for image in batch]) for key, batch in with_restored(hr, degraded, model).items()]
    return draw_grid(columns, hr.shape[-1], psnr_notes(degraded))


def with_restored(hr: Tensor, degraded: Mapping[str, Tensor], model: nn.Module | None) -> dict[str, Tensor]:
    """By label: HR and degraded images, and the model's results on clean and attacked ones."""
    images = {"HR": hr, **degraded}
    if model is not None:
        for label in (CLEAN, ATTACKED):
            if label in degraded:
                images[restored_label(label)] = upscale_tensor(model, degraded[label])
    return images


def restored_label(label: str) -> str:
    """The label of a model's results on the LR images of a label."""
    return f"SR of {label}"


def psnr_notes(degraded: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """By label, the PSNR of LR images against the clean ones, for people.

    With a lens the images of `GROUP_LABELS` are compared with the lens's: beside the lens a single group does little.
    """
    notes = {label: _decibels(lr, degraded[CLEAN]) for label, lr in degraded.items() if label != CLEAN}
    if LENS in degraded:
        for label in degraded.keys() & GROUP_LABELS.values():
            notes[label] = [f"from lens {note}" for note in _decibels(degraded[label], degraded[LENS])]
    return notes


def _decibels(lr: Tensor, reference: Tensor) -> list[str]:
    return [f"{value:.1f} dB" for value in psnr(lr, reference).tolist()]
