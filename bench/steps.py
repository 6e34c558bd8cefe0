"""Whole training steps, andfast's own and those of `bench.paper`, that can be compared: same images, same start."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from andfast.data.patches import ImageArray, PatchBatches
from andfast.data.photographs import training_photographs
from andfast.degradation.network import DegradationNetwork
from andfast.ops import use_backend
from andfast.ops.precision import choose_precision
from andfast.training.attack_config import AttackConfig
from andfast.training.config import Config, DegradationConfig, GeneratorConfig, TrainConfig
from andfast.training.step_metrics import PendingStep
from andfast.training.trainer import Trainer
from andfast.utils.formatting import dtype_name
from andfast.utils.memory import keep_freed_memory
from bench import paper
from bench.timing import DEVICE, before_round, matmul_rate, peak_memory
from bench.variants import FAST_TYPE

SCALE = 4
#: The middle of the default range, for all draws alike: how often a deviation is shrunk hangs on it.
BUDGET_DB = 29.0
#: The largest relative error of a first step's loss, and of its gradient in the 2-norm, that is worth a time: in
#: float32, in TF32 and half types, and in half types where theta is rounded to them, which cannot hold it.
EXACT, ROUNDED, ROUNDED_THETA = (1e-3, 1e-2), (0.05, 0.5), (0.05, 0.9)


@dataclass(frozen=True)
class Case:
    """What is trained on what: `batch` patches of `patch` x `patch` pixels an update."""

    generator: Literal["rrdbnet", "compact"]
    batch: int
    patch: int
    features: int = 64
    depth: int = 23
    channels: int = 64
    blocks: int = 5

    def __str__(self) -> str:
        return f"{self.generator} {self.batch}x{self.patch}"

    @property
    def narrow(self) -> bool:
        """Whether F has so few channels that a half type's rounding alone leads an attack elsewhere."""
        return self.channels < 16

    def flops(self, passes: tuple[float, float]) -> float:
        """Floating-point operations of so many passes of the whole batch through G and through F."""
        return self.batch * (passes[0] * self._generator_flops() + passes[1] * self._degradation_flops())

    def _generator_flops(self) -> int:
        """A pass forward of one image, counted in the convolutions of plain PyTorch."""
        side = self.patch // SCALE
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            written_generator(self)(torch.empty(1, 3, side, side))
        return counter.get_total_flops()

    def _degradation_flops(self) -> int:
        high, low, width = self.patch**2, (self.patch // SCALE) ** 2, self.channels
        inner = width**2 * (high * (self.blocks - 1) + low * self.blocks)
        return 2 * 9 * (3 * width * (high + low) + inner)


@dataclass(frozen=True)
class Method:
    """A way to find the LR images of a step.

    Attributes:
        attack: fields of `AttackConfig`, as pairs.
        passes: the passes of the whole batch through G and through F that an update cannot do without, counted as
            forward passes: G takes 3 to be updated and 2 for a gradient on its input, F takes 3 for one on theta and
            1 for the images at last.
    """

    name: str
    attack: tuple[tuple[str, Any], ...]
    passes: tuple[float, float]


def _method(name: str, passes: tuple[float, float], **attack: Any) -> Method:
    return Method(name, tuple(attack.items()), passes)


PLAIN = _method("plain", (3, 0), method="none")
EXACT_5 = _method("exact", (13, 16), method="pgd", steps=5)
CHEAPER = [
    _method("pgd-5+last", (12, 16), method="pgd", steps=5, return_iterate="last"),
    _method("pgd-1@1+last", (5, 4), method="pgd", steps=1, step_size=0.5, return_iterate="last"),
    _method("yopo-1-3@0.5+last", (5, 10), method="yopo", steps=1, inner_steps=3, step_size=0.25, return_iterate="last"),
    _method("pgd-3@0.5", (9, 10), method="pgd", steps=3, step_size=0.25),
    _method("yopo-3-2@0.3", (9, 19), method="yopo", steps=3, inner_steps=2, step_size=0.15),
    _method("subset-5-0.5", (8, 8.5), method="subset", steps=5, share=0.5),
    _method("free-4@0.4", (3, 2.5), method="free", replays=4, step_size=0.2),
]


@dataclass(frozen=True)
class Variant:
    """Who takes a step, and how.

    Attributes:
        who: andfast; reference: andfast on its plain references, in float32; paper, paper compiled: the baselines
            (a) and (b).
        networks: N; "batch": every image its own.
    """

    who: Literal["andfast", "reference", "paper", "paper compiled"]
    method: Method
    networks: int | Literal["batch"] = 1

    def __str__(self) -> str:
        own = ", N = B" if self.networks == "batch" else ""
        return f"{_NAMES[self.who]} {self.method.name}{own}"


_NAMES = {
    "andfast": "andfast",
    "reference": "andfast reference",
    "paper": "(a) PyTorch",
    "paper compiled": "(b) compiled",
}


@lru_cache(maxsize=1)
def patches(case: Case) -> Tensor:
    """Of the bundled photographs, uint8 (batch, 3, patch, patch)."""
    sources = [ImageArray(*image) for image in training_photographs()]
    return PatchBatches(sources, patch=case.patch, batch=case.batch, seed=0)[0][0]


def make_config(case: Case, method: Method, networks: int | str = 1, precision: str = "auto") -> Config:
    """A run's settings whose first step is the step to compare."""
    # During the warm-up a run trains on clean LR images alone: with the method "none" that is the plain step.
    warmup = 10**6 if method == PLAIN else 0
    # What others are compared with is not compiled.
    plainly = {"compile": "off"} if precision == "float32" else {}
    return Config(
        scale=SCALE,
        **plainly,
        generator=GeneratorConfig(case.generator, case.features, case.depth),
        degradation=DegradationConfig(networks, case.channels, case.blocks, precision=precision),
        attack=AttackConfig(**dict(method.attack), psnr_range=(BUDGET_DB, BUDGET_DB)),
        train=TrainConfig(
            iterations=2 * 10**6,
            warmup=warmup,
            ramp=0,
            batch_size=case.batch,
            patch_size=case.patch,
            learning_rate=1e-4,
            schedule="constant",
            ema_decay=0.999,
            precision=precision,
        ),
    )


@dataclass
class FirstStep:
    """The result of a step from a new generator.

    Attributes:
        loss: the generator's.
        gradient: Adam's first moment, after a single update a tenth of the gradient.
        updates: how many updates of the generator it was.
    """

    loss: float
    gradient: Tensor
    updates: int


@dataclass
class Program:
    """A variant, ready to take steps.

    Attributes:
        generator: G.
        first: the first step.
        step: any later one.
        graph: what was decided of the attack's CUDA graph, once it is known.
    """

    generator: nn.Module
    first: Callable[[], FirstStep]
    step: Callable[[], object]
    graph: Callable[[], str | None] = lambda: None


def found_with(loss: float, generator: nn.Module, optimizer: torch.optim.Optimizer) -> FirstStep:
    """What a step left behind, in the order of the parameters' names."""
    states = [optimizer.state[parameter] for _, parameter in sorted(generator.named_parameters())]
    return FirstStep(loss, torch.cat([state["exp_avg"].detach().flatten() for state in states]), int(states[0]["step"]))


def found_by(trainer: Trainer, result: PendingStep) -> FirstStep:
    """The result of andfast's first step."""
    return found_with(result.read().loss, trainer.generator, trainer.optimizer)


def type_of(case: Case, variant: Variant) -> torch.dtype:
    """The type that a variant computes in; float32 for cases that a half type leads elsewhere."""
    if case.narrow or variant.who in ("paper", "reference"):
        return torch.float32
    return choose_precision("auto", DEVICE, "training") if variant.who == "andfast" else FAST_TYPE


def own_program(case: Case, variant: Variant) -> Program:
    """andfast's own step."""
    precision = "float32" if variant.who == "reference" or case.narrow else "auto"
    trainer = Trainer(make_config(case, variant.method, variant.networks, precision))
    given = patches(case)

    def backend() -> Any:
        return use_backend("reference") if variant.who == "reference" else nullcontext()

    def first() -> FirstStep:
        with backend():
            result = trainer.train_step(given)
        return found_by(trainer, result)

    def step() -> None:
        with backend():
            trainer.train_step(given)

    return Program(trainer.generator, first, step, lambda: trainer.captured and trainer.captured.decision)


def written_generator(case: Case) -> nn.Module:
    """G as the baselines have it."""
    kind = {"rrdbnet": paper.RRDBNet, "compact": paper.Compact}[case.generator]
    return kind(case.features, case.depth)


def written_networks(bank: DegradationNetwork) -> list[paper.Degradation]:
    """The same networks as the baselines have them."""
    networks = []
    for row in bank.theta_id:
        network = paper.Degradation(bank.layout.image_size, bank.scale, bank.channels, bank.blocks)
        parts = [part for kind in bank.layout.split(row) for part in kind]
        with torch.no_grad():
            for parameter, part in zip(network.parameters(), parts, strict=True):
                parameter.copy_(part.view_as(parameter))
        networks.append(network.to(row.device))
    return networks


def written_program(case: Case, variant: Variant, weights: dict[str, Tensor], bank: DegradationNetwork) -> Program:
    """The step of (a) or (b), from G's `weights` and the networks of `bank`."""
    generator = written_generator(case).to(DEVICE)
    generator.load_state_dict(weights)
    attack = dict(variant.method.attack)
    options = {name: attack[name] for name in ("steps", "step_size") if name in attack} or {"steps": 0}
    if variant.who == "paper compiled":
        options |= {"compiled": True, "dtype": type_of(case, variant), "channels_last": True}
    step = paper.Step(generator, written_networks(bank), BUDGET_DB, ema_decay=0.999, **options)
    given = patches(case)

    def first() -> FirstStep:
        loss = step.from_here(given.to(DEVICE))
        return found_with(loss, step.generator, step.optimizer)

    return Program(generator, first, lambda: step(given.to(DEVICE)))


@dataclass
class Reference:
    """andfast's step on its plain PyTorch references in float32, and where it began."""

    found: FirstStep
    weights: dict[str, Tensor]
    bank: DegradationNetwork


@lru_cache(maxsize=8)
def reference(case: Case, method: Method, networks: int | str) -> Reference:
    """What a first step is compared with."""
    config = make_config(case, method, networks, "float32")
    if DEVICE.type == "cuda":
        config.train.micro_batch = min(case.batch, 8)  # without kernels and half types memory would be short
    trainer = Trainer(config)
    weights = {name: weight.clone() for name, weight in trainer.generator.state_dict().items()}
    bank = trainer.make_bank(case.batch if networks == "batch" else networks)
    bank.reset_identity((case.patch, case.patch))  # replaced below by what the step drew, where it drew any
    attack, seen = trainer.attack, []
    if method.name.startswith(("exact", "pgd")):

        def watched(network: DegradationNetwork, *rest: Any, **options: Any) -> Any:
            seen.append(network)
            return attack(network, *rest, **options)

        trainer.attack = watched
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with use_backend("reference"):
            result = trainer.train_step(patches(case))
    finally:
        torch.backends.cudnn.allow_tf32 = before
    found = found_by(trainer, result)
    return Reference(found, weights, seen[0] if seen else bank)


def make_program(case: Case, variant: Variant) -> Program:
    if variant.who in ("andfast", "reference"):
        return own_program(case, variant)
    given = reference(case, variant.method, variant.networks)
    return written_program(case, variant, given.weights, given.bank)


def check(found: FirstStep, exact: FirstStep, tolerance: tuple[float, float]) -> None:
    """Fail where a first step went elsewhere than the reference's: there is no speed of a wrong step."""
    loss = abs(found.loss - exact.loss) / exact.loss
    gradient = float((found.gradient - exact.gradient).norm() / exact.gradient.norm())
    if not (loss < tolerance[0] and gradient < tolerance[1]):  # NaN, too
        pytest.fail(
            f"the first step's loss is off by {loss:.2g}, its gradient by {gradient:.2g}; allowed are "
            f"{tolerance[0]:g} and {tolerance[1]:g}"
        )


@lru_cache(maxsize=1)
def forget_compiled(case: Case) -> None:
    """Compiled code is for one case's shapes; too many of them, and torch compiles no more."""
    torch.compiler.reset()


def _tolerance(variant: Variant, rounded: bool) -> tuple[float, float]:
    if not rounded:
        return EXACT
    return ROUNDED_THETA if variant.who == "paper compiled" else ROUNDED


def bench_step(benchmark: Any, case: Case, variant: Variant, rounds: int) -> None:
    """Check a variant's first step, then time the later ones.

    Memory is that of a second step; but on a CPU, where steps take seconds, that of the first, unless it compiles:
    Adam's own state, which the first step makes, comes after the peak for all but the smallest sizes.
    """
    on_gpu = DEVICE.type == "cuda"
    if not on_gpu:
        keep_freed_memory()  # as a run does: for all variants, which it helps alike
    exact = reference(case, variant.method, variant.networks).found
    program = make_program(case, variant)
    # PyTorch's default for float32 on a GPU; only the reference is exact.
    tf32 = on_gpu and variant.who == "paper"
    dtype = type_of(case, variant)
    # On a GPU, F is in float16 for any type of G.
    rounded = dtype.itemsize < 4 or tf32 or (on_gpu and variant.who == "andfast")
    seen: list[FirstStep] = []
    forget_compiled(case)
    if on_gpu or variant.who == "paper compiled":
        start = time.perf_counter()
        seen.append(program.first())
        benchmark.extra_info["first_step_seconds"] = time.perf_counter() - start
        if not on_gpu:  # as before a first step
            program.generator.zero_grad()
        peak = peak_memory(program.step)
    else:
        peak = peak_memory(lambda: seen.append(program.first()))
    check(seen[0], exact, _tolerance(variant, rounded))
    updates = seen.pop().updates
    benchmark.group = f"step {case}"
    benchmark.extra_info |= {
        "variant": str(variant),
        "device": torch.cuda.get_device_name(DEVICE) if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": "tf32" if tf32 else dtype_name(dtype),
        "images": case.batch * updates,
        "updates": updates,
        "plain": str(Variant("andfast", PLAIN)),
        "written": str(Variant("paper", PLAIN if variant.method == PLAIN else EXACT_5, variant.networks)),
        "flops": updates * case.flops(variant.method.passes),
        "peak_memory": peak,
    }
    # On a GPU an attack becomes a graph within its first four steps, of which two are done.
    benchmark.pedantic(program.step, setup=before_round, rounds=rounds, warmup_rounds=3 * int(on_gpu))
    if program.graph() is not None:
        benchmark.extra_info["graph"] = program.graph()
    if on_gpu and benchmark.stats is not None:  # None under --benchmark-disable
        rate = matmul_rate(dtype, tf32)
        limit = benchmark.extra_info["flops"] / rate
        benchmark.extra_info |= {
            "percent_of_limit": 100 * limit / benchmark.stats.stats.median,
            "matmul_flops_per_second": rate,
        }
