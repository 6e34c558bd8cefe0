"""Make LR images from HR images as training does: `python -m andfast.degrade HR... --output DIR`.

Writes pairs, DIR/HR and DIR/LR with the same names, for any trainer. All settings of `andfast.train` are accepted, so
that the `config.yaml` of a run can be given. Used are `scale`, `seed`, `device`, `attack`, `degradation`, and
`train.precision` as the type that the adversary computes the model in.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from torch import Tensor
from tqdm import tqdm

from andfast.attack.base import NetworkAttack
from andfast.data.images import DataError, image_size, write_png
from andfast.data.listing import skipped_message
from andfast.data.paired_folders import list_hr_folder
from andfast.data.tensors import to_array, to_tensor
from andfast.inference.models import find_model
from andfast.inference.output_paths import plan_outputs
from andfast.losses import l1_objective, no_objective, relative_objective
from andfast.models.frozen import FrozenModule
from andfast.ops.precision import choose_precision
from andfast.pretrained import DEFAULT, model_file, pretrained_names
from andfast.training.attack_config import MixConfig
from andfast.training.checkpoints import different, flat, renamed
from andfast.training.config import Config, TrainConfig
from andfast.training.degraded_images import degrade, draw_degraded, image_number, read_hr
from andfast.training.memory_check import check_search
from andfast.training.options import Parser, one_of_andfast
from andfast.training.samples import CROP, ROWS
from andfast.utils.command_line import UsageError, failure_line, one_line
from andfast.utils.console import console
from andfast.utils.devices import choose_device
from andfast.utils.files import check_name, make_folder, remove_unfinished, write_text
from andfast.utils.formatting import counted
from andfast.utils.locks import locked
from andfast.utils.memory import is_out_of_memory, keep_freed_memory
from andfast.utils.yaml_files import YamlError, dump_yaml, read_yaml

RECORD_FILE = "degrade.yaml"

# The methods that need no model.
_WITHOUT_MODEL = ("random", "none", "bsrgan", "real_esrgan")


def make_parser() -> Parser:
    """The command line of `python -m andfast.degrade`."""
    parser = Parser(
        prog="python -m andfast.degrade",
        usage="%(prog)s HR... --output DIR [--model NAME_OR_FILE] [--config FILE] [--KEY VALUE ...]",
        allow_abbrev=False,
        description="Make LR images from HR images by the identity, a random deviation of it, the adversary or another "
        "degradation of andfast.train, and write pairs for other trainers: DIR/HR and DIR/LR, PNG, with the same "
        "names. HR images are cropped to multiples of the scale. Pairs that DIR has already are not made again. "
        "Settings are those of andfast.train; scale, seed, device, attack, degradation and train.precision count.",
        epilog="Exit status: 0 if all images were degraded, 1 if some could not be, 2 if nothing was begun.",
    )
    add = parser.add_argument
    add("inputs", nargs="+", type=str, metavar="HR", help="image, or folder of images, searched recursively")
    add("--output", type=str, required=True, metavar="DIR", help="where HR/ and LR/ are written; sub-folders are kept")
    add(
        "--model", type=str, default=DEFAULT, metavar="NAME_OR_FILE",
        help=f"the model to attack: one of andfast's own ({', '.join(pretrained_names()) or 'none here'}) "
        f"or a model file. Not needed with --identity and by the methods {', '.join(_WITHOUT_MODEL)}",
    )  # fmt: skip
    add("--identity", action="store_true", help="search nothing: LR images are pooled, behind the lens if there is one")
    add("--crop", type=PositiveInt | None, default=None, metavar="PIXELS", help="take the middle of larger images")
    add(
        "--sheet", type=str | None, default=None, metavar="FILE", help="draw the results by parameter group: a PNG file"
    )
    add(
        "--config",
        action="config",
        help=f"a YAML file with any of the settings below, as a run's config.yaml, or {one_of_andfast()}",
    )
    parser.add_class_arguments(Config)
    return parser


def _used_settings(settings: Namespace) -> Config:
    """Build a configuration of the used settings only, so that errors in others do not matter; raises ValueError."""
    attack = settings.attack
    if attack.method == "pairs":
        raise ValueError("attack.method is pairs: that degrades no images")
    return Config(
        scale=settings.scale,
        seed=settings.seed,
        device=settings.device,
        attack=replace(attack, mix=MixConfig()),
        # One degradation network per image.
        degradation=replace(settings.degradation, num_networks=1),
        train=TrainConfig(batch_size=1, patch_size=16 * settings.scale, precision=settings.train.precision),
    )


class Job:
    """The checked options: which images are degraded, how, and where the pairs are written.

    `held` holds the lock of the output folder. Raises ValueError, OSError or UsageError.
    """

    def __init__(self, options: Namespace, config: Config, held: ExitStack) -> None:
        self.config, self.identity = config, options.identity
        # YAML does not know the parser's subclass of int.
        self.crop = None if options.crop is None else int(options.crop)
        method = config.attack.method
        self.by_network = isinstance(config.attack.build(), NetworkAttack)
        if self.identity and not self.by_network:
            raise ValueError(f"attack.method is {method}: that has no networks for --identity")
        if self.crop is not None and self.crop < 2 * config.scale:
            raise ValueError(f"--crop is {self.crop}; it must be at least {2 * config.scale}")
        self.output = Path(options.output)
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"--output {self.output}: not a folder")
        self.pairs = self._find(options.inputs)
        self.sheet = None if options.sheet is None else Path(options.sheet)
        if self.sheet is not None and self.sheet.suffix.lower() != ".png":
            raise ValueError(f"--sheet {self.sheet}: a sheet is a .png file")
        if self.sheet is not None:
            make_folder(self.sheet.parent)
            check_name(self.sheet)
        self.device = choose_device(config.device)
        self.model, self.view, self._record_of_model = None, None, None
        if not (self.identity or method in _WITHOUT_MODEL):
            self._load_model(options.model)
        self.output.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(self.output))
        self._open()

    def _find(self, inputs: Sequence[str]) -> list[tuple[Path, str]]:
        """Find (source, name) of the images; the name is the path below HR/ and LR/."""
        given, inside = [Path(path) for path in inputs], self.output.resolve()
        for path in given:
            if inside in path.resolve().parents:
                raise ValueError(f"{path} lies in --output {self.output}; choose another folder for the results")
        hr, lr = self.paths("")
        plan = plan_outputs(given, hr, listing_of=list_hr_folder)
        # Earlier results are no input, if DIR is an input folder or inside one.
        made = {lr.resolve(), inside} - {path.resolve() for path in given}
        self.passed_over = [each for each in plan.passed_over if made.isdisjoint(each.path.resolve().parents)]
        found = [pair for pair in plan.pairs if made.isdisjoint(pair[0].resolve().parents)]
        return [(source, target.relative_to(hr).as_posix()) for source, target in found]

    def _load_model(self, name: str) -> None:
        config = self.config
        self.model = find_model(name, self.device).requires_grad_(False)
        if self.model.scale != config.scale:
            raise ValueError(f"--model {name} has the scale {self.model.scale}; give --scale {self.model.scale}")
        wanted = config.train.precision if config.attack.dtype == "auto" else config.attack.dtype
        precision = choose_precision(wanted, self.device, "training")
        self.view = FrozenModule(self.model, precision)
        self.baseline = config.attack.load_baseline(config.scale, self.device, precision)
        self._record_of_model = hashlib.sha256(model_file(name).read_bytes()).hexdigest()

    def _open(self) -> None:
        """Begin the output folder, or continue it; refuse other settings than it was begun with."""
        settings = self.config.to_dict()
        record = {
            **{key: settings[key] for key in ("scale", "seed", "degradation", "attack")},
            "identity": self.identity,
            "crop": self.crop,
            "model_sha256": self._record_of_model,
        }
        path = self.output / RECORD_FILE
        if path.exists():
            try:
                # Settings that are newer than the record had their defaults.
                defaults = Config().to_dict()
                before = flat({key: defaults[key] for key in ("degradation", "attack")})
                before |= renamed(flat(read_yaml(path)))
            except (YamlError, AttributeError) as error:
                raise ValueError(f"{path}: not a record of andfast.degrade; choose another --output") from error
            now = flat(record)
            changed = different(now, before)
            if changed:
                lines = "".join(f"\n  {key}: {now.get(key)}, then {before.get(key)}" for key in changed)
                raise ValueError(
                    f"--output {self.output} was begun with other settings; choose another folder, or give them:{lines}"
                )
            for folder in {path.parent for _, name in self.pairs for path in self.paths(name)}:
                remove_unfinished(folder)
            return
        write_text(path, dump_yaml(record))

    def paths(self, name: str) -> tuple[Path, Path]:
        """The files of the pair of that name: HR, LR."""
        return self.output / "HR" / name, self.output / "LR" / name

    def read(self, source: Path) -> np.ndarray:
        """Read an HR image; see `andfast.training.degraded_images.read_hr`."""
        return read_hr(source, self.config.scale, self.crop)

    def degrade(self, image: np.ndarray, name: str, parts: bool = False) -> dict[str, Tensor]:
        """Call `degraded_images.degrade` with random numbers that depend on the seed and the name alone.

        Raises MemoryError if the search needs more than the free memory.
        """
        hr = to_tensor(image).to(self.device)
        if self.by_network:
            check_search(self.config.degradation, self.config.scale, self.view, image.shape[:2], self.device)
        objective = no_objective
        if self.view is not None:
            objective = relative_objective(l1_objective(self.view), self.baseline)
        return degrade(hr, self.config, objective, 1, image_number(name), self.identity, parts)


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; `arguments` default to those of the process. Returns the exit status."""
    parser = make_parser()
    options = parser.instantiate(parser.parse_args(arguments))
    with ExitStack() as held:
        return _run(options, held)


