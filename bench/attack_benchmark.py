"""Attacks by short names; their loss increase and cost on the same batches, compared with the exact attack."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from andfast.attack import PGD, YOPO, FreeAT, RandomDeviation, SubsetPGD
from andfast.attack.base import NetworkAttack
from andfast.attack.pgd import GradientAttack
from andfast.degradation.network import DegradationNetwork
from andfast.losses import l1_objective
from andfast.models.frozen import FrozenModule
from andfast.utils.devices import TYPES
from bench.peak_memory import peak_memory

#: The settings that all variants have in common.
SHARED = ("epsilon", "scale_factors", "psnr_range", "lens")
#: The grammar of `parse_variant`, for users.
FORMS = (
    "pgd-STEPS, yopo-STEPS-INNER, free-REPLAYS, subset-STEPS-SHARE or random; all but random may be followed by "
    "@RATIO (length of a step relative to epsilon), pgd, yopo and subset with +last (the last iterate instead of the "
    "worst), all with :TYPE (float32, bfloat16 or float16, the type G computes in); in this order"
)

_FORM = re.compile(r"([a-z]+)((?:-[\d.]+)*)(?:@([\d.]+))?(\+last)?(?::(float32|bfloat16|float16))?")
# The attack of each method, and the settings that the numbers after its name give.
_NUMBERS: dict[str, tuple[type[NetworkAttack], dict[str, Callable[[str], float]]]] = {
    "pgd": (PGD, {"steps": int}),
    "yopo": (YOPO, {"steps": int, "inner_steps": int}),
    "free": (FreeAT, {"replays": int}),
    "subset": (SubsetPGD, {"steps": int, "share": float}),
    "random": (RandomDeviation, {}),
}


@dataclass(frozen=True)
class Variant:
    """An attack to compare.

    Attributes:
        name: as `parse_variant` takes it.
        attack: the attack.
        dtype: the type that G computes in; None: that of the benchmark.
    """

    name: str
    attack: NetworkAttack
    dtype: torch.dtype | None = None

    @property
    def method(self) -> str:
        """The name's first word."""
        return re.split(r"[-@+:]", self.name)[0]


def parse_variant(name: str, exact: PGD) -> Variant:
    """Parse a variant's name, like "yopo-3-2@0.3"; see `FORMS`.

    Args:
        name: the name.
        exact: its settings `SHARED` are those of the variant, and its step, if the name has none.

    Raises:
        ValueError: the name is invalid, or its numbers are out of their range.
    """
    match = _FORM.fullmatch(name)
    if match is None or match[1] not in _NUMBERS:
        raise ValueError(f"variant {name!r} is invalid; wanted {FORMS}")
    method, numbers, ratio, last, dtype = match.groups()
    kind, names = _NUMBERS[method]
    steps = issubclass(kind, GradientAttack)
    given = numbers.split("-")[1:]
    if len(given) != len(names) or (ratio and not steps) or (last and not issubclass(kind, PGD)):
        raise ValueError(f"variant {name!r} is invalid; wanted {FORMS}")
    settings = {name: getattr(exact, name) for name in SHARED}
    if steps:
        settings |= {"step_size": exact.step_size, "step_ratio": exact.step_ratio}
    try:
        settings |= {key: read(value) for (key, read), value in zip(names.items(), given, strict=True)}
        if ratio:
            settings["step_ratio"] = float(ratio)
        if last:
            settings["return_iterate"] = "last"
        return Variant(name, kind(**settings), TYPES.get(dtype))
    except ValueError as error:
        raise ValueError(f"variant {name!r}: {error}; wanted {FORMS}") from error


def default_variants(num_networks: int, types: list[str]) -> list[str]:
    """The names of the variants that are compared by default; `types` are further types for G in the exact attack."""
    names = [
        "pgd-1@1", "pgd-2@0.75", "pgd-3@0.5", "pgd-3", "pgd-5", "pgd-10", "pgd-20",
        "pgd-1@1+last", "pgd-2@0.75+last", "pgd-5+last",
        "yopo-1-2@0.75+last", "yopo-1-3@0.5+last", "yopo-2-2@0.5", "yopo-3-2@0.3", "yopo-5-2",
        "free-2@1", "free-4@0.4", "free-8",
    ]  # fmt: skip
    if num_networks == 1:
        names += ["subset-5-0.25", "subset-5-0.5", "subset-3-0.25@0.5", "subset-3-0.5@0.5"]
    return [*names, *(f"pgd-5:{name}" for name in types), "random"]


#: The attacks that others are compared with.
BASELINES = ("pgd-5", "pgd-20")
#: The passes through F and G that are counted.
PASSES = ("F forward", "F backward", "G forward", "G backward")


