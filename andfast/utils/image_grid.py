"""Labelled tables of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 4
_HEADER = 22


def draw_grid(
    columns: Sequence[tuple[str, Sequence[np.ndarray]]], size: int, notes: Mapping[str, Sequence[str]] | None = None
) -> np.ndarray:
    """Draw images in labelled columns; returns uint8 (H, W, 3).

    Args:
        columns: (label, images) from left to right; all have equally many images, uint8 (h, w, 3), which are enlarged
            to `size` x `size` pixels by repeating pixels.
        notes: by label, a text for the lower left corner of each image of that column.
    """
    rows = len(columns[0][1])
    step = size + _GAP
    grid = Image.new("RGB", (len(columns) * step + _GAP, rows * step + _HEADER), "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(size=13)
    for column, (label, images) in enumerate(columns):
        left = _GAP + column * step
        draw.text((left, 3), label, fill="black", font=font)
        for row, image in enumerate(images):
            cell = Image.fromarray(image).resize((size, size), Image.Resampling.NEAREST)
            grid.paste(cell, (left, _HEADER + row * step))
        for row, note in enumerate((notes or {}).get(label, ())):
            bottom = _HEADER + row * step + size
            _, _, width, height = draw.textbbox((0, 0), note, font=font)
            draw.rectangle((left, bottom - height - 4, left + width + 6, bottom - 1), fill="white")
            draw.text((left + 3, bottom - height - 3), note, fill="black", font=font)
    return np.array(grid)
