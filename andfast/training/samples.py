"""Sample sheets: what the adversary makes of images, and what the generator makes of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from andfast.data.tensors import to_array, to_tensor
from andfast.training.trainer import Trainer
from andfast.training.validation import bicubic_upsample, centre_crop
from andfast.utils.rng import step_generator

CROP = 160
ROWS = 4
_GAP = 4
_HEADER = 22


def sample_sheet(trainer: Trainer, held_out: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Held-out images, what the adversary makes of them within the full budget, and the restorations.

    The adversary raises the L1 loss here, in ANDGAN, too: a discriminator judges images of its own size alone.

    Args:
        trainer: the run; not changed.
        held_out: images (name, uint8 (H, W, 3)); the middles of the first few are taken.

    Returns:
        uint8 (H, W, 3), labelled.
    """
    config = trainer.config
    images = [image for _, image in held_out[:ROWS]]
    crop = min(CROP, *(length for image in images for length in image.shape[:2]))
    crop -= crop % config.scale
    images = [centre_crop(image, config.scale, crop) for image in images]
    hr = torch.cat([to_tensor(image) for image in images]).to(trainer.device)
    # Every image its own worst case, but where the attack wants one network for all.
    network = trainer.make_bank(1 if config.attack.method == "subset" else len(images))
    random = step_generator(config.seed, 0, trainer.device)
    network.reset_identity((crop, crop), random)
    with torch.compiler.set_stance("force_eager"):  # these images have a size of their own
        attacked = trainer.attack(network, hr, trainer.sheet_objective, random).lr
    clean = trainer.attack.clean(network, hr)
    attacked_yet = trainer.step >= config.train.warmup > 0
    with torch.no_grad():
        batches = {
            "HR": hr,
            "clean LR": clean,
            "bicubic of clean LR": [bicubic_upsample(to_array(image), config.scale) for image in clean],
            "SR of clean LR": trainer.ema(clean),
            "attacked LR": attacked,
            "SR before training on it" if attacked_yet else "SR at the start": trainer.before(attacked),
            "SR now": trainer.ema(attacked),
        }
    columns = {
        label: [to_array(image) if isinstance(image, torch.Tensor) else image for image in batch]
        for label, batch in batches.items()
    }
    return draw_sheet(list(columns.items()), crop)


def draw_sheet(
    columns: Sequence[tuple[str, Sequence[np.ndarray]]], size: int, notes: Mapping[str, Sequence[str]] | None = None
) -> np.ndarray:
    """A labelled table of images.

    Args:
        columns: (label, images), from left to right; every column has the same number of images, uint8
            (h, w, 3), which are enlarged to `size` x `size` pixels by repeating pixels.
        size: height and width of a cell in pixels.
        notes: what stands in the lower left corner of a column's images, by its label.

    Returns:
        uint8 (H, W, 3).
    """
    rows = len(columns[0][1])
    step = size + _GAP
    sheet = Image.new("RGB", (len(columns) * step + _GAP, rows * step + _HEADER), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for column, (label, images) in enumerate(columns):
        left = _GAP + column * step
        draw.text((left, 3), label, fill="black", font=font)
        for row, image in enumerate(images):
            cell = Image.fromarray(image).resize((size, size), Image.Resampling.NEAREST)
            sheet.paste(cell, (left, _HEADER + row * step))
        for row, note in enumerate((notes or {}).get(label, ())):
            bottom = _HEADER + row * step + size
            _, _, width, height = draw.textbbox((0, 0), note, font=font)
            draw.rectangle((left, bottom - height - 4, left + width + 6, bottom - 1), fill="white")
            draw.text((left + 3, bottom - height - 3), note, fill="black", font=font)
    return np.array(sheet)
