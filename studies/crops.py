"""Crops of real photographs side by side: `python -m studies.crops IMAGE... --model NAME=FILE... --output FILE`.

A row for each image, from left to right: bicubic interpolation and the models' restorations. With `--strength` the
images are HR photographs, which are degraded first as in `studies.testsets`, and the original is at the right.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from andfast.data.images import read_image, write_png
from andfast.data.tensors import to_array, to_tensor
from andfast.degradation.camera import crop_to_multiple
from andfast.inference.upscaler import upscale_tensor
from andfast.models import load_model
from andfast.training.validation import upsample_by_pillow
from andfast.utils.command_line import as_path, make_parser
from andfast.utils.console import console
from andfast.utils.image_grid import draw_grid
from studies.outcome import BICUBIC
from studies.testsets import STRENGTHS, photograph_sets

# Pixels around a crop that models get as context.
_CONTEXT = 32


def busiest(image: np.ndarray, size: int) -> tuple[int, int]:
    """Top and left of the square of `size` pixels with the most detail, among squares a quarter of it apart.

    Detail is the median gradient in the square; the mean would be large for a single strong edge, too.
    """
    gray = image.astype(np.float64).mean(axis=2)
    gradient = np.hypot(*np.gradient(gray))
    height, width = gray.shape
    step = max(size // 4, 1)
    corners = [(top, left) for top in range(0, height - size + 1, step) for left in range(0, width - size + 1, step)]
    return max(corners, key=lambda at: np.median(gradient[at[0] : at[0] + size, at[1] : at[1] + size]))


def crops(image: np.ndarray, corner: tuple[int, int], size: int, models: Mapping[str, nn.Module]) -> list[np.ndarray]:
    """Upscale a crop of `size` x `size` pixels of an image by bicubic interpolation and by every model.

    Args:
        image: uint8 (H, W, 3).
        corner: top and left of the crop.
        size: height and width of the crop.
        models: generators of one scale.

    Returns:
        1 + len(models) images, uint8 (scale * size, scale * size, 3).
    """
    top, left = corner
    above, before = max(top - _CONTEXT, 0), max(left - _CONTEXT, 0)
    around = np.ascontiguousarray(image[above : top + size + _CONTEXT, before : left + size + _CONTEXT])
    scale = next(iter(models.values())).scale
    large = [upsample_by_pillow(around, scale)]
    large += [to_array(upscale_tensor(model, to_tensor(around))) for model in models.values()]
    rows, columns = (slice(scale * begin, scale * (begin + size)) for begin in (top - above, left - before))
    return [one[rows, columns] for one in large]


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 not begun."""
    parser = make_parser("studies.crops", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="a file, or FILE@LEFT,TOP; else the part with the most detail")
    add("--model", action="append", required=True, metavar="NAME=FILE", help="a model and its label")
    add("--output", type=as_path, required=True, metavar="FILE", help="the sheet, PNG")
    add("--size", type=int, default=64, help="of a crop, in pixels of the (small) image (default: %(default)s)")
    add("--strength", choices=list(STRENGTHS), help="make the images small, by a simulated camera of this strength")
    options = parser.parse_args(arguments)
    try:
        models = _models(options.model)
        lines = [_line(given, options.size, options.strength, models) for given in options.images]
    except (ValueError, OSError) as error:  # among them DataError and ModelError
        print(f"error: {error}", file=sys.stderr)
        return 2
    labels = [BICUBIC, *models, *(["original"] if options.strength else [])]
    columns = list(zip(labels, zip(*lines, strict=True), strict=True))
    write_png(options.output, draw_grid(columns, lines[0][0].shape[0]))
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


def _line(given: str, size: int, strength: str | None, models: Mapping[str, nn.Module]) -> list[np.ndarray]:
    """An image's crops; the last one is the original, if it was degraded."""
    path, place = split_place(given)
    image = read_image(path)
    if strength is None:
        return crops(image, find_corner(image, size, place, given), size, models)
    scale = next(iter(models.values())).scale
    (case,) = photograph_sets([(path.name, crop_to_multiple(image, scale))], scale)[strength]
    corner = find_corner(case.lr, size, place, given)
    rows, columns = (slice(scale * begin, scale * (begin + size)) for begin in corner)
    return [*crops(case.lr, corner, size, models), case.hr[rows, columns]]


def split_place(given: str) -> tuple[Path, str]:
    """FILE or FILE@LEFT,TOP -> the file, and the text after @ or an empty one."""
    path, at, place = given.rpartition("@")
    return (Path(path), place) if at and not Path(given).exists() else (Path(given), "")


def find_corner(image: np.ndarray, size: int, place: str, given: str) -> tuple[int, int]:
    """Top and left of a crop of `size` x `size` pixels.

    Args:
        image: uint8 (H, W, 3).
        place: "LEFT,TOP"; empty for the busiest part.
        given: the command's argument, for messages.

    Raises:
        ValueError: there is no such crop in the image.
    """
    height, width = image.shape[:2]
    if not 1 <= size <= min(height, width):
        raise ValueError(f"{given}: {width} x {height} pixels hold no crop of {size} x {size}; choose another --size")
    if not place:
        return busiest(image, size)
    try:
        left, top = map(int, place.split(","))
    except ValueError as error:
        raise ValueError(f"{given}: after @ give the crop's LEFT,TOP in pixels") from error
    if not (0 <= left <= width - size and 0 <= top <= height - size):
        raise ValueError(f"{given}: a crop of {size} x {size} there leaves the image of {width} x {height} pixels")
    return top, left


if __name__ == "__main__":
    sys.exit(main())
