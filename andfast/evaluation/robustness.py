"""The worst case of models within budgets: what is measured, on which crops, and how it is recorded and shown."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from andfast.attack.base import bicubic_downsample, bicubic_upsample
from andfast.data.images import DataError
from andfast.data.tensors import to_tensor
from andfast.evaluation.attackers import ATTACKERS, FOUND, RANDOM, SHORT, Effort, luma_error
from andfast.evaluation.degrading import name_seed
from andfast.evaluation.models import Method
from andfast.evaluation.records import Digests, Record, Records
from andfast.metrics import psnr_y, ssim_y
from andfast.models.frozen import FrozenModule
from andfast.training.records import baseline_title
from andfast.utils.charts import COLOURS, FAINT, new_figure, plain_axes
from andfast.utils.formatting import counted, markdown_table
from andfast.utils.rng import step_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN, TRANSFERRED = "clean", "transferred"
#: A weaker search is ahead where the PSNR-Y that it finds is lower than the full search's by more than this, in dB.
TOLERANCE_DB = 0.1

#: The PSNR of identical images, which would be infinite.
MOST_DB = 100.0

Restore = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """A model whose worst case is measured: LR images (B, 3, h, w) to restored ones, with gradients."""

    title: str
    digest: str
    restore: Restore


def model_subject(method: Method, title: str | None = None) -> Subject:
    """A loaded model, in float32, under its own title or another."""
    return Subject(title or method.title, method.digest, FrozenModule(method.upscaler.model, torch.float32))


def bicubic_subject(scale: int) -> Subject:
    """Bicubic interpolation, what every model is compared with; in PyTorch, so that it has gradients."""
    version = f"torch {torch.__version__.split('+')[0]}"
    return Subject(baseline_title(scale), version, partial(bicubic_upsample, scale=scale))


@dataclass(frozen=True)
class Crop:
    """A part of an HR image, (3, size, size) in [0, 1]."""

    name: str
    hr: Tensor


def make_crops(images: Sequence[tuple[str, np.ndarray]], count: int, size: int, seed: int) -> list[Crop]:
    """`count` square crops at random places, from all images in turn.

    Raises:
        DataError: an image is smaller than a crop.
    """
    crops = []
    for number in range(count):
        name, image = images[number % len(images)]
        height, width = image.shape[:2]
        if min(height, width) < size:
            raise DataError(f"{name} is {height} x {width}; crops are {size} x {size}: leave it out, or give --size")
        rng = np.random.default_rng((seed, number // len(images), name_seed(name)))
        top, left = (int(rng.integers(0, length - size + 1)) for length in (height, width))
        hr = to_tensor(np.ascontiguousarray(image[top : top + size, left : left + size]))[0]
        crops.append(Crop(f"{name} {top},{left}", hr))
    return crops


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
        scale: the super-resolution factor.
        subjects: the models.
        crops: parts of HR images.
        attackers: names of `ATTACKERS`.
        budgets: the least PSNR of LR images, in dB.
        effort: how long adversaries search.
        batch: crops that are attacked together.
        seed: of all random choices.
        device: of the models.
    """

    scale: int
    subjects: Sequence[Subject]
    crops: Sequence[Crop]
    attackers: Sequence[str]
    budgets: Sequence[float]
    effort: Effort
    batch: int
    seed: int
    device: torch.device

    def settings(self) -> dict[str, Any]:
        """What the result of a model on a crop depends on besides the two: the other models, too (their images)."""
        digests = sorted(subject.digest for subject in self.subjects)
        return {"scale": self.scale, "seed": self.seed, "models": digests, **asdict(self.effort)}

    def cases(self) -> list[tuple[str, float | None]]:
        """Attackers and budgets, the clean LR images first."""
        return [(CLEAN, None), *((name, budget) for name in self.attackers for budget in self.budgets)]


def case_name(attacker: str, budget: float | None) -> str:
    """What records and tables call an attacker at a budget."""
    return attacker if budget is None else f"{attacker} {budget:g} dB"


def measure_worst_cases(plan: Plan, records: Records, done: Callable[[], None] = lambda: None) -> list[Record]:
    """Measure what is not in `records` yet, batch by batch, and call `done` after each batch of a case.

    Returns the records by case, model and crop.
    """
    settings = _digest(json.dumps(plan.settings(), sort_keys=True).encode())
    found = []
    for attacker, budget in plan.cases():
        for first in range(0, len(plan.crops), plan.batch):
            crops = plan.crops[first : first + plan.batch]
            known = [
                records.get(case_name(attacker, budget), crop.name, subject.title, _digests(subject, crop, settings))
                for subject in plan.subjects
                for crop in crops
            ]
            if any(record is None for record in known):
                hr = torch.stack([crop.hr for crop in crops]).to(plan.device)
                known = []
                for subject, rows in zip(plan.subjects, _measure(plan, hr, attacker, budget, first), strict=True):
                    for crop, (scores, notes) in zip(crops, rows, strict=True):
                        digests = _digests(subject, crop, settings)
                        record = Record(case_name(attacker, budget), crop.name, subject.title, digests, scores, notes)
                        records.add(record)
                        known.append(record)
            found += known
            done()
    return found


def _digests(subject: Subject, crop: Crop, settings: str) -> Digests:
    return Digests(subject.digest[:16], _digest(crop.hr.numpy().tobytes()), settings)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


Scores = tuple[dict[str, float], dict[str, float]]


