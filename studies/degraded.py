"""What an adversary makes of photographs: `python -m studies.degraded IMAGE... --config FILE --model M --output FILE`.

An image a line, from left to right: a part of it; its clean LR image; the LR image that the lens alone makes, where the
configuration has one; the one that the adversary finds, against the model; and what the model makes of the clean LR
image and of the adversary's. LR images are enlarged by repeating pixels, and say how far they are from the clean one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from andfast.attack.base import NetworkAttack
from andfast.data.images import DataError, read_image, write_png
from andfast.data.tensors import to_array, to_tensor
from andfast.devices import choose_device
from andfast.losses import l1_objective
from andfast.metrics import psnr
from andfast.models import ModelError
from andfast.training.config import Config, parse_config
from andfast.training.randomness import step_generator
from andfast.training.sheet import draw_sheet
from andfast.upscale import find_model, upscale_tensor
from studies.crops import find_corner, split_place

CLEAN, LENS, ATTACKED = "clean LR", "LR through a lens", "attacked LR"


def degrade(hr: Tensor, config: Config, model: nn.Module) -> dict[str, Tensor]:
    """LR images by what made them.

    Args:
        hr: (B, 3, H, W) in [0, 1], on the device to compute on.
        config: its attack and degradation networks; of `degradation.num_networks`, "batch" gives each image its own.
        model: the generator that the adversary attacks, with the same scale and on the same device.

    Returns:
        CLEAN, LENS (where there is one) and ATTACKED, (B, 3, h, w) each.

    Raises:
        ValueError: images or model do not go with the configuration.
    """
    scale, networks = config.scale, config.degradation.num_networks
    if config.attack.method in ("none", "pairs"):
        raise ValueError(f"attack.method is {config.attack.method}: that degrades no images")
    if model.scale != scale:
        raise ValueError(f"the model's scale is {model.scale} and the configuration's {scale}")
    count = len(hr) if networks == "batch" else networks
    if len(hr) % count:
        raise ValueError(f"degradation.num_networks is {count}; it must divide the {len(hr)} images, or be batch")
    height, width = hr.shape[2:]
    if height % scale or width % scale or min(height, width) < 2 * scale:
        raise ValueError(f"crops are {height} x {width}; wanted are multiples of {scale}, {2 * scale} at least")
    attack, network = config.attack.build(), config.degradation.build(scale, count, hr.device)
    network.reset_identity((height, width), step_generator(config.seed, 0, hr.device))
    result = attack(network, hr, l1_objective(model), step_generator(config.seed, 1, hr.device))
    behind = isinstance(attack, NetworkAttack) and attack.lens is not None
    through = {LENS: result.clean} if behind else {}
    return {CLEAN: attack.clean(network, hr)} | through | {ATTACKED: result.lr}


def sheet(hr: Tensor, config: Config, model: nn.Module) -> np.ndarray:
    """The labelled table of images, uint8 (H, W, 3), for square HR images; arguments and errors as for `degrade`."""
    made = degrade(hr, config, model)
    restored = {f"SR of {label}": upscale_tensor(model, made[label]) for label in (CLEAN, ATTACKED)}
    notes = {
        label: [f"{distance:.1f} dB" for distance in psnr(lr, made[CLEAN]).tolist()]
        for label, lr in made.items()
        if label != CLEAN
    }
    columns = [(label, [to_array(image) for image in batch]) for label, batch in ({"HR": hr} | made | restored).items()]
    return draw_sheet(columns, hr.shape[-1], notes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 not begun."""
    parser = argparse.ArgumentParser(prog="python -m studies.degraded", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="a file, or FILE@LEFT,TOP; else the part with the most detail")
    add("--config", required=True, metavar="FILE", help="the training whose attack and networks are taken")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting, as attack.lens.blur=[2,4]")
    add("--model", required=True, metavar="NAME_OR_FILE", help="the generator, as for andfast.upscale")
    add("--output", type=Path, required=True, metavar="FILE", help="the sheet, PNG")
    add("--size", type=int, default=192, help="of a part of an image, in pixels (default: %(default)s)")
    add("--seed", type=int, default=0, help="of networks, budgets and lenses (default: %(default)s)")
    options = parser.parse_args(arguments)
    settings = [f"--{one}" for one in [*options.set, f"seed={options.seed}"]]
    config = parse_config(["--config", options.config, *settings])
    try:
        device = choose_device(config.device)
        model = find_model(options.model, device).requires_grad_(False)
        hr = torch.cat([_crop(given, options.size) for given in options.images]).to(device)
        drawn = sheet(hr, config, model)
        write_png(options.output, drawn)
    except (DataError, ModelError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _crop(given: str, size: int) -> Tensor:
    path, place = split_place(given)
    image = read_image(path)
    top, left = find_corner(image, size, place, given)
    return to_tensor(np.ascontiguousarray(image[top : top + size, left : left + size]))


if __name__ == "__main__":
    sys.exit(main())
