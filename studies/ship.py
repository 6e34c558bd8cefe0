"""Make a model that comes with andfast: `python -m studies.ship --data.hr DIR... --pairs DIR... --output DIR`.

Trains it from scratch, and its classical twin (the same network, images and number of updates, but only clean LR
images), compares both with bicubic interpolation on the reporting part of the pairs and on held-out photographs, there
also in the worst case that adversaries find, and writes the weights, the configuration, a record, the model card and a
chart of the worst cases. Called again after an interruption, it resumes; finished training is not repeated.
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from torch import nn

from andfast import train
from andfast.evaluation.attackers import Effort
from andfast.evaluation.environment import commit, machine
from andfast.evaluation.models import Method, bicubic_method
from andfast.evaluation.records import Records
from andfast.evaluation.robustness import (
    Plan,
    bicubic_subject,
    chart,
    make_crops,
    measure_worst_cases,
    model_subject,
    summarise,
)
from andfast.pretrained import DEFAULT
from andfast.pretrained import FOLDER as PACKAGE
from andfast.training.config import Config
from andfast.training.images import Skipped, find_images
from andfast.training.options import parse_config
from andfast.training.records import METRICS_FILE, read_records
from andfast.utils.charts import require_matplotlib
from andfast.utils.command_line import as_path, make_parser
from andfast.utils.console import console
from andfast.utils.devices import choose_device
from andfast.utils.files import write_json, written_whole
from andfast.utils.formatting import to_json
from andfast.utils.yaml_files import dump_yaml
from bench.record import now, settings, summary
from studies.card import model_card
from studies.evaluate import Scores, evaluate, load_models, noise_and_grid
from studies.intervals import paired
from studies.outcome import ALL_STRENGTHS, METRICS, column_values, columns
from studies.sources import count_sources
from studies.testsets import (
    CLEAN,
    REPORTING,
    STRENGTHS,
    TUNING,
    TestSets,
    digest,
    groups,
    held_out_photographs,
    reduced,
    study_sets,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIG = Path(__file__).parents[1] / "configs" / f"{DEFAULT}.yaml"

# The rows of the comparison, and the names of the runs' folders.
OURS, TWIN, BICUBIC = "adversarial", "classical", "bicubic"

# Settings of --quick: everything is run once.
QUICK = {
    "data.held_out": 2,
    "data.workers": 0,
    "generator.features": 8,
    "generator.depth": 2,
    "degradation.channels": 8,
    "degradation.blocks": 2,
    "attack.steps": 1,
    "train.iterations": 40,
    "train.warmup": 30,
    "train.ramp": 4,
    "train.batch_size": 8,
    "train.patch_size": 32,
}
_QUICK_TESTS = 2  # images of each camera
_COURSE = 16  # points of a run's progress in its record


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 not begun, 3 failed, else that of the training."""
    options = _parse(arguments)
    commands = _training_commands(options)
    config = parse_config(commands[OURS])
    try:  # all that can be wrong with the images, before the hours of training
        _check(options, config)
        images = _image_sources(config)
        sets = _test_sets(options, config)
        device = choose_device(config.device)
    except (ValueError, OSError) as error:  # among them DataError
        print(f"error: {error}", file=sys.stderr)
        return 2
    if (commit() or "-dirty").endswith("-dirty"):
        print("warning: there are changes that are not committed; the model card will say so", file=sys.stderr)

    for name, command in commands.items():
        print(f"{name}: python -m andfast.train {' '.join(command)}")
        if status := train.main(command):
            return status
    try:
        runs = {name: _run_record(_run_dir(options, name), updates(config)) for name in commands}
        weights = _run_dir(options, OURS) / "model.safetensors"
        models = load_models([f"{name}={_run_dir(options, name) / weights.name}" for name in commands], device)
        methods = {BICUBIC: bicubic_method()} | {model.title: model for model in models}
        scores = {name: evaluate(method, sets, config.scale) for name, method in methods.items()}
        plan = worst_case_plan(options, models, config)
        records = Records(_run_dir(options, "worst_case"))
        means = summarise(plan, measure_worst_cases(plan, records))
        worst = {
            **plan.settings(),
            "crops": [crop.name for crop in plan.crops],
            "size": plan.crops[0].hr.shape[-1],
            "attackers": plan.attackers,
            "budgets": plan.budgets,
            "means": means,
        }
        (ours,) = (model.upscaler.model for model in models if model.title == OURS)
        record = {
            "name": options.config.stem,
            "quick": options.quick,
            "date": now()[:10],
            "commit": commit(),
            "command": _shown_command(options),
            "machine": machine(),
            "model": _model_record(ours, weights, f"{options.config.stem}.safetensors"),
            "images": images,
            "runs": runs,
            "worst_case": worst,
            "noise_and_grid": {name: noise_and_grid(method, config.scale) for name, method in methods.items()},
            "evaluation": {
                "digest": digest(sets),
                "table": table(scores, sets),
                "images": {name: [case.image for case in cases] for name, cases in sets.items()},
                "scores": scores,
            },
        }
        write(options.output, weights, settings(weights.parent), record, chart(plan, means))
    except (ValueError, OSError) as error:  # among them NonFiniteError
        print(f"error: {error}", file=sys.stderr)
        return 3
    print(f"done: {options.output / record['name']}.safetensors, .yaml, .json, .md and .png")
    return 0


