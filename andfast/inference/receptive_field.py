"""The receptive field of a network, as tiles need it."""

from __future__ import annotations

import torch
from torch import nn

from andfast.models import Compact

#: Tiled and untiled results may differ by half a level of 8 bits.
TOLERANCE = 0.5 / 255

#: The largest receptive field that is measured; that of attention over the whole image has no bound.
LONGEST = 64

_HEIGHT = 32  # of the image it is measured on


def receptive_field(model: nn.Module) -> int:
    """The number of input pixels to each side that a result depends on: a multiple of 4, at most `LONGEST`.

    For a Compact it is exact: tiles with that overlap equal the whole image. For other networks it is measured: how far
    from a cut the result changes by more than `TOLERANCE`. (RRDBNet's is 350 pixels in theory, a tenth when measured.)
    """
    if isinstance(model, Compact):
        return -(-sum(isinstance(layer, nn.Conv2d) for layer in model.body) // 4) * 4
    return measured(model)


@torch.inference_mode()
def measured(model: nn.Module) -> int:
    """Measure the receptive field of any network; see `receptive_field`."""
    # Noise at several scales excites a network more than photographs.
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(1, 3, _HEIGHT, 2 * LONGEST)
    for size in (1, 2, 4, 8):
        noise = torch.rand(1, 3, _HEIGHT // size, 2 * LONGEST // size, generator=generator)
        image += noise.repeat_interleave(size, 2).repeat_interleave(size, 3) / 4
    image = image.to(next(model.parameters()))
    whole, part = model(image), model(image[..., LONGEST:])
    change = (whole[..., LONGEST * model.scale :] - part).abs().amax((0, 1, 2))
    changed = (change > TOLERANCE / 2).nonzero()
    farthest = 0 if len(changed) == 0 else int(changed[-1]) // model.scale + 1
    return min(-(-farthest // 4) * 4, LONGEST)
