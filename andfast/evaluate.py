"""Evaluate models on benchmarks: `python -m andfast.evaluate --model FILE... --data NAME=DIR...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from tqdm import tqdm

from andfast.data.benchmarks import LAYOUTS, DataSet, find_benchmark, find_originals
from andfast.data.images import DataError, write_png
from andfast.data.listing import skipped_message
from andfast.data.paired_folders import is_hr_folder
from andfast.evaluation.degrading import Degradation, parse_degradation
from andfast.evaluation.environment import made_by
from andfast.evaluation.measuring import Outcome, Plan, measure_all
from andfast.evaluation.models import Computing, Method, add_models, bicubic_method, load_methods
from andfast.evaluation.records import Records
from andfast.evaluation.report import as_json, difference_sheet, text, write_csv
from andfast.metrics import MEASURES, make_measure
from andfast.ops.precision import choose_precision
from andfast.training.records import baseline_title
from andfast.utils.command_line import UsageError, as_path, make_parser, one_line
from andfast.utils.console import console
from andfast.utils.devices import TYPES, choose_device
from andfast.utils.files import check_name, make_folder, write_json
from andfast.utils.formatting import counted
from andfast.utils.locks import locked
from andfast.utils.memory import keep_freed_memory

_BY_DEFAULT = ("psnr_y", "ssim_y", "niqe")


def _parse(arguments: Sequence[str] | None) -> Namespace:
    known = "; ".join(f"{layout.name}: {layout.shape}" for layout in LAYOUTS)
    parser = make_parser(
        "andfast.evaluate",
        description="Measure models and bicubic interpolation on benchmarks. Results are kept image by image: the same "
        "command continues where it was interrupted, and computes again what has changed since.",
        epilog="Exit status: 0 if everything was measured, 1 if something could not be, 2 if nothing was begun.",
    )
    add = parser.add_argument
    add_models(parser)
    add(
        "--data", nargs="+", required=True, metavar="NAME=DIR",
        help=f"data sets and what results name them; layouts are recognised ({known}; or only LR images)",
    )  # fmt: skip
    add(
        "--degrade", metavar="HOW",
        help="make LR images of the folders' HR images: blur=2,noise=10,jpeg=60 as a simulated camera does (sigma in "
        "HR pixels, sigma in 8-bit units, quality; what is left out is moderate), or bicubic",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="of --degrade's noise (default: %(default)s)")
    add(
        "--metrics", nargs="+", choices=MEASURES, default=list(_BY_DEFAULT), metavar="METRIC",
        help=f"of {', '.join(MEASURES)} (default: {' '.join(_BY_DEFAULT)})",
    )  # fmt: skip
    add("--niqe_model", type=as_path, metavar="FILE", help="NIQE's parameters, .npz or .mat, instead of andfast's own")
    for net, trunk in (("alex", "alexnet"), ("vgg", "vgg16")):
        add(
            f"--lpips_{net}", nargs=2, default=(), metavar=("TRUNK", "LINEAR"),
            help=f"add lpips_{net} by torchvision's file of {trunk} and lpips's {net}.pth; where PyTorch's hub has the "
            "one and the package torchmetrics or lpips brings the other, name it in --metrics instead",
        )  # fmt: skip
    add(
        "--run_dir", type=as_path, default=Path("runs/evaluation"), metavar="DIR",
        help="keeps the results (default: %(default)s)",
    )  # fmt: skip
    add("--json", type=as_path, metavar="FILE", help="write all results and settings there")
    add("--csv", type=as_path, metavar="FILE", help="write the images' results there")
    add("--sheet", type=as_path, metavar="FILE", help="PNG of the images on which two models differ most")
    add(
        "--between", nargs=2, metavar="TITLE",
        help="the sheet's two models (default: the first two; of one model, bicubic interpolation and it)",
    )  # fmt: skip
    add("--tile", type=int, default=512, metavar="PIXELS", help="compute in squares; 0: whole (default: %(default)s)")
    add("--overlap", type=int, default=32, metavar="PIXELS", help="context around tiles (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one")
    add("--precision", choices=("auto", *TYPES), default="float32", help="to compute in (default: %(default)s)")
    return parser.parse_args(arguments)


def _prepare(options: Namespace, held: ExitStack) -> tuple[Plan, Records, tuple[Method, Method]]:
    """Check the options, load models and data, and lock the run's folder in `held`; raises UsageError."""
    try:
        if min(options.tile, options.overlap, options.seed) < 0:
            raise ValueError("--tile, --overlap and --seed must not be negative")
        for name, suffix in (("json", ".json"), ("csv", ".csv"), ("sheet", ".png")):
            _check_output(f"--{name}", getattr(options, name), suffix)
        degradation = None if options.degrade is None else parse_degradation(options.degrade, options.seed)
        device = choose_device(options.device)
        computing = Computing(device, choose_precision(options.precision, device), options.tile, options.overlap)
        models = load_methods(options.model, computing)
        scale = models[0].upscaler.scale
        if scale == 1 and degradation is not None and degradation.camera is None:
            raise ValueError(
                "--degrade bicubic changes nothing at x1; give blur, noise or jpeg, such as noise=10,jpeg=60"
            )
        methods = [bicubic_method(baseline_title(scale)), *models]
        pair = _pair(options.between, methods)
        data = _find_data(options.data, scale, degradation)
        files = {name: getattr(options, name) for name in MEASURES if name.startswith("lpips")}
        names = dict.fromkeys([*options.metrics, *(name for name, given in files.items() if given)])
        measures = [make_measure(name, scale, device, options.niqe_model, files.get(name, ())) for name in names]
        plan = Plan(scale, methods, data, measures, computing, degradation)
        plan.check()
        options.run_dir.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(options.run_dir))
        return plan, Records(options.run_dir), pair
    except (ValueError, OSError) as error:  # among them DataError, ModelError and EvaluationRecordError
        raise UsageError(str(error)) from error


