"""Compare attacks on a trained model: `python -m bench.attack_quality --model FILE [--data.hr DIR...]`.

Every variant attacks the same batches, with the same networks and budgets. Its increase of the loss is given relative
to the exact attack's (PGD, 5 and 20 steps), beside its cost.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from tqdm import tqdm

from andfast.attack import PGD
from andfast.data.images import DataError
from andfast.data.patches import PatchBatches
from andfast.models import load_model
from andfast.ops.precision import choose_precision
from andfast.training.attack_config import AttackConfig
from andfast.training.config import DegradationConfig
from andfast.training.images import Skipped, training_sources
from andfast.training.options import Parser, join_lists
from andfast.utils.charts import require_matplotlib, save_figure
from andfast.utils.console import console
from andfast.utils.devices import choose_device
from andfast.utils.files import make_folder, write_text
from andfast.utils.formatting import dtype_name, markdown_table, to_json
from andfast.utils.memory import keep_freed_memory
from andfast.utils.rng import step_generator
from bench.attack_benchmark import (
    BASELINES,
    FORMS,
    PASSES,
    SHARED,
    AttackBenchmark,
    Measurement,
    NoIncreaseError,
    Variant,
    default_variants,
    parse_variant,
)
from bench.record import origin
from bench.scatter import Point, scatter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME = "attack_quality"
# The settings that the variants have in common.
_COMMON = ("step_size", "step_ratio", "epsilon", "scale_factors", "psnr_range")


def make_parser() -> Parser:
    """The command line of `python -m bench.attack_quality`."""
    parser = Parser(
        prog="python -m bench.attack_quality",
        usage="%(prog)s --model FILE [--data.hr DIR...] [--KEY VALUE ...]",
        allow_abbrev=False,
        description="Measure the loss increase of attacks, relative to the exact attack, and their cost: "
        f"prints a table, and writes {_NAME}.json and {_NAME}.png. Models are .safetensors, .pth or .pt.",
        epilog=f"Variants are {FORMS}. For example: pgd-3@0.5 pgd-2@0.75+last yopo-3-2 free-4 subset-5-0.25 "
        "pgd-5:bfloat16. Exit status: 0 done, 2 not begun, 3 failed.",
    )
    add = parser.add_argument
    add("--model", type=str, required=True, metavar="FILE", help="the generator to attack: RRDBNet or Compact")
    add(
        "--data.hr", type=list[str], default=[], metavar="DIR...",
        help="folders of HR images, searched recursively; none: scikit-image's bundled photographs",
    )  # fmt: skip
    add("--output", type=str, default=f"runs/{_NAME}", metavar="DIR", help="where the results are written")
    add(
        "--variants", type=list[str], default=[], metavar="NAME...",
        help="the attacks to compare, see below; none: a choice. The exact ones, pgd-5 and pgd-20, always take part",
    )  # fmt: skip
    add("--batches", type=PositiveInt, default=8, help="batches that each attack is run on")
    add("--batch_size", type=PositiveInt, default=8, help="images a batch")
    add("--patch_size", type=PositiveInt, default=64, help="height and width of the HR patches")
    add(
        "--num_networks", type=PositiveInt | Literal["batch"], default=DegradationConfig.num_networks,
        help="degradation networks a batch; 'batch': each image its own; subset takes part with 1",
    )  # fmt: skip
    add("--seed", type=NonNegativeInt, default=0, help="of patches, networks and budgets")
    add(
        "--precision", type=Literal["auto", "float32", "bfloat16", "float16"], default="auto",
        help="the type G computes in where a variant does not say; auto: bfloat16 on GPUs, and CPUs with AMX",
    )  # fmt: skip
    add("--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="auto: CUDA where there is one")
    parser.add_class_arguments(DegradationConfig, "degradation", skip={"num_networks"})
    parser.add_class_arguments(AttackConfig, "attack", skip=set(AttackConfig.__dataclass_fields__) - set(_COMMON))
    return parser


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 not begun, 3 failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    options = parser.instantiate(parser.parse_args(join_lists(arguments, "--data.hr", "--variants")))
    try:
        require_matplotlib()
        work = Work(options)
    except (ValueError, OSError) as error:  # among them DataError and ModelError
        print(f"error: {error}", file=sys.stderr)
        return 2
    if work.device.type == "cpu":
        keep_freed_memory()
    try:
        measurements = work.run()
    except (NoIncreaseError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    results, plot = work.output / f"{_NAME}.json", work.output / f"{_NAME}.png"
    write_text(results, json.dumps(to_json(work.record(measurements, arguments)), indent=1) + "\n")
    save_figure(chart(measurements, work.describe()), plot)
    print(f"{table(measurements)}\n\n{work.describe()}\nwritten: {results}, {plot}")
    return 0


class Work:
    """The model, variants and images of a run; checks all options.

    Raises:
        ValueError, OSError: options that contradict each other, or invalid files.
    """

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.output = Path(options.output)
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"--output {self.output}: not a folder")
        self.device = choose_device(options.device)
        self.precision = choose_precision(options.precision, self.device, "training")
        networks = options.batch_size if options.num_networks == "batch" else options.num_networks
        if options.batch_size % networks:
            raise ValueError(
                f"--num_networks is {networks}; it must divide --batch_size, {options.batch_size}, or be 'batch'"
            )
        self.variants = self._variants(networks)
        self.model = load_model(options.model, self.device).eval()
        scale = self.model.scale
        if options.patch_size % scale or options.patch_size < 2 * scale:
            raise ValueError(
                f"--patch_size is {options.patch_size}; it must be a multiple of the model's scale, {scale}, and at "
                f"least {2 * scale}"
            )
        self.network = options.degradation.build(scale, networks, self.device)
        self.skipped = Skipped()
        sources = training_sources(options.data.hr, options.patch_size, self.skipped)
        self.patches = PatchBatches(sources, patch=options.patch_size, batch=options.batch_size, seed=options.seed)
        make_folder(self.output)

    def _variants(self, networks: int) -> list[Variant]:
        exact = PGD(**{name: getattr(self.options.attack, name) for name in _COMMON})
        types = [dtype_name(kind) for kind in _fast_types(self.device) if kind != self.precision]
        names = self.options.variants or default_variants(networks, types)
        variants = [parse_variant(name, exact) for name in dict.fromkeys([*BASELINES, *names])]
        for variant in variants:
            if variant.method == "subset" and networks != 1:
                raise ValueError(f"variant {variant.name} needs --num_networks 1, not {self.options.num_networks}")
        return variants

    def run(self) -> list[Measurement]:
        """Run the benchmark; the measurements are in the order of the variants.

        Raises:
            DataError: no image can be read.
            NoIncreaseError: a baseline increased no loss.
        """
        batches = []
        for number in range(self.options.batches):
            patches, failures = self.patches[number]
            self.skipped.report(failures)
            batches.append(patches.to(self.device).float() / 255)
        benchmark = AttackBenchmark(self.model, self.network, self.precision)
        total = (1 + len(batches)) * len(self.variants)
        # None: shown on terminals only.
        with tqdm(total=total, unit="attack", dynamic_ncols=True, disable=None) as bar:
            return benchmark(self.variants, batches, self._random, bar.update)

    def _random(self, number: int) -> torch.Generator:
        return step_generator(self.options.seed, number, self.device)

    def describe(self) -> str:
        """The model, device and batches, in one line."""
        settings = self._settings()
        return (
            "{generator} with {parameters:,} parameters on {device} in {precision}; {batches} batches of {batch_size} "
            "images of {patch_size} x {patch_size}, num_networks {num_networks}".format(**settings)
        )

    def _settings(self) -> dict[str, Any]:
        """All settings; folders and files by their last names."""
        options = self.options
        degradation = {key: value for key, value in vars(options.degradation).items() if key != "num_networks"}
        return {
            "model": Path(options.model).name,
            "generator": f"{type(self.model).__name__} x{self.model.scale}",
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "data": [Path(folder).name for folder in options.data.hr],
            **{key: getattr(options, key) for key in ("batches", "batch_size", "patch_size", "num_networks", "seed")},
            "device": str(self.device),
            "precision": dtype_name(self.precision),
            "degradation": degradation | {"computed_in": dtype_name(self.network.dtype)},
            "attack": {name: getattr(options.attack, name) for name in _COMMON},
        }

    def record(self, measurements: Sequence[Measurement], arguments: Sequence[str]) -> dict[str, Any]:
        """The content of the result file."""
        made = origin(f"bench.{_NAME}", arguments)
        return {**made, "settings": self._settings(), "variants": as_json(measurements)}


def _fast_types(device: torch.device) -> list[torch.dtype]:
    """The types that G can compute in without being slower than in float32."""
    if device.type == "cuda":
        return [torch.float32, torch.bfloat16, torch.float16]
    return list(dict.fromkeys([torch.float32, choose_precision("auto", device, "training")]))


def by_name(measurements: Sequence[Measurement], name: str) -> Measurement:
    """The measurement of the variant with that name."""
    return next(measurement for measurement in measurements if measurement.variant.name == name)


def pareto(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The Pareto front, the fastest first: no other increases the loss more in as little time."""
    baseline = by_name(measurements, BASELINES[0])
    ratio = {id(each): statistics.fmean(each.relative_to(baseline)) for each in measurements}
    front: list[Measurement] = []
    for each in sorted(measurements, key=lambda each: (each.median_seconds, -ratio[id(each)])):
        if not front or ratio[id(each)] > ratio[id(front[-1])]:
            front.append(each)
    return front