@dataclass
class Measurement:
    """The measurements of a variant; lists have one value a batch.

    Attributes:
        variant: the variant.
        increase: of the mean loss of the batch's images, in float32.
        lr_psnr: PSNR of the LR images against the clean ones, the mean over the networks, in dB.
        seconds: time of the attack.
        passes: by the names of `PASSES`; a pass of half a batch counts half.
        peak_memory: bytes, in addition to those held before.
    """

    variant: Variant
    increase: list[float] = field(default_factory=list)
    lr_psnr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    passes: list[dict[str, float]] = field(default_factory=list)
    peak_memory: int = 0

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    def relative_to(self, baseline: Measurement) -> list[float]:
        """The loss increase divided by the baseline's, batch by batch."""
        return [own / its for own, its in zip(self.increase, baseline.increase, strict=True)]

    def mean_passes(self) -> dict[str, float]:
        return {name: statistics.fmean(passes[name] for passes in self.passes) for name in self.passes[0]}


class NoIncreaseError(RuntimeError):
    """A baseline increased no loss, so that others cannot be compared with it."""


class AttackBenchmark:
    """Runs attacks against a model on the same batches, networks and budgets.

    Args:
        model: G, on its device, in evaluation mode.
        network: the bank of F, reset for each batch.
        precision: the type that G computes in, for variants without one.
    """

    def __init__(self, model: nn.Module, network: DegradationNetwork, precision: torch.dtype) -> None:
        self.network = network
        self.precision = precision
        self._model = model.to(memory_format=torch.channels_last)
        self._views: dict[torch.dtype, FrozenModule] = {}

    def __call__(
        self,
        variants: Sequence[Variant],
        batches: Sequence[Tensor],
        random: Callable[[int], torch.Generator],
        progress: Callable[[], None] = lambda: None,
    ) -> list[Measurement]:
        """Run all variants on all batches.

        First, the first batch is run to warm up and to measure the memory. Each batch begins with another variant, so
        that the order favours none.

        Args:
            variants: the attacks; must include `BASELINES`.
            batches: HR images, (B, 3, H, W) in [0, 1] on the model's device.
            random: returns the random generator of a batch's networks and budgets, by the batch's number.
            progress: called after each run, (1 + batches) x variants times.

        Raises:
            NoIncreaseError: the loss of a batch did not increase under a baseline.
        """
        measurements = [Measurement(variant) for variant in variants]
        for measurement in measurements:
            attack = self._prepare(measurement.variant, batches[0], random(0))
            attack()
            measurement.peak_memory = peak_memory(attack, batches[0].device)
            progress()
        for number, hr in enumerate(batches):
            start = number % len(measurements)
            for measurement in measurements[start:] + measurements[:start]:
                self._measure(measurement, hr, random(number))
                name = measurement.variant.name
                if name in BASELINES and not measurement.increase[-1] > 0:
                    raise NoIncreaseError(
                        f"{name} found no larger loss on batch {number}; is there a budget to move in?"
                    )
                progress()
        return measurements

    def _measure(self, measurement: Measurement, hr: Tensor, random: torch.Generator) -> None:
        attack = self._prepare(measurement.variant, hr, random)
        view = self._view(measurement.variant.dtype or self.precision)
        with _counted(self.network, view.module, len(hr)) as passes:
            _synchronize(hr.device)
            begin = time.perf_counter()
            result = attack()
            _synchronize(hr.device)
            measurement.seconds.append(time.perf_counter() - begin)
        objective = l1_objective(self._view(torch.float32))
        with torch.no_grad():
            before, after = (objective(lr, hr).mean() for lr in (self.network(hr), result.lr))
        measurement.increase.append((after - before).item())
        measurement.lr_psnr.append(result.lr_psnr.mean().item())
        measurement.passes.append(passes)

    def _prepare(self, variant: Variant, hr: Tensor, random: torch.Generator) -> Callable[[], object]:
        """The attack, with networks and budgets that depend only on the state of `random`."""
        self.network.reset_identity((hr.shape[2], hr.shape[3]), random)
        state = random.get_state()
        objective = l1_objective(self._view(variant.dtype or self.precision))

        def attack() -> object:
            random.set_state(state)
            return variant.attack(self.network, hr, objective, random)

        return attack

    def _view(self, dtype: torch.dtype) -> FrozenModule:
        """The frozen G that the trainer's adversary uses."""
        if dtype not in self._views:
            self._views[dtype] = FrozenModule(self._model, dtype)
        return self._views[dtype]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _counted(network: nn.Module, model: nn.Module, batch: int) -> Iterator[dict[str, float]]:
    """Count the passes of whole batches in the block: forward by output images, backward by their gradients."""
    passes = dict.fromkeys(PASSES, 0.0)

    def count(name: str) -> Callable[..., None]:
        def backward(gradient: Tensor) -> None:
            passes[f"{name} backward"] += len(gradient) / batch

        def forward(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            passes[f"{name} forward"] += len(output) / batch
            if output.requires_grad:
                output.register_hook(backward)

        return forward

    handles = [network.register_forward_hook(count("F")), model.register_forward_hook(count("G"))]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()
