"""Measuring all models on all images, one after the other, each result kept as soon as it is there."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from andfast.data.benchmarks import DataSet, Scene
from andfast.data.images import DataError, image_size, read_image
from andfast.data.listing import listed
from andfast.data.pairs import common_size, fitted
from andfast.data.tensors import to_tensor
from andfast.evaluation.alignment import align
from andfast.evaluation.degrading import Degradation
from andfast.evaluation.models import Computing, Contender
from andfast.evaluation.records import Digests, Record, Records
from andfast.inference.tiles import NonFiniteError
from andfast.metrics import Measure
from andfast.utils.command_line import one_line
from andfast.utils.memory import is_out_of_memory


@dataclass
class Outcome:
    """What an evaluation found.

    Attributes:
        records: by data set, image and model, in this order.
        reused: how many of them were there before.
        again: how many were computed again, by (data set, model, what had changed).
        failures: what could not be measured, a line each.
    """

    records: list[Record] = field(default_factory=list)
    reused: int = 0
    again: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
        scale: the super-resolution factor.
        contenders: what is evaluated.
        data: the data sets by name.
        measures: the metrics; those that need an original are left out where there is none.
        computing: how models are computed.
        degradation: how LR images are made of originals alone.
    """

    scale: int
    contenders: Sequence[Contender]
    data: Mapping[str, DataSet]
    measures: Sequence[Measure]
    computing: Computing
    degradation: Degradation | None = None

    def measures_of(self, name: str) -> list[Measure]:
        """The metrics of a data set."""
        alone = self.data[name].layout == "LR"
        return [measure for measure in self.measures if not (alone and measure.needs_hr)]

    def settings(self, name: str) -> dict[str, Any]:
        """All that results in a data set depend on beside models and images, as JSON values."""
        return {
            "scale": self.scale,
            **self.computing.settings(),
            "degradation": None if self.degradation is None else self.degradation.settings(),
            "metrics": {measure.name: dict(measure.settings) for measure in self.measures_of(name)},
        }

    def size(self, scene: Scene) -> tuple[int, int]:
        """Height and width in pixels of what models make of a scene, from a file's header.

        Raises:
            ImageError: it cannot be read.
        """
        if scene.lr is not None:
            height, width = image_size(scene.lr)
            if scene.hr is not None:
                height, width = common_size(image_size(scene.hr), (height, width), self.scale)
            return height * self.scale, width * self.scale
        height, width = image_size(scene.hr)
        return height - height % self.scale, width - width % self.scale

    def check(self) -> None:
        """Refuse data that cannot be measured, from the files' headers.

        Raises:
            DataError: images are too small for a metric, or there is no metric for a data set; the message names them.
        """
        for name, data in self.data.items():
            measures = self.measures_of(name)
            if not measures:
                raise DataError(f"{name} has LR images alone, for which no metric is asked; add niqe to --metrics")
            sizes = [(scene.name, self.size(scene)) for scene in data.scenes]
            for measure in measures:
                small = [f"{scene} ({h} x {w})" for scene, (h, w) in sizes if not measure.fits(h, w)]
                if small:
                    what = f"too small for {measure.name}: {listed(small)}"
                    raise DataError(f"{name}: {what}; leave them or the metric out (--metrics)")

    def load(self, scene: Scene) -> tuple[np.ndarray, np.ndarray | None]:
        """The LR image of a scene and, where there is one, its original, uint8 (h, w, 3).

        Raises:
            ImageError: one cannot be read.
        """
        hr = None if scene.hr is None else read_image(scene.hr)
        if scene.lr is not None:
            lr = read_image(scene.lr)
            return (lr, None) if hr is None else fitted(hr, lr, self.scale)[::-1]
        return self.degradation(hr, self.scale, scene.name)


def measure_all(plan: Plan, records: Records, done: Callable[[], None] = lambda: None) -> Outcome:
    """Measure what is not in `records` yet, and keep it there.

    Args:
        plan: what.
        records: what was measured before, and what is.
        done: called after each image.

    Raises:
        OSError: the records cannot be written.
    """
    outcome = Outcome()
    for name, data in plan.data.items():
        settings = _digest(json.dumps(plan.settings(name), sort_keys=True).encode())
        for scene in data.scenes:
            _measure_scene(plan, name, scene, settings, records, outcome)
            done()
    return outcome


def _measure_scene(plan: Plan, name: str, scene: Scene, settings: str, records: Records, outcome: Outcome) -> None:
    try:
        files = _digest(*(path.read_bytes() for path in (scene.lr, scene.hr) if path is not None))
    except OSError as error:
        outcome.failures.append(f"{name}: {error}")
        return
    images = None  # are decoded only if something is to be measured
    for contender in plan.contenders:
        place, digests = (name, scene.name, contender.title), Digests(contender.digest[:16], files, settings)
        record = records.get(*place, digests)
        if record is not None:
            outcome.reused += 1
        else:
            for what in records.changed(*place, digests):
                outcome.again[name, contender.title, what] += 1
            try:
                images = images or plan.load(scene)
                record = _measure(plan, contender, place, digests, *images)
            except (DataError, NonFiniteError, MemoryError, RuntimeError) as error:
                model = "" if images is None else f"{scene.name}: {contender.title}: "
                outcome.failures.append(f"{name}: {model}{_reason(error)}")
                if images is None:
                    return
                continue
            records.add(record)
        outcome.records.append(record)


def _measure(
    plan: Plan,
    contender: Contender,
    place: tuple[str, str, str],
    digests: Digests,
    lr: np.ndarray,
    hr: np.ndarray | None,
) -> Record:
    image = contender.restore(lr, plan.scale, plan.computing.device)
    original = None if hr is None else to_tensor(hr).to(image.device)
    values = {measure.name: measure(image, original) for measure in plan.measures_of(place[0])}
    # JSON has neither infinity (PSNR of identical images) nor NaN (NIQE of images without texture).
    scores = {name: round(value, 8) if math.isfinite(value) else None for name, value in values.items()}
    notes = {}
    if contender.upscaler is None and original is not None and plan.degradation is None:
        alignment = align(image, original, reach=2 * plan.scale)
        notes = {key: round(value, 4) for key, value in alignment._asdict().items()}
    return Record(*place, digests, scores, notes)


def _reason(error: Exception) -> str:
    return "out of memory; try a smaller --tile" if is_out_of_memory(error) else one_line(error)


def _digest(*content: bytes) -> str:
    state = hashlib.sha256()
    for each in content:
        state.update(len(each).to_bytes(8, "little") + each)
    return state.hexdigest()[:16]
