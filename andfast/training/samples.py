"""Sample sheets: held-out images, their attacked LR images, and the generator's results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from andfast.data.tensors import to_array, to_tensor
from andfast.training.trainer import Trainer
from andfast.training.validation import centre_crop, upsample_by_pillow
from andfast.utils.image_grid import draw_grid
from andfast.utils.rng import step_generator

CROP = 160
ROWS = 4


def sample_sheet(trainer: Trainer, held_out: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Draw held-out images, their LR images attacked within the full budget, and G's results, uint8 (H, W, 3).

    The attack raises the loss of pixels alone, also in ANDGAN: a discriminator takes images of one size alone.

    Args:
        trainer: the run; not changed.
        held_out: images (name, uint8 (H, W, 3)); the centres of the first few are drawn.
    """
    config = trainer.config
    images = [image for _, image in held_out[:ROWS]]
    crop = min(CROP, *(length for image in images for length in image.shape[:2]))
    crop -= crop % config.scale
    images = [centre_crop(image, config.scale, crop) for image in images]
    hr = torch.cat([to_tensor(image) for image in images]).to(trainer.device)
    # One network for each image, unless the attack needs one for all.
    bank = trainer.make_bank(1 if config.attack.method == "subset" else len(images))
    rng = step_generator(config.seed, 0, trainer.device)
    bank.reset_identity((crop, crop), rng)
    with torch.compiler.set_stance("force_eager"):  # not compiled for images of this size
        attacked = trainer.attack(bank, hr, trainer.sheet_objective, rng).lr
    clean = trainer.attack.clean(bank, hr)
    interpolated = [upsample_by_pillow(to_array(image), config.scale) for image in clean]
    trained_on_attacks = trainer.step >= config.train.warmup > 0
    with torch.no_grad():
        columns = {
            "HR": hr,
            "clean LR": clean,
            **({} if config.scale == 1 else {"bicubic of clean LR": interpolated}),
            "SR of clean LR": trainer.ema(clean),
            "attacked LR": attacked,
            "SR before training on it" if trained_on_attacks else "SR at the start": trainer.warmup_ema(attacked),
            "SR now": trainer.ema(attacked),
        }
    arrays = [
        (label, [to_array(image) if isinstance(image, torch.Tensor) else image for image in images])
        for label, images in columns.items()
    ]
    return draw_grid(arrays, crop)
