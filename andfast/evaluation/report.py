"""An evaluation's results: a table for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from andfast.data.listing import listed
from andfast.data.pairs import cut_to_fit
from andfast.evaluation.alignment import Alignment
from andfast.evaluation.measuring import Outcome, Plan
from andfast.evaluation.records import Record
from andfast.utils.files import written_whole

_KINDS = {"pairs": "pairs", "LR": "LR images alone", "HR": "originals made small"}


def means(plan: Plan, outcome: Outcome) -> dict[str, dict[str, dict[str, float | None]]]:
    """The mean over images by data set, model and metric; None where no image has a value.

    Every image counts as much as another, whatever its size, as is usual.
    """
    return {
        name: {
            contender.title: {
                measure.name: _mean(_values(outcome, name, contender.title, measure.name))
                for measure in plan.measures_of(name)
            }
            for contender in plan.contenders
        }
        for name in plan.data
    }


def text(plan: Plan, outcome: Outcome) -> str:
    """Tables of the means, a data set each, and what is to be said about them."""
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
    """Lines with columns of one width each: the first to the left, others to the right."""
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for title, *cells in rows:
        right = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("  ".join([title.ljust(first), *right]))
    return lines


def misaligned(plan: Plan, outcome: Outcome, name: str) -> list[str]:
    """The pairs of a data set whose images do not lie on each other, and how."""
    found = []
    for record in outcome.records:
        if record.data == name and record.notes:
            wrong = Alignment(**record.notes).wrong(plan.scale)
            if wrong is not None:
                found.append(f"{record.image} ({wrong})")
    return found


def as_json(plan: Plan, outcome: Outcome, made: dict[str, Any]) -> dict[str, Any]:
    """All of it as JSON values.

    Args:
        plan, outcome: of the evaluation.
        made: what is to stand first: how and where it was made.
    """
    return {
        **made,
        "scale": plan.scale,
        "models": {one.title: {"file": one.file, "digest": one.digest} for one in plan.contenders},
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
    """A line for each image and model.

    Raises:
        OSError: it cannot be written.
    """
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
    """What a reader of the table must know."""
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
