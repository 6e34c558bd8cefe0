"""Sample sheets: what the adversary makes of images, and what the generator makes of that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 4
_HEADER = 22


def draw_sheet(columns: Sequence[tuple[str, Sequence[np.ndarray]]], size: int) -> np.ndarray:
    """A labelled table of images.

    Args:
        columns: (label, images), from left to right; every column has the same number of images, uint8
            (h, w, 3), which are enlarged to `size` x `size` pixels by repeating pixels.
        size: height and width of a cell in pixels.

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
    return np.array(sheet)
