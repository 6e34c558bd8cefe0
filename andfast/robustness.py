"""Measure the worst case of models: `python -m andfast.robustness --model FILE... [--data.hr DIR...]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

import numpy as np
from jsonargparse import Namespace
from tqdm import tqdm

from andfast.data.benchmarks import find_originals
from andfast.data.images import read_image
from andfast.data.photographs import held_out_photographs
from andfast.evaluation.attackers import ATTACKERS, Effort
from andfast.evaluation.environment import made_by
from andfast.evaluation.models import Computing, add_models, load_methods
from andfast.evaluation.records import Records
from andfast.evaluation.robustness import (
    Plan,
    bicubic_subject,
    case_name,
    chart,
    make_crops,
    measure_worst_cases,
    model_subject,
    summarise,
    text,
)
from andfast.utils.charts import require_matplotlib, save_figure
from andfast.utils.command_line import UsageError, as_path, make_parser, one_line, whole
from andfast.utils.console import console
from andfast.utils.devices import choose_device
from andfast.utils.files import make_folder, write_json
from andfast.utils.locks import locked
from andfast.utils.memory import keep_freed_memory

_BUDGETS = [50.0, 46.0, 40.0, 34.0, 28.0, 22.0]


def _parse(arguments: Sequence[str] | None) -> Namespace:
    parser = make_parser(
        "andfast.robustness",
        description="Measure how bad models' results can become: adversaries search for the worst LR image within a "
        "budget, the least PSNR of the LR image against the clean one. Prints tables; writes robustness.json and "
        "robustness.png. Results are kept batch by batch: the same command continues where it was interrupted.",
        epilog="Exit status: 0 done, 1 failed, 2 not begun.",
    )
    add = parser.add_argument
    add_models(parser)
    add(
        "--data.hr", nargs="+", default=[], metavar="DIR", dest="hr",
        help="folders of HR images; none: the three of scikit-image's photographs that no run trains on",
    )  # fmt: skip
    add(
        "--attackers", nargs="+", choices=list(ATTACKERS), default=["F", "noise", "camera"], metavar="NAME",
        help=f"of {', '.join(ATTACKERS)}: the degradation network (a group of its parameters alone), additive noise, "
        "a camera's few settings (default: F noise camera)",
    )  # fmt: skip
    add(
        "--budgets", nargs="+", type=float, default=_BUDGETS, metavar="DB",
        help=f"in dB (default: {' '.join(f'{budget:g}' for budget in _BUDGETS)})",
    )  # fmt: skip
    add("--crops", type=whole(1), default=20, metavar="N", help="crops, from all images in turn (default: 20)")
    add("--size", type=whole(32), default=96, metavar="PIXELS", help="their height and width (default: 96)")
    defaults = Effort()
    add("--steps", type=whole(1), default=defaults.steps, help="gradient steps of F and noise (default: %(default)s)")
    add("--restarts", type=whole(1), default=defaults.restarts, help="of F and noise (default: %(default)s)")
    add("--generations", type=whole(1), default=defaults.generations, help="of cameras (default: %(default)s)")
    add("--population", type=whole(1), default=defaults.population, help="of a generation (default: %(default)s)")
    add("--batch_size", type=whole(1), default=10, help="crops attacked at once (default: %(default)s)")
    add("--seed", type=whole(0), default=0, help="of all random choices (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one")
    add(
        "--output", type=as_path, default=Path("runs/robustness"), metavar="DIR",
        help="where results are kept and written (default: %(default)s)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def _prepare(options: Namespace, held: ExitStack) -> tuple[Plan, Records]:
    """Check the options, load models and images, and lock the output folder in `held`; raises UsageError."""
    try:
        require_matplotlib()
        if not all(0 < budget < 100 for budget in options.budgets):
            raise ValueError("--budgets are in dB, between 0 and 100; 22 to 50 are usual")
        device = choose_device(options.device)
        methods = load_methods(options.model, Computing(device))
        scale = methods[0].upscaler.scale
        if options.size % scale:
            raise ValueError(f"--size is {options.size}; it must be a multiple of the models' scale, {scale}")
        images = _images(options.hr, scale)
        effort = Effort(**{field.name: getattr(options, field.name) for field in fields(Effort)})
        plan = Plan(
            scale=scale,
            subjects=[bicubic_subject(scale), *map(model_subject, methods)],
            crops=make_crops(images, options.crops, options.size, options.seed),
            attackers=list(dict.fromkeys(options.attackers)),
            budgets=sorted(set(options.budgets), reverse=True),
            effort=effort,
            batch=options.batch_size,
            seed=options.seed,
            device=device,
        )
        make_folder(options.output)
        held.enter_context(locked(options.output))
        return plan, Records(options.output)
    except (ValueError, OSError) as error:  # among them DataError and ModelError
        raise UsageError(one_line(error)) from error


def _images(folders: Sequence[str], scale: int) -> list[tuple[str, np.ndarray]]:
    if not folders:
        return held_out_photographs()
    scenes = [scene for folder in folders for scene in find_originals(folder, scale).scenes]
    return [(scene.name, read_image(scene.hr)) for scene in scenes]


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; `arguments` default to those of the process. Returns the exit status."""
    with ExitStack() as held:
        options = _parse(arguments)
        try:
            plan, records = _prepare(options, held)
        except UsageError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return _run(options, arguments, plan, records)


def _run(options: Namespace, arguments: Sequence[str] | None, plan: Plan, records: Records) -> int:
    if plan.device.type == "cpu":
        keep_freed_memory()
    given = sys.argv[1:] if arguments is None else arguments
    made = made_by("andfast.robustness", given)
    batches = -(-len(plan.crops) // plan.batch)
    try:
        with tqdm(total=len(plan.cases()) * batches, unit="batch", disable=None) as bar:
            found = measure_worst_cases(plan, records, bar.update)
        summary = summarise(plan, found)
        results, plot = options.output / "robustness.json", options.output / "robustness.png"
        settings = {
            **plan.settings(),
            "models": {subject.title: subject.digest for subject in plan.subjects},
            "crops": [crop.name for crop in plan.crops],
            "size": options.size,
            "attackers": plan.attackers,
            "budgets": plan.budgets,
        }
        names = [case_name(*case) for case in plan.cases()]
        rows = [
            {"case": record.data, "crop": record.image, "model": record.model, **record.scores, **record.notes}
            for record in found
        ]
        write_json(results, {**made, "settings": settings, "cases": names, "means": summary, "each": rows})
        save_figure(chart(plan, summary), plot)
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on with what is in {records.path}", file=sys.stderr)
        return 130
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    print(f"{text(plan, summary)}\n\nwritten: {results}, {plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
