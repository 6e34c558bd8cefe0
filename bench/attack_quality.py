"""Judge attacks against a trained model: `python -m bench.attack_quality --model FILE [--data.hr DIR...]`.

What the adversary is for is a larger loss. Every variant runs on the same batches, against the same fresh networks
and within the same budgets, and is measured by the loss increase that the exact attack (PGD, 5 and 20 steps) finds
there, and by what it costs.
"""

from __future__ import annotations

import datetime
import json
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from tqdm import tqdm

from andfast.attack import PGD
from andfast.data.images import DataError
from andfast.data.patches import PatchBatches
from andfast.evaluation import environment
from andfast.models import load_model
from andfast.training.config import AttackConfig, DegradationConfig
from andfast.training.images import Skipped, training_sources
from andfast.training.options import Parser, join_lists
from andfast.training.randomness import step_generator
from andfast.utils.console import console
from andfast.utils.devices import choose_device, choose_precision
from andfast.utils.files import make_folder, write_text, written_whole
from andfast.utils.memory import keep_freed_memory
from bench.attack_findings import as_json, chart, table
from bench.attack_judge import EXACT, Finding, Judge, NothingFoundError
from bench.attack_variants import FORMS, Variant, default_variants, parse_variant

_NAME = "attack_quality"
# What the variants have in common.
_COMMON = ("step_size", "step_ratio", "epsilon", "scale_factors", "lr_psnr")


def make_parser() -> Parser:
    """The command line of `python -m bench.attack_quality`."""
    parser = Parser(
        prog="python -m bench.attack_quality",
        usage="%(prog)s --model FILE [--data.hr DIR...] [--KEY VALUE ...]",
        allow_abbrev=False,
        description="Measure how much of the exact attack's loss increase other attacks find, and what they cost: "
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
        work = Work(options)
    except (ValueError, OSError) as error:  # among them DataError and ModelError
        print(f"error: {error}", file=sys.stderr)
        return 2
    if work.device.type == "cpu":
        keep_freed_memory()
    try:
        findings = work.judge()
    except (NothingFoundError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    command = shlex.join(["python", "-m", f"andfast.{_NAME}", *map(_last_name, arguments)])
    results, plot = work.output / f"{_NAME}.json", work.output / f"{_NAME}.png"
    write_text(results, json.dumps(_plain(work.record(findings, command)), indent=1) + "\n")
    with written_whole(plot) as temporary:
        chart(findings, work.describe()).save(temporary)
    print(f"{table(findings)}\n\n{work.describe()}\nwritten: {results}, {plot}")
    return 0


class Work:
    """What is compared, and on what. Everything that can be wrong with the options is found out here.

    Raises:
        ValueError, OSError: options that do not go together, or files that are not what they should be.
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
        types = [_name(kind) for kind in _fast_types(self.device) if kind != self.precision]
        names = self.options.variants or default_variants(networks, types)
        variants = [parse_variant(name, exact) for name in dict.fromkeys([*EXACT, *names])]
        for variant in variants:
            if variant.method == "subset" and networks != 1:
                raise ValueError(f"variant {variant.name} needs --num_networks 1, not {self.options.num_networks}")
        return variants

    def judge(self) -> list[Finding]:
        """Run everything; the findings in the order of the variants.

        Raises:
            DataError: no image can be read.
            NothingFoundError: the exact attack made nothing worse.
        """
        batches = []
        for number in range(self.options.batches):
            patches, failures = self.patches[number]
            self.skipped.report(failures)
            batches.append(patches.to(self.device).float() / 255)
        judge = Judge(self.model, self.network, self.precision)
        total = (1 + len(batches)) * len(self.variants)
        # None: shown on terminals only.
        with tqdm(total=total, unit="attack", dynamic_ncols=True, disable=None) as bar:
            return judge(self.variants, batches, self._random, bar.update)

    def _random(self, number: int) -> torch.Generator:
        return step_generator(self.options.seed, number, self.device)

    def describe(self) -> str:
        """What the comparison was made with, in a line."""
        settings = self._settings()
        return (
            "{generator} with {parameters:,} parameters on {device} in {precision}; {batches} batches of {batch_size} "
            "images of {patch_size} x {patch_size}, num_networks {num_networks}".format(**settings)
        )

    def _settings(self) -> dict[str, Any]:
        """Folders and files by their last names: where they lie is this machine's affair."""
        options = self.options
        degradation = {key: value for key, value in vars(options.degradation).items() if key != "num_networks"}
        return {
            "model": Path(options.model).name,
            "generator": f"{type(self.model).__name__} x{self.model.scale}",
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "data": [Path(folder).name for folder in options.data.hr],
            "batches": options.batches,
            "batch_size": options.batch_size,
            "patch_size": options.patch_size,
            "num_networks": options.num_networks,
            "seed": options.seed,
            "device": str(self.device),
            "precision": _name(self.precision),
            "degradation": degradation | {"computed_in": _name(self.network.dtype)},
            "attack": {name: getattr(options.attack, name) for name in _COMMON},
        }

    def record(self, findings: Sequence[Finding], command: str) -> dict[str, Any]:
        """Everything, and which machine, versions and settings it comes from."""
        return {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": environment.commit(),
            "command": command,
            "machine": environment.machine(),
            "settings": self._settings(),
            "variants": as_json(findings),
        }


def _fast_types(device: torch.device) -> list[torch.dtype]:
    """The types that G can compute in without being slower than in float32."""
    if device.type == "cuda":
        return [torch.float32, torch.bfloat16, torch.float16]
    return list(dict.fromkeys([torch.float32, choose_precision("auto", device, "training")]))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _last_name(argument: str) -> str:
    """An argument with a path in it cut down to the path's last name."""
    option, equals, value = argument.rpartition("=")
    return option + equals + (Path(value).name if "/" in value or "\\" in value else value)


def _plain(value: Any) -> Any:
    """JSON types; JSON has no word for infinity."""
    if hasattr(value, "__dataclass_fields__"):
        return _plain(vars(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