def _run(options: Namespace, held: ExitStack) -> int:
    try:
        job = Job(options, _used_settings(options), held)
    except (ValueError, OSError, UsageError) as error:  # among them DataError and ModelError
        print(f"error: {error}", file=sys.stderr)
        return 2
    if job.device.type == "cpu":
        keep_freed_memory()
    try:
        failed = _make_pairs(job)
        failed += job.sheet is not None and not _draw(job)
        if job.passed_over:
            print(skipped_message(job.passed_over), file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGINT
    return 1 if failed else 0


def _make_pairs(job: Job) -> int:
    """Degrade all images without results; return the number of failures."""
    failed = cropped = done = 0
    # disable=None: shown on terminals only.
    for source, name in tqdm(job.pairs, unit="image", dynamic_ncols=True, disable=None):
        hr, lr = job.paths(name)
        if all(map(os.path.exists, (hr, lr))):
            done += 1
            continue
        try:
            check_name(lr)
            image = job.read(source)
            *_, made = job.degrade(image, name).values()
            write_png(hr, image)
            write_png(lr, to_array(made))
            cropped += image.shape[:2] != image_size(source)
        except (DataError, OSError, MemoryError, RuntimeError) as error:
            failed += 1
            _report(source, error)
    print(f"{len(job.pairs) - failed} of {counted(len(job.pairs), 'image')} degraded to {job.output}", end="")
    print(f", {done} of them before" if done else "", end="")
    print(f", {failed} failed" if failed else "")
    if cropped:
        what = f"multiples of {job.config.scale}" if job.crop is None else f"their middle, {job.crop} at most"
        print(f"cropped: {counted(cropped, 'HR image')} to {what}")
    return failed


def _report(source: Path, error: Exception) -> None:
    reason = one_line(error)
    if is_out_of_memory(error):
        reason = f"out of memory ({reason}); try --crop"
    tqdm.write(failure_line(source, reason), file=sys.stderr)


def _draw(job: Job) -> bool:
    """Draw the centres of the first images with the effect of each parameter group; return whether it worked."""
    drawn: list[tuple[Tensor, dict[str, Tensor]]] = []
    for source, name in job.pairs:
        if len(drawn) == ROWS:
            break
        try:
            image = job.read(source)
            drawn.append((to_tensor(image).to(job.device), job.degrade(image, name, parts=True)))
        except (DataError, MemoryError, RuntimeError) as error:
            _report(source, error)
    if not drawn:
        return False
    scale = job.config.scale
    size = min(CROP // scale, *(length for _, made in drawn for lr in made.values() for length in lr.shape[2:]))
    hr = torch.cat([_middle(image, size, scale) for image, _ in drawn])
    made = {label: torch.cat([_middle(each[label], size) for _, each in drawn]) for label in drawn[0][1]}
    try:
        write_png(job.sheet, draw_degraded(hr, made, job.model))
    except OSError as error:
        _report(job.sheet, error)
        return False
    print(f"sheet: {job.sheet}")
    return True


def _middle(image: Tensor, size: int, scale: int = 1) -> Tensor:
    """The central `size` x `size` LR pixels of (1, 3, h, w), or the HR pixels there."""
    top, left = ((length // scale - size) // 2 * scale for length in image.shape[2:])
    return image[..., top : top + size * scale, left : left + size * scale]


if __name__ == "__main__":
    sys.exit(main())
