"""The page's second tab: attack the centre of an uploaded file, and show the result by parameter group."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from andfast.data.images import DataError, image_size
from andfast.data.png import png_bytes
from andfast.data.tensors import to_array, to_tensor
from andfast.demo.models import Offered
from andfast.losses import Objective, l1_objective
from andfast.metrics import psnr, psnr_y
from andfast.ops.theta_layout import ScaleFactors
from andfast.training.attack_config import AttackConfig
from andfast.training.config import Config, DegradationConfig, TrainConfig
from andfast.training.degraded_images import (
    ATTACKED,
    CLEAN,
    GROUP_LABELS,
    degrade,
    image_number,
    psnr_notes,
    read_hr,
    restored_label,
    with_restored,
)
from andfast.training.memory_check import check_search
from andfast.utils.formatting import dtype_name, markdown_table

#: The groups of theta that may move by default, by their names in `ScaleFactors`.
FREE = tuple(name for name, factor in asdict(ScaleFactors()).items() if math.isfinite(factor))


@dataclass(frozen=True)
class Choice:
    """The options of an attack.

    Attributes:
        crop: largest height and width of the central HR image.
        lr_psnr: the budget: the least PSNR in dB of the attacked against the clean LR image.
        steps: of gradient ascent.
        seed: of the degradation network.
        groups: the groups of theta that may change, names of `ScaleFactors`.
    """

    crop: int = 256
    lr_psnr: float = 28.0
    steps: int = 5
    seed: int = 0
    groups: tuple[str, ...] = FREE

    def scale_factors(self) -> ScaleFactors:
        """The default factors of `groups`, 1 for groups that are fixed by default; ValueError without a group."""
        if not self.groups:
            raise ValueError("nothing may move: choose at least one of the adversary's means")
        usual = asdict(ScaleFactors())
        free = {name: usual[name] if math.isfinite(usual[name]) else 1.0 for name in self.groups}
        return ScaleFactors(**{name: free.get(name, math.inf) for name in usual})

    def config(self, offered: Offered) -> Config:
        """The options as settings of `andfast.degrade`."""
        return Config(
            scale=offered.scale,
            seed=self.seed,
            device=offered.upscaler.device.type,
            attack=AttackConfig(
                steps=self.steps, psnr_range=(self.lr_psnr, self.lr_psnr), scale_factors=self.scale_factors()
            ),
            degradation=DegradationConfig(num_networks=1),
            train=TrainConfig(batch_size=1, patch_size=16 * offered.scale),
        )

    def command(self, name: str, offered: Offered) -> str:
        """The command that writes the same LR image of the file `name`, and a sheet of its parts."""
        usual, factors = asdict(ScaleFactors()), asdict(self.scale_factors())
        changed = {
            f"attack.scale_factors.{group}": f"{factors[group]:g}".replace("inf", ".inf")
            for group in GROUP_LABELS
            if factors[group] != usual[group]
        }
        options = {
            "model": offered.file,
            "scale": offered.scale,
            "crop": self.crop,
            "seed": self.seed,
            "device": offered.upscaler.device.type,
            "attack.steps": self.steps,
            "attack.psnr_range": f"[{self.lr_psnr:g}, {self.lr_psnr:g}]",
            "attack.dtype": dtype_name(offered.view.dtype),
            **changed,
        }
        # andfast.degrade refuses a folder of other settings.
        digest = hashlib.sha256(repr(options).encode()).hexdigest()[:8]
        options = {"output": f"pairs-{digest}", **options, "sheet": f"found-{digest}.png"}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        return shlex.join(["python", "-m", "andfast.degrade", name, *words])


@dataclass(frozen=True)
class Cell:
    """An image, uint8 (H, W, 3) or (h, w, 3), with its caption."""

    label: str
    note: str
    image: np.ndarray


@dataclass(frozen=True)
class Attacked:
    """The result of an attack.

    Attributes:
        cells: the images of a sheet of `andfast.degrade`, in its order.
        lr: uint8 (h, w, 3), the attacked LR image.
        clean, attacked: uint8 (H, W, 3), the model's restorations of the clean and of the attacked LR image.
        lr_psnr: of the attacked LR image against the clean one, in dB.
        loss, psnr_y: before and after the attack, of the restorations: mean absolute difference from HR, and dB.
    """

    cells: list[Cell]
    lr: np.ndarray
    clean: np.ndarray
    attacked: np.ndarray
    lr_psnr: float
    loss: tuple[float, float]
    psnr_y: tuple[float, float]


def attack(
    path: Path, offered: Offered, choice: Choice, max_pixels: int, done: Callable[[float], object] | None = None
) -> Attacked:
    """Attack the centre of a file, as `choice.command` does; `done` is called with the progress, in (0, 1].

    Raises:
        DataError: the file cannot be read, is too small, or has more than `max_pixels`.
        MemoryError: the search needs more than the free memory.
        NonFiniteError: the model's output holds NaN or infinity.
        ValueError: contradictory options.
    """
    config, view, device = choice.config(offered), offered.view, offered.upscaler.device
    if min(image_size(path, max_pixels)) < 4 * offered.scale:
        raise DataError(f"{path}: smaller than {4 * offered.scale} x {4 * offered.scale} pixels")
    image = read_hr(path, offered.scale, choice.crop)
    check_search(config.degradation, offered.scale, view, image.shape[:2], device)
    hr = to_tensor(image).to(device)
    objective = _counted(l1_objective(view), choice.steps + 1, done)
    made = degrade(hr, config, objective, 1, image_number(f"{path.stem}.png"), parts=True)
    images, notes = with_restored(hr, made, offered.model), psnr_notes(made)
    restored = [images[restored_label(label)] for label in (CLEAN, ATTACKED)]
    with torch.no_grad():
        loss = [l1_objective(view)(made[label], hr).item() for label in (CLEAN, ATTACKED)]
    return Attacked(
        cells=[Cell(label, notes.get(label, [""])[0], to_array(image)) for label, image in images.items()],
        lr=to_array(made[ATTACKED]),
        clean=to_array(restored[0]),
        attacked=to_array(restored[1]),
        lr_psnr=psnr(made[ATTACKED], made[CLEAN]).item(),
        loss=(loss[0], loss[1]),
        psnr_y=tuple(psnr_y(each.cpu(), hr.cpu(), offered.scale).item() for each in restored),
    )


def _counted(objective: Objective, calls: int, done: Callable[[float], object] | None) -> Objective:
    """Wrap the objective to report the share of its calls that are done."""
    finished = 0

    def counted(lr: Tensor, hr: Tensor) -> Tensor:
        nonlocal finished
        finished += 1
        if done is not None:
            done(min(finished / calls, 1.0))
        return objective(lr, hr)

    return counted


def numbers_table(result: Attacked) -> str:
    """The numbers as a Markdown table."""
    rows = (
        ("LR-PSNR, dB", "", f"{result.lr_psnr:.2f}"),
        ("loss (L1)", *(f"{value:.4f}" for value in result.loss)),
        ("restoration's PSNR-Y, dB", *(f"{value:.2f}" for value in result.psnr_y)),
    )
    return markdown_table(("", "clean LR", "attacked LR"), rows)


def figures(result: Attacked) -> str:
    """The labelled images as HTML; the browser enlarges LR images by repeating pixels."""
    found = ""
    for cell in result.cells:
        data = base64.b64encode(png_bytes(cell.image)).decode()
        label, note = html.escape(cell.label), html.escape(cell.note)
        found += (
            f'<figure><img src="data:image/png;base64,{data}" alt="{label}">'
            f"<figcaption><span>{label}</span><span>{note}</span></figcaption></figure>"
        )
    return f'<div class="figures"><h3>What was found</h3>{found}</div>'
