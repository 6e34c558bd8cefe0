"""A comparing study: rows of training settings, read from a YAML file as `studies/table2.yaml`."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from andfast.training.config import Config
from andfast.training.options import parse_config
from andfast.utils.yaml_files import YamlError, dump_yaml, read_yaml

TUNING_PAIRS = "{tuning_pairs}"

_WORST = {"attackers", "budgets", "crops", "size", "steps"}

Settings = dict[str, Any]
"""Settings of `andfast.train`, nested as in its configuration files."""


class StudyError(ValueError):
    """A study is invalid; the message says what would be right."""


@dataclass(frozen=True)
class Row:
    """A way to train: its settings, in addition to those of all rows."""

    description: str
    settings: Settings


@dataclass(frozen=True)
class Study:
    """Ways to train, compared from the same start.

    Attributes:
        title: of the tables.
        reference: the row that the others are compared with.
        subject: the row that the study is about, whose time all rows get.
        seeds: of the runs.
        settings: of all rows; train.iterations are their generator updates.
        start: additional settings of the run whose weights all rows of the same seed start from.
        rows: by name.
        images: images to test on, of every camera and test set; None: all.
        worst: how the worst case is measured: `attackers` and `budgets` in dB (as for andfast.robustness), the number
            of `crops`, their `size`, and the gradient `steps`; None: it is not.
    """

    title: str
    reference: str
    subject: str
    seeds: list[int]
    settings: Settings
    start: Settings
    rows: dict[str, Row]
    images: int | None = None
    worst: Settings | None = None

    @property
    def updates(self) -> int:
        """Generator updates of every row, with equal updates."""
        return self.settings["train"]["iterations"]


def read_study(path: Path, quick: bool = False) -> Study:
    """Read a study from a YAML file with the fields of `Study`, its settings nested or dotted.

    Args:
        path: the file.
        quick: use the `seeds`, `images`, `settings` and `start` under its key `quick`, for a trial in minutes.

    Raises:
        StudyError: the study is invalid; the message names the key.
        OSError: the file cannot be read.
    """
    try:
        content = read_yaml(path)
    except YamlError as error:
        raise StudyError(str(error)) from error
    required = [field.name for field in fields(Study) if field.name not in ("images", "worst")]
    if not isinstance(content, dict) or set(content) - {"quick", "worst"} != set(required):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise StudyError(
            f"{path}: a study has the keys {', '.join(required)} and may have worst and quick; found {found}"
        )
    rows = {}
    for name, row in content["rows"].items():
        if not isinstance(row, dict) or set(row) != set(Row.__dataclass_fields__):
            raise StudyError(f"{path}: rows.{name} must have the keys description and settings, and no others")
        rows[name] = Row(row["description"], nested(row["settings"] or {}))
    settings = {key: nested(content[key]) for key in ("settings", "start")}
    study = Study(**{key: content[key] for key in required} | settings | {"rows": rows}, worst=content.get("worst"))
    if study.worst is not None and set(study.worst) != _WORST:
        raise StudyError(f"{path}: worst has the keys {', '.join(sorted(_WORST))}; found {sorted(study.worst)}")
    for key in ("reference", "subject"):
        if getattr(study, key) not in rows:
            raise StudyError(f"{path}: {key} is {getattr(study, key)}; it must be a row, one of {', '.join(rows)}")
    if "iterations" not in study.settings.get("train", {}):
        raise StudyError(f"{path}: settings.train.iterations is missing: the generator updates of every row")
    if not quick:
        return study
    changes = content.get("quick")
    if not isinstance(changes, dict) or set(changes) - {"worst"} != {"seeds", "images", "settings", "start"}:
        raise StudyError(
            f"{path}: for a quick trial, quick must have the keys seeds, images, settings and start, and may have worst"
        )
    return replace(
        study,
        seeds=changes["seeds"],
        images=changes["images"],
        settings=merged(study.settings, nested(changes["settings"])),
        start=merged(study.start, nested(changes["start"])),
        worst=None if study.worst is None else study.worst | changes.get("worst", {}),
    )


def nested(settings: Mapping[str, Any]) -> Settings:
    """Settings with dotted keys (`attack.method`) as nested ones."""
    result: Settings = {}
    for key, value in settings.items():
        first, _, rest = key.partition(".")
        value = nested({rest: value} if rest else value) if rest or isinstance(value, Mapping) else value
        result = merged(result, {first: value})
    return result


def merged(*layers: Mapping[str, Any]) -> Settings:
    """All settings; later layers replace earlier ones."""
    result: Settings = {}
    for layer in layers:
        for key, value in layer.items():
            inner = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if inner else copy.deepcopy(value)
    return result


def filled(settings: Any, tuning_pairs: Path | None) -> Any:
    """Replace `{tuning_pairs}` in settings by the folder with the tuning part of the real pairs.

    Raises:
        StudyError: the settings use it, and `tuning_pairs` is None.
    """
    if isinstance(settings, Mapping):
        return {key: filled(value, tuning_pairs) for key, value in settings.items()}
    if isinstance(settings, list):
        return [filled(value, tuning_pairs) for value in settings]
    if isinstance(settings, str) and TUNING_PAIRS in settings:
        if tuning_pairs is None:
            raise StudyError(f"a row trains on {TUNING_PAIRS}; give --pairs")
        return settings.replace(TUNING_PAIRS, str(tuning_pairs))
    return settings


def checked(settings: Settings, name: str) -> Config:
    """The configuration that `andfast.train` makes of these settings.

    Raises:
        StudyError: it refuses them; the reason was written to standard error.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(dump_yaml(settings))
        file.flush()
        try:
            return parse_config(["--config", file.name])
        except SystemExit as error:
            raise StudyError(f"andfast.train refuses the settings of {name}; see above") from error