def _measure(plan: Plan, hr: Tensor, attacker: str, budget: float | None, first: int) -> list[list[Scores]]:
    """Scores and notes of each subject on each image of a batch that begins with crop `first`."""
    if budget is None:
        images = [{CLEAN: bicubic_downsample(hr, plan.scale)} for _ in plan.subjects]
    else:
        images = []
        for subject in plan.subjects:
            # The same random choices for all models, which makes comparisons fairer.
            rng = step_generator(plan.seed, first, plan.device)
            objective = luma_error(subject.restore, plan.scale)
            images.append(ATTACKERS[attacker]()(objective, hr, plan.scale, budget, plan.effort, rng))
    rows = []
    for number, subject in enumerate(plan.subjects):
        lr = dict(images[number])
        for other, theirs in enumerate(images):
            if other != number and FOUND in theirs:
                lr[f"{TRANSFERRED} {other}"] = theirs[FOUND]
        values = {name: _scores(subject, image, hr, plan.scale) for name, image in lr.items()}
        each = []
        for image in range(len(hr)):
            psnrs = {name: float(psnr[image]) for name, (psnr, _) in values.items()}
            worst = min(psnrs, key=lambda name: psnrs[name])
            scores = {"psnr_y": round(psnrs[worst], 4), "ssim_y": round(float(values[worst][1][image]), 6)}
            notes = {name: round(psnrs[name], 4) for name in (FOUND, SHORT, RANDOM) if name in psnrs}
            others = [value for name, value in psnrs.items() if name.startswith(TRANSFERRED)]
            each.append((scores, notes | ({TRANSFERRED: round(min(others), 4)} if others else {})))
        rows.append(each)
    return rows


@torch.no_grad()
def _scores(subject: Subject, lr: Tensor, hr: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    restored = subject.restore(lr).float()
    return psnr_y(restored, hr, scale).clamp(max=MOST_DB), ssim_y(restored, hr, scale)


def summarise(plan: Plan, records: Sequence[Record]) -> dict[str, dict[str, dict[str, float]]]:
    """Means by case and model: psnr_y, ssim_y, and how often each weaker search was ahead of the full one."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for attacker, budget in plan.cases():
        name = case_name(attacker, budget)
        for subject in plan.subjects:
            rows = [record for record in records if (record.data, record.model) == (name, subject.title)]
            means = {
                metric: statistics.fmean(record.scores[metric] or 0 for record in rows)
                for metric in ("psnr_y", "ssim_y")
            }
            for search in (SHORT, RANDOM, TRANSFERRED):
                found = [record.notes for record in rows if search in record.notes]
                if found:
                    ahead = sum(notes[search] < notes[FOUND] - TOLERANCE_DB for notes in found)
                    means[f"{search} ahead"] = ahead
            summary.setdefault(name, {})[subject.title] = means
    return summary


def text(plan: Plan, summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A table an attacker, worst-case PSNR-Y by model and budget, and what the weaker searches say of the attack."""
    parts = []
    for attacker in plan.attackers:
        titles = ["", CLEAN, *(f"{budget:g} dB" for budget in plan.budgets)]
        names = [CLEAN, *(case_name(attacker, budget) for budget in plan.budgets)]
        rows = [
            [subject.title, *(f"{summary[name][subject.title]['psnr_y']:.2f}" for name in names)]
            for subject in plan.subjects
        ]
        lines = [
            f"{attacker}: PSNR-Y in the worst case, {counted(len(plan.crops), 'crop')}",
            "",
            markdown_table(titles, rows),
        ]
        for search in (SHORT, RANDOM, TRANSFERRED):
            ahead = sum(
                int(summary[name][subject.title].get(f"{search} ahead", 0))
                for name in names
                for subject in plan.subjects
            )
            if ahead:
                all_ = len(plan.crops) * len(plan.subjects) * len(plan.budgets)
                lines.append(f"\n{_MEANING[search]} found a worse image {ahead} times of {all_}, which counts above")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


_MEANING = {SHORT: "fewer steps", RANDOM: "random draws", TRANSFERRED: "an attack on another model"}


def chart(plan: Plan, summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """Worst-case PSNR-Y against the budget: a panel an attacker, a line a model."""
    from matplotlib.lines import Line2D

    styles = {
        subject.title: (FAINT if subject.title == baseline_title(plan.scale) else COLOURS[(number - 1) % len(COLOURS)])
        for number, subject in enumerate(plan.subjects)
    }
    legend = [Line2D([], [], color=colour, lw=2, label=title) for title, colour in styles.items()]
    size = plan.crops[0].hr.shape[-1]
    figure = new_figure(
        "Worst case within a budget",
        f"mean PSNR-Y over {counted(len(plan.crops), 'crop')} of {size} x {size}, "
        f"x{plan.scale}; the worst LR image that is found within the budget",
        4.0 * ((len(plan.attackers) + 2) // 3),
        legend,
    )
    columns = min(3, len(plan.attackers))
    axes = figure.subplots((len(plan.attackers) + columns - 1) // columns, columns, squeeze=False, sharey=True)
    for panel, ax in enumerate(axes.flat):
        if panel >= len(plan.attackers):
            ax.set_visible(False)
            continue
        attacker = plan.attackers[panel]
        plain_axes(ax, attacker, "least PSNR of the LR image, dB", "PSNR-Y, dB" if panel % columns == 0 else "")
        budgets = sorted(plan.budgets, reverse=True)
        for title, colour in styles.items():
            values = [summary[case_name(attacker, budget)][title]["psnr_y"] for budget in budgets]
            ax.plot(budgets, values, color=colour, lw=2, marker="o", ms=4)
        ax.invert_xaxis()
    return figure
