"""Draw adversarial LR images: `python -m studies.degraded IMAGE... --config FILE --model M --output FILE`.

A row for each image, from left to right: a part of it; its clean LR image; the LR image that the lens alone makes, if
the configuration has one; the adversary's LR image, against the model; and the model's restorations of the clean and of
the adversary's LR image. LR images are enlarged by repeating pixels, with their PSNR to the clean one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from andfast.data.images import read_image, write_png
from andfast.data.tensors import to_tensor
from andfast.inference.models import find_model
from andfast.losses import l1_objective
from andfast.training.config import Config
from andfast.training.degraded_images import degrade, draw_degraded
from andfast.training.options import parse_config
from andfast.utils.command_line import as_path, make_parser
from andfast.utils.console import console
from andfast.utils.devices import choose_device
from studies.crops import find_corner, split_place


def sheet(hr: Tensor, config: Config, model: nn.Module) -> np.ndarray:
    """The labelled table of images, uint8 (H, W, 3).

    Args:
        hr: square HR images, (B, 3, size, size) in [0, 1], on the device to compute on.
        config: the training whose attack and networks are used.
        model: the generator that the adversary attacks, with the same scale and on the same device.

    Raises:
        ValueError: images or model do not fit the configuration.
    """
    if config.attack.method == "none":
        raise ValueError("attack.method is none: that degrades no images")
    if model.scale != config.scale:
        raise ValueError(f"the model's scale is {model.scale} and the configuration's {config.scale}")
    networks = config.degradation.num_networks
    made = degrade(hr, config, l1_objective(model), len(hr) if networks == "batch" else networks)
    return draw_degraded(hr, made, model)


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 not begun."""
    parser = make_parser("studies.degraded", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="a file, or FILE@LEFT,TOP; else the part with the most detail")
    add("--config", required=True, metavar="FILE", help="the training whose attack and networks are used")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting, as attack.lens.blur=[2,4]")
    add("--model", required=True, metavar="NAME_OR_FILE", help="the generator, as for andfast.upscale")
    add("--output", type=as_path, required=True, metavar="FILE", help="the sheet, PNG")
    add("--size", type=int, default=192, help="of a part of an image, in pixels (default: %(default)s)")
    add("--seed", type=int, default=0, help="of networks, budgets and lenses (default: %(default)s)")
    options = parser.parse_args(arguments)
    settings = [f"--{one}" for one in [*options.set, f"seed={options.seed}"]]
    config = parse_config(["--config", options.config, *settings])
    try:
        device = choose_device(config.device)
        model = find_model(options.model, device).requires_grad_(False)
        hr = torch.cat([_crop(given, options.size) for given in options.images]).to(device)
        write_png(options.output, sheet(hr, config, model))
    except (ValueError, OSError) as error:  # among them DataError and ModelError
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
