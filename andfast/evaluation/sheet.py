"""A sheet of the images on which two models differ most."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
import torch
import torch.nn.functional as F

from andfast.data.tensors import to_array
from andfast.evaluation.measuring import Outcome, Plan
from andfast.evaluation.models import Contender
from andfast.utils.image_grid import draw_grid

ROWS = 6
SIZE = 192
"""Height and width of a crop on the sheet, in HR pixels."""


def difference_sheet(plan: Plan, outcome: Outcome, first: Contender, second: Contender) -> np.ndarray:
    """The images whose first metric differs most between two models, cropped where these differ most.

    Of several data sets each has its turn. Columns are the LR image, the two models with their values of the whole
    image, and the original where there are any.

    Args:
        plan, outcome: of the evaluation.
        first, second: two of the plan's contenders.

    Returns:
        uint8 (H, W, 3), labelled.

    Raises:
        ValueError: there is no image that both were measured on.
    """
    ranked = _ranked(plan, outcome, first, second)[:ROWS]
    if not ranked:
        raise ValueError(f"no image was measured on both {first.title} and {second.title}")
    scenes = {(name, scene.name): scene for name, data in plan.data.items() for scene in data.scenes}
    rows = []
    for place, _, _ in ranked:
        lr, hr = plan.load(scenes[place])
        pair = [to_array(each.restore(lr, plan.scale, plan.computing.device)) for each in (first, second)]
        rows.append(_crops(lr, pair, hr, plan.scale))
    columns = dict(zip(("LR", first.title, second.title, "HR"), map(list, zip(*rows, strict=True)), strict=True))
    if all(scenes[place].hr is None for place, _, _ in ranked):
        del columns["HR"]
    notes = {
        "LR": [image for (_, image), _, _ in ranked],
        first.title: [own for _, own, _ in ranked],
        second.title: [other for _, _, other in ranked],
    }
    return draw_grid(list(columns.items()), SIZE, notes)


def _ranked(
    plan: Plan, outcome: Outcome, first: Contender, second: Contender
) -> list[tuple[tuple[str, str], str, str]]:
    """(data set, image) and the two models' values, the largest difference first."""
    values = {(record.data, record.image, record.model): record.scores for record in outcome.records}
    turns = []
    for name, data in plan.data.items():
        measure, found = plan.measures_of(name)[0], []
        for scene in data.scenes:
            pair = [values.get((name, scene.name, one.title), {}).get(measure.name) for one in (first, second)]
            if None not in pair:
                texts = [f"{measure.title} {value:.{measure.digits}f}" for value in pair]
                found.append((abs(pair[0] - pair[1]), (name, scene.name), *texts))
        turns.append([rest for _, *rest in sorted(found, key=lambda one: -one[0])])
    return [one for turn in zip_longest(*turns) for one in turn if one is not None]


def _crops(lr: np.ndarray, pair: list[np.ndarray], hr: np.ndarray | None, scale: int) -> list[np.ndarray]:
    """The square in which the pair differs most, of at most `SIZE` pixels: of LR, the pair and the original."""
    height, width = lr.shape[:2]
    size = min(SIZE // scale, height, width)
    difference = np.abs(pair[0].astype(np.float32) - pair[1]).mean(axis=2)
    pooled = F.avg_pool2d(torch.from_numpy(difference)[None, None], size * scale, scale)[0, 0]
    top, left = divmod(int(pooled.argmax()), pooled.shape[1])
    rows, columns = (slice(scale * begin, scale * (begin + size)) for begin in (top, left))
    paper = np.full_like(pair[0], 255)
    large = [image[rows, columns] for image in (*pair, paper if hr is None else hr)]
    return [lr[top : top + size, left : left + size], *large]
