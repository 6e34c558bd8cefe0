"""Profile a training step by phases: `python -m bench.profile [--generator NAME] [--batch B] ... [--output FILE]`.

Prints a table of the phases, which have no gaps, so that they add up to the profiled steps; and the time of the same
steps without the profiler. On a CPU in float32, the exact attack's convolutions have a limit beside them: a quarter of
their products, which is what Winograd's tiles of 4 x 4 results take, at the rate of a large matrix product, and their
weights, inputs and results, read or written once, at the rate of a large copy; both measured in the same run. FILE gets
the same as JSON, with the machine, the versions, the command and the date.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from andfast.attack import Attack
from andfast.data.patches import ImageArray, PatchBatches, PatchLoader, make_loader
from andfast.data.photographs import training_photographs
from andfast.models.frozen import AutocastModule
from andfast.training.attack_config import METHODS, AttackConfig
from andfast.training.config import Config, DataConfig, DegradationConfig, GeneratorConfig, TrainConfig
from andfast.training.trainer import Trainer
from andfast.utils.console import console
from andfast.utils.files import write_text
from andfast.utils.formatting import markdown_table
from andfast.utils.memory import keep_freed_memory
from bench.paper import Degradation
from bench.record import origin
from bench.steps import Case, written_generator
from bench.timing import copy_rate, matmul_rate

DATA, OTHER = "wait for data", "other"
DRAW = "draw identity networks"
F_FORWARD, F_BACKWARD = "F forward", "F backward"
G_FORWARD, G_BACKWARD = "G forward, frozen", "G input gradient"
ATTACK = "steps, projection, budget"
UPDATE_FORWARD, UPDATE_BACKWARD, UPDATE_ADAM = "update: G forward", "update: G backward", "update: Adam, EMA, losses"
PHASES = [
    DATA, DRAW, F_FORWARD, F_BACKWARD, G_FORWARD, G_BACKWARD, ATTACK,
    UPDATE_FORWARD, UPDATE_BACKWARD, UPDATE_ADAM, OTHER,
]  # fmt: skip


class Timeline:
    """Time by phase: time belongs to the phase that began last. On a GPU, time in the stream."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._marks: list[tuple[Any, str]] = []

    @property
    def phase(self) -> str:
        """The current phase."""
        return self._marks[-1][1] if self._marks else OTHER

    def enter(self, phase: str) -> str:
        """Begin a phase; returns the one that ends."""
        before = self.phase
        now: Any = torch.cuda.Event(enable_timing=True) if self.on_gpu else time.perf_counter()
        if self.on_gpu:
            now.record()
        self._marks.append((now, phase))
        return before

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """A phase inside another one, which continues after it."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def seconds(self) -> dict[str, float]:
        """The time of each phase up to the last call of `enter`; clears the timeline."""
        if self.on_gpu:
            torch.cuda.synchronize()
        found = dict.fromkeys(PHASES, 0.0)
        for (start, phase), (end, _) in zip(self._marks, self._marks[1:], strict=False):
            found[phase] += start.elapsed_time(end) / 1000 if self.on_gpu else end - start
        self._marks.clear()
        return found


@contextmanager
def watched(trainer: Trainer, timeline: Timeline) -> Iterator[None]:
    """Record the phases at calls that every method and backend makes, but not compiled steps (CUDA graphs)."""

    in_attack = (ATTACK, G_FORWARD)

    def wrap(
        function: Callable[..., Any], within: str | None = None, after: str | None = None, unless: Sequence[str] = ()
    ) -> Callable[..., Any]:
        """`function` within a phase, and with another one after it, unless a call begins in one of some phases."""

        def run(*arguments: Any, **options: Any) -> Any:
            begins = after is not None and timeline.phase not in unless
            with timeline.within(within) if within else nullcontext():
                result = function(*arguments, **options)
            if begins:
                timeline.enter(after)
            return result

        return run

    class WatchedModule(AutocastModule):
        def __call__(self, lr: Tensor) -> Tensor:
            timeline.enter(UPDATE_FORWARD)
            return super().__call__(lr)

    attack, gradient = Attack.__call__, torch.autograd.grad

    def watched_attack(self: Attack, network: Any, hr: Tensor, objective: Any, *rest: Any, **options: Any) -> Any:
        return attack(self, network, hr, wrap(objective, G_FORWARD), *rest, **options)

    def watched_gradient(outputs: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        # G's gradient is that of images, F's that of the rows of a matrix.
        of_images = (inputs if isinstance(inputs, Tensor) else inputs[0]).ndim == 4
        with timeline.within(G_BACKWARD if of_images else F_BACKWARD):
            return gradient(outputs, inputs, *rest, **options)

    bank = type(trainer.make_bank(1))
    replacements = [
        (bank, "reset_identity", wrap(bank.reset_identity, DRAW)),
        (bank, "forward", wrap(bank.forward, F_FORWARD)),
        (Attack, "__call__", wrap(watched_attack, ATTACK, UPDATE_FORWARD, in_attack)),
        (torch.autograd, "grad", watched_gradient),
        (Tensor, "backward", wrap(Tensor.backward, UPDATE_BACKWARD, UPDATE_ADAM)),
        (trainer.optimizer, "step", wrap(trainer.optimizer.step, after=UPDATE_ADAM)),
        (trainer, "autocast", WatchedModule(trainer.autocast.module, trainer.autocast.dtype)),
    ]
    for name in ("begin", "clean"):  # of a replay, and of clean images
        if hasattr(trainer.attack, name):
            method = wrap(getattr(trainer.attack, name), after=UPDATE_FORWARD, unless=in_attack)
            replacements.append((trainer.attack, name, method))
    with ExitStack() as stack:
        for target, name, replacement in replacements:
            stack.enter_context(mock.patch.object(target, name, replacement))
        yield


def make_config(options: argparse.Namespace) -> Config:
    """The settings of the profiled run: after the warm-up, on the bundled photographs."""
    return Config(
        data=DataConfig(workers=options.workers),
        generator=GeneratorConfig(options.generator, options.features, options.depth),
        degradation=DegradationConfig(options.networks),
        attack=AttackConfig(**options.attack),
        train=TrainConfig(
            iterations=10**6,
            warmup=10**6 if options.method == "none" else 0,
            ramp=0,
            batch_size=options.batch,
            patch_size=options.patch,
            schedule="constant",
            learning_rate=1e-4,
        ),
    )


def profile(config: Config, rounds: int, default_malloc: bool = False) -> dict[str, Any]:
    """Mean seconds of a step: of each phase, their sum, and of whole steps without the profiler.

    Every step is done twice, with and without the profiler, on the same images and identity networks, so that the
    adversary does the same work. The first two steps do not count.
    """
    trainer = Trainer(config)
    if trainer.device.type == "cpu" and not default_malloc:
        keep_freed_memory()  # as a run does
    phases, steps = [], []

    def take(watch: bool) -> dict[str, float]:
        timeline = Timeline(trainer.device)
        with watched(trainer, timeline) if watch else nullcontext():
            timeline.enter(DATA)
            patches, _ = next(batches)
            timeline.enter(OTHER)
            # Both wait for data, but use the same images.
            trainer.train_step(given.setdefault(trainer.step, patches))
            timeline.enter(OTHER)
        return timeline.seconds()

    with closing(iter(_loader(config, trainer, 2 * (rounds + 2)))) as batches:
        for _ in range(rounds + 2):
            before, given = trainer.step, {}
            phases.append(take(watch=True))
            trainer.step = before  # all random choices are functions of it
            steps.append(sum(take(watch=False).values()))
    means = {phase: statistics.mean(seconds[phase] for seconds in phases[2:]) for phase in PHASES}
    total, step = sum(means.values()), statistics.mean(steps[2:])
    result = {
        "phases": means,
        "sum_seconds": total,
        "step_seconds": step,
        "difference_seconds": total - step,
        "rounds": rounds,
        "generator": trainer.describe(),
    }
    in_float32 = {trainer.precision, trainer.attack_precision, trainer.bank.dtype} == {torch.float32}
    if trainer.device.type == "cpu" and in_float32 and config.attack.method == "pgd" and means[ATTACK]:
        result["limits"] = limits(config)
    return result


def limits(config: Config) -> dict[str, float]:
    """Seconds of the convolutions of an exact step in float32, by phase, at the least."""
    generator, degradation, train = config.generator, config.degradation, config.train
    high, low = train.patch_size, train.patch_size // config.scale
    case = Case(str(generator.architecture), train.batch_size, high, generator.features, generator.depth)
    pass_of_g = _least_seconds(written_generator(case), (train.batch_size, 3, low, low))
    network = Degradation((high, high), config.scale, degradation.channels, degradation.blocks)
    pass_of_f = _least_seconds(network, (train.batch_size, 3, high, high))
    steps = config.attack.steps
    return {
        F_FORWARD: (steps + 1) * pass_of_f,
        F_BACKWARD: 2 * steps * pass_of_f,
        G_FORWARD: steps * pass_of_g,
        G_BACKWARD: steps * pass_of_g,
        UPDATE_FORWARD: pass_of_g,
        UPDATE_BACKWARD: 2 * pass_of_g,
    }


def _least_seconds(network: nn.Module, size: tuple[int, ...]) -> float:
    """Of the convolutions of a pass."""

    def count_bytes(x: list[int], weight: list[int], *_: object, out_shape: list[int], **__: object) -> int:
        return 4 * sum(map(math.prod, (x, weight, out_shape)))

    image, counts = torch.empty(size, device="meta"), []
    for formula in ({}, {torch.ops.aten.convolution: count_bytes}):
        with FlopCounterMode(display=False, custom_mapping=formula) as counter, torch.no_grad():
            network.to("meta")(image)
        counts.append(counter.get_total_flops())
    flops, moved = counts
    return flops / 4 / matmul_rate(torch.float32) + moved / copy_rate()


def _loader(config: Config, trainer: Trainer, steps: int) -> PatchLoader:
    sources = [ImageArray(*image) for image in training_photographs()]
    train = config.train
    batches = PatchBatches(sources, patch=train.patch_size, batch=train.batch_size, seed=config.seed)
    return make_loader(batches, 0, steps, config.data.workers, trainer.device.type == "cuda")


def table(result: dict[str, Any]) -> str:
    """The phases as a Markdown table."""
    total = result["sum_seconds"]
    step, difference = result["step_seconds"], result["difference_seconds"]
    head = ["phase", "ms", "share"]
    rows = [[name, f"{1000 * seconds:.2f}", f"{seconds / total:.1%}"] for name, seconds in result["phases"].items()]
    rows += [
        ["**sum**", f"**{1000 * total:.2f}**", ""],
        ["a step without the profiler", f"{1000 * step:.2f}", ""],
        ["difference", f"{1000 * difference:.2f}", f"{difference / total:.1%}"],
    ]
    if least := result.get("limits"):
        head.append("limit, ms")
        least = {**least, "**sum**": sum(least.values())}
        for row in rows:
            row.append(f"{1000 * least[row[0]]:.2f}" if row[0] in least else "")
    return f"{result['generator']}\n\n{markdown_table(head, rows)}"


def _networks(text: str) -> int | str:
    if text != "batch" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"wanted a number or 'batch', not {text!r}")
    return text if text == "batch" else int(text)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__.splitlines()[0])
    parser.add_argument("--generator", choices=("rrdbnet", "compact"), default="rrdbnet")
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--depth", type=int, help="default: 23 for rrdbnet, 16 for compact")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--networks", type=_networks, default=1, metavar="N", help="a number, or batch")
    parser.add_argument("--method", choices=METHODS, default="pgd")
    parser.add_argument("--steps", type=int, default=5, help="of the attack")
    parser.add_argument("--rounds", type=int, default=3, help="steps to take the mean of")
    parser.add_argument("--workers", type=int, default=1, help="processes that load images")
    parser.add_argument(
        "--default_malloc", action="store_true", help="do not keep freed memory, as training does on a CPU"
    )
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.batch, options.steps) < 1:
        parser.error("--rounds, --batch and --steps must be at least 1")
    options.depth = options.depth or {"rrdbnet": 23, "compact": 16}[options.generator]
    options.attack = {"method": options.method, "steps": options.steps}
    return options


@console()
def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        config = make_config(options)
    except ValueError as error:
        sys.exit(f"error: {error}")
    result = profile(config, options.rounds, options.default_malloc)
    print(table(result))
    if options.output is not None:
        given = ["FILE" if word == str(options.output) else word for word in arguments or sys.argv[1:]]
        record = {**origin("bench.profile", given), "config": config.to_dict(), **result}
        write_text(options.output, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
