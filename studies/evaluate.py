"""Test model files as the studies do: `python -m studies.evaluate MODEL... [--data.hr DIR...] [--pairs DIR...]`.

Prints PSNR and SSIM on Y, a table each: on camera-captured pairs by camera, on clean LR images of the photographs that
training with the same folders held out, and on those under degradations that no training uses.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from andfast.data.images import DataError
from andfast.data.tensors import to_tensor
from andfast.evaluation.models import BICUBIC, title_of
from andfast.inference.tiles import NonFiniteError
from andfast.inference.upscaler import upscale_tensor
from andfast.metrics import FIDELITY
from andfast.models import ModelError, load_model
from andfast.training.options import parse_config
from andfast.training.validation import bicubic_upsample
from andfast.utils.allocator import keep_freed_memory
from andfast.utils.console import console
from andfast.utils.devices import choose_device
from studies import markdown
from studies.outcome import METRICS, column_values, columns
from studies.testsets import TestSets, held_out_photographs, pair_sets, photograph_sets

Scores = dict[str, dict[str, list[float]]]
"""The metric's name -> the test set's name -> a value a test, in the order of the set."""


def evaluate(upscale: Callable[[np.ndarray], Tensor], sets: TestSets, scale: int) -> Scores:
    """PSNR-Y in dB and SSIM-Y of all tests, a border of `scale` pixels cut.

    Args:
        upscale: uint8 (h, w, 3) -> float (1, 3, scale * h, scale * w).
        sets: the tests.
        scale: the super-resolution factor.
    """
    scores: Scores = {metric: {} for metric in METRICS}
    for name, cases in sets.items():
        restored = [(upscale(case.lr).cpu(), to_tensor(case.hr)) for case in cases]
        for metric, measure in FIDELITY.items():
            scores[metric][name] = [round(measure(*pair, scale).item(), 6) for pair in restored]
    return scores


def evaluate_model(model: nn.Module, sets: TestSets) -> Scores:
    """`evaluate` of a generator.

    Raises:
        NonFiniteError: its output holds NaN or infinity.
    """
    return evaluate(lambda lr: upscale_tensor(model, to_tensor(lr)), sets, model.scale)


def evaluate_bicubic(sets: TestSets, scale: int) -> Scores:
    """`evaluate` of Pillow's bicubic interpolation, the mark to beat."""
    return evaluate(lambda lr: to_tensor(bicubic_upsample(lr, scale)), sets, scale)


def table(scores: Mapping[str, Scores], metric: str, sets: TestSets) -> str:
    """Markdown: a line a column of `columns`, a column a model."""
    digits = 2 if metric == "psnr_y" else 4
    lines = []
    for title, column in columns({name: [case.group for case in cases] for name, cases in sets.items()}).items():
        values = [column_values(found[metric], column) for found in scores.values()]
        lines.append([title, str(len(values[0])), *(f"{each.mean():.{digits}f}" for each in values)])
    return markdown.table(["", "images", *scores], lines)


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 not begun."""
    parser = argparse.ArgumentParser(prog="python -m studies.evaluate", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("models", nargs="+", type=Path, metavar="MODEL", help=".safetensors, .pth or .pt, all of one scale")
    add(
        "--data.hr",
        dest="hr",
        nargs="+",
        default=[],
        metavar="DIR",
        help="the folders trained on; none: no photographs",
    )
    add("--data.held_out", dest="held_out", type=int, default=20, help="as in training, that none was trained on")
    add("--pairs", nargs="+", default=[], metavar="DIR", help="folders with HR/ and LR/")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one")
    options = parser.parse_args(arguments)
    if not options.hr and not options.pairs:
        parser.error("nothing to test on: give --data.hr, --pairs or both")
    try:
        device = choose_device(options.device)
        models = {title_of(path): load_model(path, device) for path in options.models}
        scales = {model.scale for model in models.values()}
        if len(scales) > 1 or len(models) < len(options.models):
            raise ValueError(f"models of one scale, each once: {', '.join(map(str, options.models))} are not")
        scale = scales.pop()
        sets = pair_sets(options.pairs, scale)
        if options.hr:
            held_out = f"--data.held_out={options.held_out}"
            config = parse_config([f"--scale={scale}", held_out, "--data.hr", *options.hr])
            sets |= photograph_sets(held_out_photographs(config), scale)
    except (DataError, ModelError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if device.type == "cpu":
        keep_freed_memory()
    scores = {BICUBIC: evaluate_bicubic(sets, scale)}
    try:
        for title, model in tqdm(models.items(), unit="model", disable=None if len(models) > 1 else True):
            scores[title] = evaluate_model(model.to(memory_format=torch.channels_last), sets)
    except NonFiniteError as error:
        print(f"error: {title}: {error}", file=sys.stderr)
        return 3
    for metric, unit in (("psnr_y", "PSNR on Y, dB"), ("ssim_y", "SSIM on Y")):
        print(f"{unit}\n\n{table(scores, metric, sets)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
