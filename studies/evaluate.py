"""Test model files as the studies do: `python -m studies.evaluate MODEL... [--data.hr DIR...] [--pairs DIR...]`.

Prints a table of PSNR and one of SSIM on Y: on camera-captured pairs by camera, and on the photographs that training
with the same folders holds out, with clean LR images and with degradations that no training uses.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from andfast.data.tensors import to_tensor
from andfast.evaluation.models import Computing, Method, bicubic_method, load_methods
from andfast.evaluation.records import Records
from andfast.evaluation.robustness import Plan, bicubic_subject, measure_worst_cases, model_subject
from andfast.inference.tiles import NonFiniteError
from andfast.metrics import FIDELITY
from andfast.training.options import parse_config
from andfast.utils.command_line import make_parser
from andfast.utils.console import console
from andfast.utils.devices import choose_device
from andfast.utils.formatting import markdown_table
from andfast.utils.memory import keep_freed_memory
from studies.outcome import METRICS, column_values, columns, is_adversary
from studies.testsets import TestSets, groups, held_out_photographs, pair_sets, photograph_sets

Scores = dict[str, dict[str, list[float]]]
"""Metric -> name of the test set -> a value for each test, in the order of the set."""


def evaluate(method: Method, sets: TestSets, scale: int) -> Scores:
    """PSNR-Y in dB and SSIM-Y of all tests, a border of `scale` pixels cut.

    Raises:
        NonFiniteError: the model's output holds NaN or infinity.
    """
    scores: Scores = {metric: {} for metric in METRICS}
    for name, cases in sets.items():
        restored = [(method.restore(case.lr, scale, method.device).cpu(), to_tensor(case.hr)) for case in cases]
        for metric, measure in FIDELITY.items():
            scores[metric][name] = [round(measure(*pair, scale).item(), 6) for pair in restored]
    return scores


def evaluate_worst(method: Method, plan: Plan, work: Path) -> Scores:
    """PSNR-Y in dB and SSIM-Y of all crops in the worst case that each adversary of the plan finds within a budget.

    Args:
        method: the model, or bicubic interpolation.
        plan: without subjects.
        work: keeps what is found; another call goes on with it.
    """
    subject = bicubic_subject(plan.scale) if method.upscaler is None else model_subject(method)
    scores: Scores = {metric: {} for metric in METRICS}
    for record in measure_worst_cases(replace(plan, subjects=[subject]), Records(work / method.digest[:16])):
        if is_adversary(record.data):
            for metric in METRICS:
                scores[metric].setdefault(record.data, []).append(record.scores[metric])
    return scores


def noise_and_grid(method: Method, scale: int, sigma: float = 15.0, size: int = 96) -> dict[str, float]:
    """What becomes of flat gray with Gaussian noise of `sigma`, in 8-bit units, in `size` x `size` LR pixels.

    Returns:
        "noise": the standard deviation of the result; "grid": the range of the means over the pixels at each of the
        scale x scale places within an LR pixel, which is about 0 unless the model draws a grid.
    """
    random = np.random.default_rng(0)
    lr = np.clip(np.round(128 + sigma * random.standard_normal((size, size, 3))), 0, 255).astype(np.uint8)
    restored = 255 * method.restore(lr, scale, method.device)[0].double().cpu().numpy()
    inside = restored[:, 4 * scale : -4 * scale, 4 * scale : -4 * scale]
    means = [inside[:, top::scale, left::scale].mean() for top in range(scale) for left in range(scale)]
    return {"noise": round(float(inside.std()), 3), "grid": round(float(max(means) - min(means)), 3)}


def load_models(given: Sequence[str | Path], device: torch.device) -> list[Method]:
    """Load models as `andfast.evaluation` does, but with tiles of a fixed size, which depend on no machine."""
    return load_methods(list(map(str, given)), Computing(device, tile=256))


def table(scores: Mapping[str, Scores], metric: str, sets: TestSets) -> str:
    """A Markdown table with a line for each of `columns`, and a column for each model."""
    digits = 2 if metric == "psnr_y" else 4
    lines = []
    for title, column in columns(groups(sets)).items():
        values = [column_values(found[metric], column) for found in scores.values()]
        lines.append([title, str(len(values[0])), *(f"{each.mean():.{digits}f}" for each in values)])
    return markdown_table(["", "images", *scores], lines)


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 not begun."""
    parser = make_parser("studies.evaluate", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="as for andfast.evaluate, all of one scale")
    add("--data.hr", nargs="+", default=[], metavar="DIR", help="folders trained on (default: none)")
    add("--data.held_out", type=int, default=20, help="as in training, so that no model was trained on these")
    add("--pairs", nargs="+", default=[], metavar="DIR", help="folders with HR/ and LR/")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one")
    options = parser.parse_args(arguments)
    if not options.data.hr and not options.pairs:
        parser.error("nothing to test on: give --data.hr, --pairs or both")
    try:
        device = choose_device(options.device)
        models = load_models(options.models, device)
        scale = models[0].upscaler.scale
        sets = pair_sets(options.pairs, scale)
        if options.data.hr:
            held_out = f"--data.held_out={options.data.held_out}"
            config = parse_config([f"--scale={scale}", held_out, "--data.hr", *options.data.hr])
            sets |= photograph_sets(held_out_photographs(config), scale)
    except (ValueError, OSError) as error:  # among them DataError and ModelError
        print(f"error: {error}", file=sys.stderr)
        return 2
    if device.type == "cpu":
        keep_freed_memory()
    scores: dict[str, Scores] = {}
    for method in tqdm([bicubic_method(), *models], unit="model", disable=None if len(models) > 1 else True):
        try:
            scores[method.title] = evaluate(method, sets, scale)
        except NonFiniteError as error:
            print(f"error: {method.title}: {error}", file=sys.stderr)
            return 3
    for metric, unit in (("psnr_y", "PSNR on Y, dB"), ("ssim_y", "SSIM on Y")):
        print(f"{unit}\n\n{table(scores, metric, sets)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
