"""The result file of a comparing study, and means and intervals over any part of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from andfast.evaluation.models import BICUBIC
from andfast.metrics import FIDELITY
from studies.intervals import Interval, interval, paired
from studies.testsets import CLEAN, REPORTING, STRENGTHS, TUNING

UPDATES, TIME, START = "updates", "time", "start"
BUDGETS = (UPDATES, TIME)
ALL_STRENGTHS = "all strengths"
WORST = "worst case"  # the mean over the tests that an adversary made
METRICS = tuple(FIDELITY)

Column = list[tuple[str, list[int]]]
"""The tests that a table's column averages: test sets, each with the indices of the same images."""


class OutcomeError(ValueError):
    """A file that `studies.compare` did not write; the message names it."""


def columns(groups: Mapping[str, Sequence[str]]) -> dict[str, Column]:
    """The columns of a study's tables by their titles: pairs by camera and all, each other set, all strengths, WORST.

    Args:
        groups: as `studies.testsets.groups`.
    """
    found: dict[str, Column] = {}
    for name, members in groups.items():
        cameras = list(dict.fromkeys(members)) if name in (REPORTING, TUNING) else []
        for camera in cameras:
            found[f"{name} {camera}"] = [(name, [index for index, group in enumerate(members) if group == camera])]
        if len(cameras) != 1:
            found[f"{name}, all" if cameras else name] = [(name, list(range(len(members))))]
    strengths = [name for name in STRENGTHS if name in groups]
    if strengths:
        found[ALL_STRENGTHS] = [(name, list(range(len(groups[name])))) for name in strengths]
    adversaries = [name for name in groups if is_adversary(name)]
    if adversaries:
        found[WORST] = [(name, list(range(len(groups[name])))) for name in adversaries]
    return found


def is_adversary(name: str) -> bool:
    """Whether a test set is an adversary's at a budget, "F 40 dB", as `andfast.evaluation.robustness.case_name`."""
    return name.endswith(" dB")


def column_titles(found: Mapping[str, Column], part: str) -> list[str]:
    """The titles of the columns of a part: REPORTING, TUNING, CLEAN for all photographs, or WORST for adversaries."""
    if part == WORST:
        return [title for title, column in found.items() if is_adversary(column[0][0])]
    sets = (CLEAN, *STRENGTHS) if part == CLEAN else (part,)
    return [title for title, column in found.items() if column[0][0] in sets]


def column_values(scores: Mapping[str, Sequence[float]], column: Column) -> np.ndarray:
    """A model's value for each image of a column, the mean over its test sets.

    Args:
        scores: values of one metric, by test set.
        column: as in `columns`.
    """
    return np.mean([[scores[name][index] for index in indices] for name, indices in column], axis=0)


class Outcome:
    """The content of a result file.

    Args:
        content: as `studies.compare` writes it.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content
        self.reference, self.subject = content["reference"], content["subject"]
        self.rows = list(content["rows"])
        self.columns = columns({name: test["groups"] for name, test in content["tests"].items()})

    @cached_property
    def _runs(self) -> dict[tuple[str, str], dict[int, dict]]:
        found: dict[tuple[str, str], dict[int, dict]] = {}
        for run in self.content["runs"]:
            for budget in run["budgets"]:
                found.setdefault((run["row"], budget), {})[run["seed"]] = run
        return found

    def budgets(self) -> list[str]:
        """The budgets that any run has."""
        return [budget for budget in BUDGETS if any(budget == had for _, had in self._runs)]

    def runs(self, row: str, budget: str) -> dict[int, dict]:
        """A row's runs by seed."""
        return self._runs.get((row, START if row == START else budget), {})

    def seeds(self, row: str, budget: str) -> list[int]:
        return sorted(self.runs(row, budget))

    def lines(self, budget: str) -> list[str]:
        """The lines of a table: bicubic interpolation, and the rows that have runs."""
        return [*self.content["marks"], *(row for row in (START, *self.rows) if self.runs(row, budget))]

    def values(self, row: str, budget: str, metric: str, column: str, seeds: Sequence[int] | None = None) -> np.ndarray:
        """(seeds, images): the values of a row's runs on the images of a column; BICUBIC has a single "seed"."""
        if row == BICUBIC:
            return column_values(self.content["marks"][BICUBIC][metric], self.columns[column])[None]
        runs = self.runs(row, budget)
        chosen = sorted(runs) if seeds is None else seeds
        return np.stack([column_values(runs[seed]["scores"][metric], self.columns[column]) for seed in chosen])

    def mean(self, row: str, budget: str, metric: str, column: str) -> Interval:
        return interval(self.values(row, budget, metric, column))

    def difference(self, row: str, other: str, budget: str, metric: str, column: str) -> Interval | None:
        """row - other, paired by image and by the seeds that both have; None if they share none."""
        seeds = [set(self.seeds(name, budget)) for name in (row, other) if name != BICUBIC]
        common = sorted(set.intersection(*seeds)) if seeds else None
        if common == []:
            return None
        return paired(*(self.values(name, budget, metric, column, common) for name in (row, other)))

    def worst(self, row: str, budget: str, metric: str) -> tuple[str, float]:
        """The strength under which a row's mean is lowest, and that mean."""
        means = {name: self.mean(row, budget, metric, name).mean for name in STRENGTHS if name in self.columns}
        return min(means.items(), key=lambda item: item[1])

    def tables(self) -> dict[str, Any]:
        """All means and differences with their intervals, by budget, metric, column and row, as JSON values."""

        def cell(budget: str, metric: str, column: str, row: str) -> dict[str, Any]:
            where = budget, metric, column
            return {
                "mean": _plain(self.mean(row, *where)),
                "over_reference": _plain(self.difference(row, self.reference, *where)),
                "subject_over_it": _plain(self.difference(self.subject, row, *where)),
            }

        return {
            budget: {
                metric: {
                    column: {row: cell(budget, metric, column, row) for row in self.lines(budget)}
                    for column in self.columns
                }
                for metric in METRICS
            }
            for budget in self.budgets()
        }


def _plain(found: Interval | None) -> dict[str, Any] | None:
    """An interval as JSON values, which have no infinity."""
    if found is None:
        return None
    return {key: round(value, 6) if np.isfinite(value) else None for key, value in vars(found).items()}


def read_outcome(path: Path) -> Outcome:
    """Read a result file.

    Raises:
        OutcomeError: it is not a result file.
        OSError: it cannot be read.
    """
    try:
        outcome = Outcome(json.loads(path.read_text(encoding="utf-8")))
        outcome.lines(*outcome.budgets()[:1] or [UPDATES])  # looks at what is read later
        return outcome
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutcomeError(f"{path} is no result of studies.compare: {type(error).__name__} {error}") from error