def _parse(arguments: Sequence[str] | None) -> Namespace:
    parser = make_parser("studies.ship", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data.hr", nargs="+", required=True, metavar="DIR", help="folders of HR photographs to train on")
    add("--pairs", nargs="+", default=[], metavar="DIR", help="folders with HR/ and LR/, to test on every second pair")
    add("--output", type=as_path, required=True, metavar="DIR", help="the package's own is andfast/pretrained")
    add("--config", type=as_path, default=CONFIG, metavar="FILE", help="the training; its file name names the model")
    add("--work", type=as_path, default=Path("runs/ship"), metavar="DIR", help="for the training runs (%(default)s)")
    add("--quick", action="store_true", help="a trial in seconds, which makes a useless model")
    options = parser.parse_args(arguments)
    if options.quick and options.output.resolve() == PACKAGE.resolve():
        parser.error(f"--quick makes a useless model; give another --output than {options.output}")
    return options


def _run_dir(options: Namespace, run: str) -> Path:
    return options.work / (options.config.stem + ("_quick" if options.quick else "")) / run


def _training_commands(options: Namespace) -> dict[str, list[str]]:
    """The arguments of `andfast.train` for the model and for its twin."""
    shared = ["--config", str(options.config), "--data.hr", *options.data.hr]
    if options.quick:
        shared += [f"--{key}={value}" for key, value in QUICK.items()]
    commands = {name: [*shared, f"--run_dir={_run_dir(options, name)}"] for name in (OURS, TWIN)}
    length = updates(parse_config(shared))
    commands[TWIN] += ["--attack.method=none", "--attack.mix.share=0", f"--train.iterations={length}"]
    return commands


def _check(options: Namespace, config: Config) -> None:
    """Refuse settings for which the comparison or the card would be wrong, and what the card cannot be made without."""
    require_matplotlib()
    if config.attack.method == "none":
        raise ValueError(f"{options.config}: attack.method is none; the model would be its own classical twin")
    if config.generator.init is not None:
        raise ValueError(f"{options.config}: generator.init is {config.generator.init}; the model starts from nothing")
    if config.mixed and config.mix_method == "pairs":
        raise ValueError(f"{options.config}: trains on camera-captured pairs, whose licences the card cannot name")


def updates(config: Config) -> int:
    """The number of a run's generator updates; minibatch replay makes several in an iteration."""
    train = config.train
    warmup = min(train.warmup, train.iterations)
    return warmup + (train.iterations - warmup) * config.attack.updates_per_step


def _image_sources(config: Config) -> list[dict[str, str | int]]:
    found = find_images(config, Skipped())
    return count_sources([source.name for source in found.sources], [name for name, _ in found.held_out])


def _test_sets(options: Namespace, config: Config) -> TestSets:
    sets = study_sets(options.pairs, config)
    sets.pop(TUNING, None)
    return reduced(sets, _QUICK_TESTS if options.quick else None)


def _run_record(run_dir: Path, expected: int) -> dict[str, Any]:
    """The number of a run's updates, its `bench.record.summary`, and its progress.

    Raises:
        ValueError: the number of updates is not the expected one.
    """
    made = updates(parse_config(["--config", str(run_dir / "config.yaml")]))
    if made != expected:
        raise ValueError(f"{run_dir} holds a run of {made} updates, not of {expected}; choose another --work")
    return {"updates": made, **to_json(summary(run_dir)), "course": _course(run_dir)}


def _course(run_dir: Path) -> list[dict[str, float | None]]:
    """Means over `_COURSE` parts of a run: the loss, the adversary's increase of it, and the LR-PSNR."""
    # Validations have no loss, and neither have skipped updates.
    steps = [record for record in read_records(run_dir / METRICS_FILE) if record.get("loss") is not None]
    ends = sorted({(index + 1) * len(steps) // _COURSE for index in range(_COURSE)} - {0})
    course = []
    for begin, end in zip([0, *ends], ends, strict=False):
        part = steps[begin:end]
        attacked = [step for step in part if step["lr_psnr"] is not None]
        gains = [step["loss_after_attack"] / step["loss_before_attack"] for step in attacked]
        course.append(
            {
                "step": part[-1]["step"],
                "loss": statistics.fmean(step["loss"] for step in part),
                "gain": statistics.fmean(gains) if gains else None,
                "lr_psnr": statistics.fmean(step["lr_psnr"] for step in attacked) if attacked else None,
            }
        )
    return course


def _model_record(model: nn.Module, weights: Path, name: str) -> dict[str, Any]:
    content = weights.read_bytes()
    return {
        "file": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "scale": model.scale,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def worst_case_plan(options: Namespace, models: Sequence[Method], config: Config) -> Plan:
    """How the worst cases of bicubic interpolation, the twin and our model are measured, on held-out photographs."""
    titles = {OURS: options.config.stem, TWIN: "classical twin"}
    subjects = [model_subject(model, titles[model.title]) for model in models]
    # Crops of 24 x 24 LR pixels at every scale, so that a model x2 does not take four times as long as one x4.
    effort, crops, size = Effort(steps=10, restarts=1), 20, 24 * config.scale
    if options.quick:
        effort, crops, size = Effort(steps=1, restarts=1, generations=1, population=2), _QUICK_TESTS, 32
    return Plan(
        scale=config.scale,
        subjects=[bicubic_subject(config.scale), *reversed(subjects)],
        crops=make_crops(held_out_photographs(config), crops, size, seed=0),
        attackers=["F", "noise", "camera"],
        budgets=[34.0] if options.quick else [46.0, 40.0, 34.0, 28.0, 22.0],
        effort=effort,
        batch=10,
        seed=0,
        device=choose_device(config.device),
    )


def table(scores: Mapping[str, Scores], sets: TestSets) -> list[dict[str, Any]]:
    """A line for each of `studies.outcome.columns`: means, and the gains of our model, paired by image.

    Args:
        scores: of OURS, TWIN and BICUBIC.
        sets: the tests.

    Returns:
        Dictionaries of "test", "images", METRICS' names ({row: mean}) and "psnr_y_gain" ({other row: {"mean", "low",
        "high"}}, the 95% interval; null for a single image).
    """
    lines = []
    for title, column in columns(groups(sets)).items():
        found = {metric: {row: column_values(scores[row][metric], column) for row in scores} for metric in METRICS}
        line: dict[str, Any] = {"test": _test_title(title), "images": len(found["psnr_y"][OURS])}
        line |= {metric: {row: float(x.mean()) for row, x in rows.items()} for metric, rows in found.items()}
        line["psnr_y_gain"] = {}
        for row in (BICUBIC, TWIN):
            gain = paired([found["psnr_y"][OURS]], [found["psnr_y"][row]])
            ends = {"low": gain.low, "high": gain.high} if gain.images > 1 else {"low": None, "high": None}
            line["psnr_y_gain"][row] = {"mean": gain.mean, **ends}
        lines.append(line)
    return lines


def _test_title(column: str) -> str:
    if column in (CLEAN, ALL_STRENGTHS):
        return f"photographs, {'clean' if column == CLEAN else 'all but clean'}"
    if column in STRENGTHS:
        of = STRENGTHS[column]
        return f"photographs, {column} (blur {of.blur_sigma:g}, noise {of.noise_sigma:g}, JPEG {of.jpeg_quality})"
    return "real pairs, " + column.removeprefix(REPORTING).lstrip(", ")


def _shown_command(options: Namespace) -> str:
    """The command with folders by their last names."""
    parts = ["python -m studies.ship --data.hr", *(Path(folder).name for folder in options.data.hr)]
    if options.pairs:
        parts += ["--pairs", *(Path(folder).name for folder in options.pairs)]
    if options.config != CONFIG:
        parts += ["--config", options.config.name]
    output = "andfast/pretrained" if options.output.resolve() == PACKAGE.resolve() else options.output.name
    return " ".join([*parts, "--output", output, *(["--quick"] if options.quick else [])])


def write(
    folder: Path, weights: Path, config: Mapping[str, Any], record: Mapping[str, Any], worst_cases: Figure
) -> None:
    """Write a model's five files, NAME.safetensors, .yaml, .json, .md and .png, all of them or none.

    Args:
        folder: where to.
        weights: the model.
        config: the settings that it was trained with.
        record: the rest, from which the card is made.
        worst_cases: the chart in the card.

    Raises:
        OSError: they cannot be read or written.
    """
    name = record["name"]
    with ExitStack() as stack:
        # They replace existing files when all are complete.
        paths = {
            suffix: stack.enter_context(written_whole(folder / f"{name}.{suffix}"))
            for suffix in ("md", "json", "png", "yaml", "safetensors")
        }
        shutil.copyfile(weights, paths["safetensors"])
        settled = dump_yaml({**config, "run_dir": f"runs/{name}"})
        paths["yaml"].write_text(
            f"# What {name} was trained with; data.hr is to be given.\n{settled}", encoding="utf-8"
        )
        write_json(paths["json"], record)
        worst_cases.savefig(paths["png"], format="png")
        paths["md"].write_text(model_card(record), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