def _check_output(option: str, path: Path | None, suffix: str) -> None:
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise ValueError(f"{option} {path}: give a {suffix} file")
    if path.is_dir():
        raise ValueError(f"{option} {path}: is a folder")
    make_folder(path.parent)
    check_name(path)


def _find_data(given: Sequence[str], scale: int, degradation: Degradation | None) -> dict[str, DataSet]:
    found: dict[str, DataSet] = {}
    for text_ in given:
        name, equals, folder = text_.partition("=")
        if not (name and equals and folder):
            raise DataError(f"--data {text_}: give NAME=DIR")
        if name in found:
            raise DataError(f"--data {text_}: {name} is another data set's name, too")
        find = find_benchmark if degradation is None else find_originals
        found[name] = find(folder, scale)
        if found[name].layout == "LR" and is_hr_folder(Path(folder)):
            raise DataError(
                f"--data {text_}: HR images, as the folder's name says, which are not to be enlarged; give the folder "
                "that holds it and one of LR images, or --degrade, which makes them"
            )
    return found


def _pair(titles: Sequence[str] | None, methods: Sequence[Method]) -> tuple[Method, Method]:
    if titles is None:
        return tuple(methods[1:3]) if len(methods) > 2 else tuple(methods)
    by_title = {method.title: method for method in methods}
    unknown = [title for title in titles if title not in by_title]
    if unknown:
        raise ValueError(f"--between {' '.join(titles)}: no model {unknown[0]!r}; there are {', '.join(by_title)}")
    if titles[0] == titles[1]:
        raise ValueError(f"--between {' '.join(titles)}: give two different ones")
    return tuple(by_title[title] for title in titles)


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; `arguments` default to those of the process. Returns the exit status."""
    with ExitStack() as held:
        return _run(_parse(arguments), arguments, held)


def _run(options: Namespace, arguments: Sequence[str] | None, held: ExitStack) -> int:
    try:
        plan, records, pair = _prepare(options, held)
    except UsageError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    if plan.computing.device.type == "cpu":
        keep_freed_memory()
    # Before the first image: the commit may change during the run.
    made = made_by("andfast.evaluate", sys.argv[1:] if arguments is None else arguments)
    count = sum(len(data.scenes) for data in plan.data.values())
    try:
        with tqdm(total=count, unit="image", disable=None if count > 1 else True) as bar:
            outcome = measure_all(plan, records, bar.update)
        print(_history(outcome) + text(plan, outcome))
        _write(options, plan, outcome, pair, made)
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on with what is in {records.path}", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    for name, data in plan.data.items():
        if data.passed_over:
            print(f"{name}: {skipped_message(data.passed_over)}", file=sys.stderr)
    for failure in outcome.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if outcome.failures else 0


def _history(outcome: Outcome) -> str:
    """Lines about results from before and those measured again."""
    lines = [f"{outcome.reused} of {counted(len(outcome.records), 'result')} there before"] if outcome.reused else []
    for (data, model, what), number in outcome.again.items():
        lines.append(f"{what} changed, computed again: {number} of {model} on {data}")
    return "".join(f"{line}\n" for line in lines) + ("\n" if lines else "")


def _write(options: Namespace, plan: Plan, outcome: Outcome, pair: tuple[Method, Method], made: dict[str, Any]) -> None:
    if options.json is not None:
        write_json(options.json, as_json(plan, outcome, made))
    if options.csv is not None:
        write_csv(options.csv, plan, outcome)
    if options.sheet is not None:
        write_png(options.sheet, difference_sheet(plan, outcome, *pair))


if __name__ == "__main__":
    sys.exit(main())