def _spread(values: Sequence[float]) -> float:
    """Standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def table(measurements: Sequence[Measurement]) -> str:
    """A Markdown table with a row a variant; those on the Pareto front are bold."""
    exact, front = by_name(measurements, BASELINES[0]), pareto(measurements)
    titles = ["attack", f"loss increase / {BASELINES[0]}", f"/ {BASELINES[1]}", "ms a batch", "time", "peak MiB"]
    rows = []
    for measurement in measurements:
        shares = [measurement.relative_to(by_name(measurements, name)) for name in BASELINES]
        passes = measurement.mean_passes()
        name = measurement.variant.name
        rows.append([
            f"**{name}**" if measurement in front else name,
            *(f"{statistics.fmean(share):.1%} ± {_spread(share):.1%}" for share in shares),
            f"{1000 * measurement.median_seconds:.1f}",
            f"{measurement.median_seconds / exact.median_seconds:.2f}x",
            f"{measurement.peak_memory / 2**20:.1f}",
            *(f"{passes[name]:.2f}".rstrip("0").rstrip(".") for name in PASSES),
        ])  # fmt: skip
    return markdown_table([*titles, *PASSES], rows)


def as_json(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """The measurements as JSON: "each" has a value a batch, "spread" is the standard deviation over the batches."""
    exact, front = by_name(measurements, BASELINES[0]), pareto(measurements)

    def spread(values: list[float]) -> dict[str, Any]:
        return {"mean": statistics.fmean(values), "spread": _spread(values), "each": values}

    return [
        {
            "name": measurement.variant.name,
            "attack": type(measurement.variant.attack).__name__,
            "settings": {
                item.name: getattr(measurement.variant.attack, item.name)
                for item in fields(measurement.variant.attack)
                if item.name not in SHARED
            },
            "dtype": measurement.variant.dtype and dtype_name(measurement.variant.dtype),
            **{f"share_of_{name}": spread(measurement.relative_to(by_name(measurements, name))) for name in BASELINES},
            "loss_increase": spread(measurement.increase),
            "lr_psnr": statistics.fmean(measurement.lr_psnr),
            "seconds": {"median": measurement.median_seconds, "each": measurement.seconds},
            f"time_ratio_to_{BASELINES[0]}": measurement.median_seconds / exact.median_seconds,
            "peak_memory": measurement.peak_memory,
            "passes": measurement.mean_passes(),
            "on_pareto_front": measurement in front,
        }
        for measurement in measurements
    ]


def chart(measurements: Sequence[Measurement], subtitle: str) -> Figure:
    """Loss increase against time, both relative to the exact attack's, with the Pareto front."""
    exact, front = by_name(measurements, BASELINES[0]), pareto(measurements)
    points = [
        Point(
            label=measurement.variant.name,
            group=measurement.variant.method,
            x=measurement.median_seconds / exact.median_seconds,
            y=100 * statistics.fmean(share),
            spread=100 * _spread(share) / len(share) ** 0.5,  # the standard error of the mean
            on_line=measurement in front,
        )
        for measurement in measurements
        for share in [measurement.relative_to(exact)]
    ]
    return scatter(
        "Loss increase by attacks, against their time",
        subtitle,
        f"time of the attack, relative to {BASELINES[0]}",
        f"loss increase, % of {BASELINES[0]}'s (mean over batches, bars: its standard error)",
        "Pareto front",
        points,
        # Attacks lie close together, far above a random deviation.
        least=min(point.y - point.spread for point in points if point.group != "random") - 5,
    )


if __name__ == "__main__":
    sys.exit(main())
