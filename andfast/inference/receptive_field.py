"""How far a network looks: how much of its surroundings a pixel's result depends on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from andfast.models import Compact

#: Tiled and untiled results may differ by half a level of 8 bits.
TOLERANCE = 0.5 / 255

#: The longest reach that is measured; networks that look at the whole image have no end to it.
LONGEST = 64

_HEIGHT = 32  # of the image that it is measured on


def reach(model: nn.Module) -> int:
    """How many pixels of the input to each side a result depends on.

    Of a Compact that is what its convolutions see together, and tiles with so much overlap equal the whole image. Of
    other networks it is measured: what changes in the result, and how far from the edge, where an image is cut off
    there. Pixels farther away change a result by less than `TOLERANCE`. RRDBNet could see 350 pixels far, and looks at
    a tenth of that.

    Args:
        model: has `scale`; (B, 3, h, w) -> (B, 3, scale * h, scale * w), float32.

    Returns:
        A multiple of 4, at most `LONGEST`.
    """
    if isinstance(model, Compact):
        return -(-sum(isinstance(layer, nn.Conv2d) for layer in model.body) // 4) * 4
    return measured(model)


@torch.inference_mode()
def measured(model: nn.Module) -> int:
    """See `reach`; for any network."""
    weight = next(model.parameters())
    image = _probe().to(weight.device, weight.dtype)
    whole, part = model(image), model(image[..., LONGEST:])
    change = (whole[..., LONGEST * model.scale :] - part).abs().amax((0, 1, 2))
    changed = (change > TOLERANCE / 2).nonzero()
    farthest = 0 if len(changed) == 0 else int(changed[-1]) // model.scale + 1
    return min(-(-farthest // 4) * 4, LONGEST)


def _probe() -> Tensor:
    """Noise of all sizes, which sets off more than photographs do."""
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(1, 3, _HEIGHT, 2 * LONGEST)
    for size in (1, 2, 4, 8):
        noise = torch.rand(1, 3, _HEIGHT // size, 2 * LONGEST // size, generator=generator)
        image += noise.repeat_interleave(size, 2).repeat_interleave(size, 3) / 4
    return image
