"""The record of an evaluation, written image by image, so that it can be resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from andfast.utils.files import make_folder, sync

RECORDS_FILE = "images.jsonl"


class EvaluationRecordError(ValueError):
    """Damaged records; the message names the file and the line."""


class Digests(NamedTuple):
    """Checksums of what a result depends on."""

    model: str
    images: str
    settings: str

    def changed(self, other: Digests) -> list[str]:
        """Names of what differs in another."""
        words = ("the model", "the images", "the settings")
        return [word for word, own, theirs in zip(words, self, other, strict=True) if own != theirs]


@dataclass(frozen=True)
class Record:
    """The result of one method on one image of a data set.

    Attributes:
        data, image, model: names of the data set, image and method.
        digests: of what it depends on.
        scores: by the metric's name; None if the value is not finite.
        notes: further results as JSON values.
    """

    data: str
    image: str
    model: str
    digests: Digests
    scores: Mapping[str, float | None]
    notes: Mapping[str, Any] = field(default_factory=dict)


class Records:
    """The records in a folder's `images.jsonl`, a JSON object a line.

    An incomplete last line, from a killed process, is cut off.

    Raises:
        EvaluationRecordError: a line is damaged.
        OSError: the folder cannot be made, or the file cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self.path = folder / RECORDS_FILE
        self._by_place: dict[tuple[str, str, str], dict[Digests, Record]] = {}
        self.path.touch()
        whole = 0
        with self.path.open("rb+") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                self._keep(_parsed(line, f"{self.path}: line {number}"))
                whole += len(line)
            file.truncate(whole)

    def get(self, data: str, image: str, model: str, digests: Digests) -> Record | None:
        """The record with the same method, images and settings."""
        return self._by_place.get((data, image, model), {}).get(digests)

    def changed(self, data: str, image: str, model: str, digests: Digests) -> list[str]:
        """What has changed since the last record of that method on that image, if there is one."""
        found = self._by_place.get((data, image, model))
        return digests.changed(list(found)[-1]) if found else []

    def add(self, record: Record) -> None:
        """Add a record; it is on the disk when this returns."""
        line = json.dumps(asdict(record) | {"digests": record.digests._asdict()}, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        sync(self.path)
        self._keep(record)

    def _keep(self, record: Record) -> None:
        place = self._by_place.setdefault((record.data, record.image, record.model), {})
        place.pop(record.digests, None)
        place[record.digests] = record


def _parsed(line: bytes, where: str) -> Record:
    try:
        found = json.loads(line)
        return Record(**found | {"digests": Digests(**found["digests"])})
    except (ValueError, TypeError, KeyError) as error:
        raise EvaluationRecordError(f"{where} is damaged ({type(error).__name__}: {error}); delete the line") from error
