"""Measure all methods on all images, and record each result at once."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from andfast.data.benchmarks import DataSet, Scene
from andfast.data.images import DataError, image_size, read_image
from andfast.data.listing import listed
from andfast.data.pairs import common_size, fitted
from andfast.data.tensors import to_tensor
from andfast.evaluation.degrading import Degradation
from andfast.evaluation.models import Computing, Method
from andfast.evaluation.records import Digests, Record, Records
from andfast.inference.tiles import NonFiniteError
from andfast.metrics import Measure, to_y
from andfast.utils.command_line import one_line
from andfast.utils.memory import is_out_of_memory

LEAST_CORRELATION = 0.3
"""Images whose details correlate less show different scenes; camera pairs reach 0.5 and more."""


@dataclass
class Outcome:
    """The results of an evaluation.

    Attributes:
        records: by data set, image and method, in this order.
        reused: the number of records from before.
        again: the number of records measured again, by (data set, method, what had changed).
        failures: messages about what could not be measured.
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
        methods: the models, and bicubic interpolation.
        data: the data sets by name.
        measures: the metrics; those that need HR images are left out for data sets without.
        computing: how models are computed.
        degradation: makes LR images for data sets that have only HR images.
    """

    scale: int
    methods: Sequence[Method]
    data: Mapping[str, DataSet]
    measures: Sequence[Measure]
    computing: Computing
    degradation: Degradation | None = None

    def measures_of(self, name: str) -> list[Measure]:
        """The metrics of a data set."""
        alone = self.data[name].layout == "LR"
        return [measure for measure in self.measures if not (alone and measure.needs_hr)]

    def settings(self, name: str) -> dict[str, Any]:
        """The settings that results in a data set depend on, as JSON values."""
        return {
            "scale": self.scale,
            **self.computing.settings(),
            "degradation": None if self.degradation is None else self.degradation.settings(),
            "metrics": {measure.name: dict(measure.settings) for measure in self.measures_of(name)},
        }

    def size(self, scene: Scene) -> tuple[int, int]:
        """Height and width of a scene's restored image, from the files' headers. Raises ImageError."""
        if scene.lr is not None:
            height, width = image_size(scene.lr)
            if scene.hr is not None:
                height, width = common_size(image_size(scene.hr), (height, width), self.scale)
            return height * self.scale, width * self.scale
        height, width = image_size(scene.hr)
        return height - height % self.scale, width - width % self.scale

    def check(self) -> None:
        """Check the data before anything is measured.

        Raises:
            DataError: images are too small for a metric, or a data set has no metric.
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
        """Read the LR image of a scene and its HR image, if any: uint8 (h, w, 3). Raises ImageError."""
        hr = None if scene.hr is None else read_image(scene.hr)
        if scene.lr is not None:
            lr = read_image(scene.lr)
            return (lr, None) if hr is None else fitted(hr, lr, self.scale)[::-1]
        return self.degradation(hr, self.scale, scene.name)


def measure_all(plan: Plan, records: Records, done: Callable[[], None] = lambda: None) -> Outcome:
    """Measure what is not in `records` yet, add it, and call `done` after each image.

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
    images = None  # decoded when needed
    for method in plan.methods:
        place, digests = (name, scene.name, method.title), Digests(method.digest[:16], files, settings)
        record = records.get(*place, digests)
        if record is not None:
            outcome.reused += 1
        else:
            for what in records.changed(*place, digests):
                outcome.again[name, method.title, what] += 1
            try:
                images = images or plan.load(scene)
                record = _measure(plan, method, place, digests, *images)
            except (DataError, NonFiniteError, MemoryError, RuntimeError) as error:
                model = "" if images is None else f"{scene.name}: {method.title}: "
                outcome.failures.append(f"{name}: {model}{_reason(error)}")
                if images is None:
                    return
                continue
            records.add(record)
        outcome.records.append(record)


def _measure(
    plan: Plan,
    method: Method,
    place: tuple[str, str, str],
    digests: Digests,
    lr: np.ndarray,
    hr: np.ndarray | None,
) -> Record:
    image = method.restore(lr, plan.scale, plan.computing.device)
    original = None if hr is None else to_tensor(hr).to(image.device)
    values = {measure.name: measure(image, original) for measure in plan.measures_of(place[0])}
    # JSON has neither infinity (PSNR of identical images) nor NaN (NIQE of images without texture).
    scores = {name: round(value, 8) if math.isfinite(value) else None for name, value in values.items()}
    notes = {}
    if method.upscaler is None and original is not None and plan.degradation is None:
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


class Alignment(NamedTuple):
    """The shift of an enlarged LR image against its HR image.

    Attributes:
        down, right: the shift, in HR pixels.
        correlation: of their details after that shift, at most 1.
    """

    down: float
    right: float
    correlation: float

    def wrong(self, scale: int) -> str | None:
        """Describe a shift of more than half an LR pixel or a different scene; None if the images are aligned."""
        if self.correlation < LEAST_CORRELATION:
            return f"not the same scene (correlation {self.correlation:.2f})"
        if max(abs(self.down), abs(self.right)) > scale / 2:
            return f"{self.down:+.1f} down, {self.right:+.1f} right"
        return None


def align(enlarged: Tensor, hr: Tensor, reach: int) -> Alignment:
    """Find the shift of an enlarged LR image against its HR image, float (1, 3, H, W) in [0, 1].

    It is the largest correlation of their high-pass filtered luma over shifts of up to `reach` whole pixels, refined
    by a parabola. If an image has no details, there is no shift and a correlation of 1.
    """
    a, b = (_details(image) for image in (enlarged, hr))
    energy = (a.square().sum() * b.square().sum()).sqrt()
    if energy == 0:
        return Alignment(0.0, 0.0, 1.0)
    size = [length + reach + 1 for length in a.shape]  # zeros between the image and its periodic copies
    product = torch.fft.rfft2(a, s=size) * torch.fft.rfft2(b, s=size).conj()
    correlation = torch.fft.irfft2(product, s=size).roll((reach + 1, reach + 1), dims=(0, 1)) / energy
    window = correlation[: 2 * reach + 3, : 2 * reach + 3]
    inner = window[1:-1, 1:-1]
    row, column = divmod(int(inner.argmax()), inner.shape[1])
    down = row - reach + _peak(window[row : row + 3, column + 1])
    right = column - reach + _peak(window[row + 1, column : column + 3])
    return Alignment(down, right, inner[row, column].item())


def _details(image: Tensor) -> Tensor:
    """Luma minus its mean over 17 x 17 pixels, float64 (H, W), under a Hann window."""
    luma = to_y(image.double())[0]
    small = min(8, (min(luma.shape) - 1) // 2)
    mean = torch.nn.functional.avg_pool2d(luma[None, None], 2 * small + 1, 1, small, count_include_pad=False)[0, 0]
    fading = [torch.hann_window(length + 2, periodic=False, dtype=luma.dtype)[1:-1] for length in luma.shape]
    return (luma - mean) * torch.outer(*fading).to(luma.device)


def _peak(three: Tensor) -> float:
    """The maximum of a parabola through three values, relative to the middle one."""
    before, middle, behind = three.tolist()
    curvature = before - 2 * middle + behind
    return 0.0 if curvature >= 0 else min(max((before - behind) / (2 * curvature), -0.5), 0.5)
