"""Crops of real photographs side by side: `python -m studies.crops IMAGE... --model NAME=FILE... --output FILE`.

From left to right bicubic interpolation and the models' restorations, an image a line. There is no original to compare
with: these are photographs as they were found.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from andfast.data.images import DataError, read_image, write_png
from andfast.data.tensors import to_array, to_tensor
from andfast.models import ModelError, load_model
from andfast.training.sheet import draw_sheet
from andfast.training.validation import bicubic_upsample
from andfast.upscale import upscale_tensor
from studies.outcome import BICUBIC

# How much of an image around a crop models see.
_CONTEXT = 32


def busiest(image: np.ndarray, size: int) -> tuple[int, int]:
    """Top and left of the square of `size` pixels with the most detail, among those a quarter of it apart.

    Detail is the median gradient in the square, and not the mean, which one strong edge can make.
    """
    gray = image.astype(np.float64).mean(axis=2)
    gradient = np.hypot(*np.gradient(gray))
    height, width = gray.shape
    step = max(size // 4, 1)
    corners = [(top, left) for top in range(0, height - size + 1, step) for left in range(0, width - size + 1, step)]
    return max(corners, key=lambda at: np.median(gradient[at[0] : at[0] + size, at[1] : at[1] + size]))


def crops(image: np.ndarray, corner: tuple[int, int], size: int, models: Mapping[str, nn.Module]) -> list[np.ndarray]:
    """A crop by bicubic interpolation and by every model.

    Args:
        image: uint8 (H, W, 3).
        corner: top and left of the crop.
        size: height and width of the crop in pixels of `image`.
        models: generators of one scale.

    Returns:
        1 + len(models) images, uint8 (scale * size, scale * size, 3).
    """
    top, left = corner
    above, before = max(top - _CONTEXT, 0), max(left - _CONTEXT, 0)
    around = np.ascontiguousarray(image[above : top + size + _CONTEXT, before : left + size + _CONTEXT])
    scale = next(iter(models.values())).scale
    large = [bicubic_upsample(around, scale)]
    large += [to_array(upscale_tensor(model, to_tensor(around))) for model in models.values()]
    rows, columns = (slice(scale * begin, scale * (begin + size)) for begin in (top - above, left - before))
    return [one[rows, columns] for one in large]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 not begun."""
    parser = argparse.ArgumentParser(prog="python -m studies.crops", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="a file, or FILE@LEFT,TOP; else the part with the most detail")
    add("--model", action="append", required=True, metavar="NAME=FILE", help="a model and what stands above it")
    add("--output", type=Path, required=True, metavar="FILE", help="the sheet, PNG")
    add("--size", type=int, default=64, help="of a crop, in pixels of the image (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        models = _models(options.model)
        lines = []
        for given in options.images:
            image, corner = _image(given, options.size)
            lines.append(crops(image, corner, options.size, models))
    except (DataError, ModelError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    columns = list(zip([BICUBIC, *models], zip(*lines, strict=True), strict=True))
    write_png(options.output, draw_sheet(columns, lines[0][0].shape[0]))
    return 0


def _models(given: Sequence[str]) -> dict[str, nn.Module]:
    models = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not equals or name in models:
            raise ValueError(f"--model {one}: give NAME=FILE, every name once")
        models[name] = load_model(path)
    if len({model.scale for model in models.values()}) > 1:
        raise ValueError("the models have different scales")
    return models


def _image(given: str, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An image and the corner of its crop."""
    path, at, place = given.rpartition("@")
    if not at or Path(given).exists():
        path, place = given, ""
    image = read_image(path)
    height, width = image.shape[:2]
    if not 1 <= size <= min(height, width):
        raise ValueError(f"{path}: {width} x {height} pixels hold no crop of {size} x {size}; choose another --size")
    if not place:
        return image, busiest(image, size)
    try:
        left, top = map(int, place.split(","))
    except ValueError as error:
        raise ValueError(f"{given}: after @ stand the pixels LEFT,TOP of the crop") from error
    if not (0 <= left <= width - size and 0 <= top <= height - size):
        raise ValueError(f"{given}: a crop of {size} x {size} there leaves the image of {width} x {height} pixels")
    return image, (top, left)


if __name__ == "__main__":
    sys.exit(main())
