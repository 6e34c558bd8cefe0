"""Report an evaluation: tables, JSON, CSV, and a sheet of the images on which two methods differ most."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from andfast.data.listing import listed
from andfast.data.pairs import cut_to_fit
from andfast.data.tensors import to_array
from andfast.evaluation.measuring import Alignment, Outcome, Plan
from andfast.evaluation.models import Method
from andfast.evaluation.records import Record
from andfast.utils.files import written_whole
from andfast.utils.image_grid import draw_grid

_KINDS = {"pairs": "pairs", "LR": "LR images alone", "HR": "originals made small"}

ROWS = 6
SIZE = 192
"""Height and width of a crop on the sheet, in HR pixels."""


def means(plan: Plan, outcome: Outcome) -> dict[str, dict[str, dict[str, float | None]]]:
    """The mean over images by data set, method and metric; None if no image has a value."""
    return {
        name: {
            method.title: {
                measure.name: _mean(_values(outcome, name, method.title, measure.name))
                for measure in plan.measures_of(name)
            }
            for method in plan.methods
        }
        for name in plan.data
    }


def text(plan: Plan, outcome: Outcome) -> str:
    """Format the means as a table for each data set, with remarks."""
    lines = []
    for name, models in means(plan, outcome).items():
        data, measures = plan.data[name], plan.measures_of(name)
        kind = _KINDS.get(data.layout, f"pairs ({data.layout})")
        lines += [f"{name}: {len(data.scenes)} {kind}, x{plan.scale}"]
        rows = [["", *(measure.title for measure in measures)]]
        for title, values in models.items():
            cells = (_number(values[measure.name], measure.digits) for measure in measures)
            rows.append([title, *cells])
        lines += [*aligned(rows), *_remarks(plan, outcome, name), ""]
    if any(not measure.higher_is_better for measure in plan.measures):
        names = ", ".join(measure.title for measure in plan.measures if not measure.higher_is_better)
        lines.append(f"Of {names} lower is better.")
    return "\n".join(lines).rstrip("\n")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows with aligned columns: the first left-aligned, the others right-aligned."""
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for title, *cells in rows:
        right = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("  ".join([title.ljust(first), *right]))
    return lines


def misaligned(plan: Plan, outcome: Outcome, name: str) -> list[str]:
    """The misaligned pairs of a data set, with their shifts."""
    found = []
    for record in outcome.records:
        if record.data == name and record.notes:
            wrong = Alignment(**record.notes).wrong(plan.scale)
            if wrong is not None:
                found.append(f"{record.image} ({wrong})")
    return found


def as_json(plan: Plan, outcome: Outcome, made: dict[str, Any]) -> dict[str, Any]:
    """The plan and all results as JSON values, after the entries of `made` (command, date, commit, machine)."""
    return {
        **made,
        "scale": plan.scale,
        "models": {one.title: {"file": one.file, "digest": one.digest} for one in plan.methods},
        "data": {
            name: {
                "folder": str(data.folder),
                "layout": data.layout,
                "images": len(data.scenes),
                "cut": data.cut,
                "settings": plan.settings(name),
                "misaligned": misaligned(plan, outcome, name),
            }
            for name, data in plan.data.items()
        },
        "means": means(plan, outcome),
        "failures": outcome.failures,
        "images": [_flat(record) for record in outcome.records],
    }


def write_csv(path: Path, plan: Plan, outcome: Outcome) -> None:
    """Write a line for each image and method."""
    names = [measure.name for measure in plan.measures]
    with (
        written_whole(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        table = csv.DictWriter(file, ["data", "image", "model", *names], restval="")
        table.writeheader()
        for record in outcome.records:
            flat = _flat(record)
            table.writerow({key: flat[key] for key in table.fieldnames if flat.get(key) is not None})


def _flat(record: Record) -> dict[str, Any]:
    return {"data": record.data, "image": record.image, "model": record.model, **record.scores, **record.notes}


def _values(outcome: Outcome, data: str, model: str, measure: str) -> list[float]:
    scores = [record.scores for record in outcome.records if (record.data, record.model) == (data, model)]
    return [each[measure] for each in scores if each[measure] is not None]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _number(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


def _remarks(plan: Plan, outcome: Outcome, name: str) -> list[str]:
    """Remarks below the table of a data set."""
    data = plan.data[name]
    lines = [cut_to_fit(data.cut, len(data.scenes), plan.scale)] if data.cut else []
    if away := misaligned(plan, outcome, name):
        lines.append(f"misaligned by more than half an LR pixel: {listed(away)}")
    for measure in plan.measures_of(name):
        without = [
            f"{record.image} ({record.model})"
            for record in outcome.records
            if record.data == name and record.scores[measure.name] is None
        ]
        if without:
            lines.append(f"left out of the mean, with no finite {measure.title}: {listed(without)}")
    return lines


def difference_sheet(plan: Plan, outcome: Outcome, first: Method, second: Method) -> np.ndarray:
    """Draw the images whose first metric differs most between two methods, cropped where they differ most.

    Data sets take turns. Columns are the LR image, the two methods with their values of the whole image, and the HR
    image, if any. The result is uint8 (H, W, 3), labelled.

    Raises:
        ValueError: no image was measured on both.
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


def _ranked(plan: Plan, outcome: Outcome, first: Method, second: Method) -> list[tuple[tuple[str, str], str, str]]:
    """(data set, image) and the two methods' values as texts, the largest difference first."""
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
    """Crop LR, the pair and HR to the square of at most `SIZE` pixels in which the pair differs most."""
    height, width = lr.shape[:2]
    size = min(SIZE // scale, height, width)
    difference = np.abs(pair[0].astype(np.float32) - pair[1]).mean(axis=2)
    pooled = F.avg_pool2d(torch.from_numpy(difference)[None, None], size * scale, scale)[0, 0]
    top, left = divmod(int(pooled.argmax()), pooled.shape[1])
    rows, columns = (slice(scale * begin, scale * (begin + size)) for begin in (top, left))
    paper = np.full_like(pair[0], 255)
    large = [image[rows, columns] for image in (*pair, paper if hr is None else hr)]
    return [lr[top : top + size, left : left + size], *large]
