"""How much of the exact attack's effect others find, and what they cost, on the same batches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from andfast.degradation.network import DegradationNetwork
from andfast.losses import l1_objective
from andfast.models.frozen import FrozenModule
from bench.attack_variants import Variant
from bench.peak_memory import peak_memory

#: The attacks that shares are shares of; they always take part.
EXACT = ("pgd-5", "pgd-20")
#: What is counted: passes through F and G.
PASSES = ("F forward", "F backward", "G forward", "G backward")


@dataclass
class Finding:
    """What was measured of a variant; lists hold a value a batch.

    Attributes:
        variant: which.
        increase: how much larger the mean loss of the batch's images became, in float32.
        lr_psnr: PSNR of the LR images against the clean ones, the mean over the networks, in dB.
        seconds: time of the attack.
        passes: by the names of `PASSES`; a pass of half a batch counts half.
        peak_memory: bytes held at most beyond what was there before.
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

    def share_of(self, exact: Finding) -> list[float]:
        """The loss increase as a share of another's, batch by batch."""
        return [own / its for own, its in zip(self.increase, exact.increase, strict=True)]

    def mean_passes(self) -> dict[str, float]:
        return {name: statistics.fmean(passes[name] for passes in self.passes) for name in self.passes[0]}


class NothingFoundError(RuntimeError):
    """The exact attack made nothing worse, so there is nothing to have a share of."""


class Judge:
    """Runs attacks against a model on the same batches, networks and budgets.

    Args:
        model: G, on its device, in evaluation.
        network: F's bank for a batch; its parameters are drawn anew for each.
        precision: the type G computes in where a variant does not say.
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
    ) -> list[Finding]:
        """Run all variants on all batches.

        The first batch is run once more before, for warming up and for the memory. Variants take turns, each batch
        begins with another one, so that none has the machine at its best.

        Args:
            variants: what to run; `EXACT` must be among them.
            batches: HR images, (B, 3, H, W) in [0, 1] on the model's device.
            random: the generator that a batch's networks and budgets are drawn from, by the batch's number.
            progress: called after each run, (1 + batches) x variants times.

        Raises:
            NothingFoundError: the loss of a batch did not increase under an exact attack.
        """
        findings = [Finding(variant) for variant in variants]
        for finding in findings:
            attack = self._prepare(finding.variant, batches[0], random(0))
            attack()
            finding.peak_memory = peak_memory(attack, batches[0].device)
            progress()
        for number, hr in enumerate(batches):
            start = number % len(findings)
            for finding in findings[start:] + findings[:start]:
                self._measure(finding, hr, random(number))
                name = finding.variant.name
                if name in EXACT and not finding.increase[-1] > 0:
                    raise NothingFoundError(
                        f"{name} found no larger loss on batch {number}; is there a budget to move in?"
                    )
                progress()
        return findings

    def _measure(self, finding: Finding, hr: Tensor, random: torch.Generator) -> None:
        attack = self._prepare(finding.variant, hr, random)
        view = self._view(finding.variant.dtype or self.precision)
        with _counted(self.network, view.module, len(hr)) as passes:
            _synchronize(hr.device)
            begin = time.perf_counter()
            result = attack()
            _synchronize(hr.device)
            finding.seconds.append(time.perf_counter() - begin)
        judged = l1_objective(self._view(torch.float32))
        with torch.no_grad():
            before, after = (judged(lr, hr).mean() for lr in (self.network(hr), result.lr))
        finding.increase.append((after - before).item())
        finding.lr_psnr.append(result.lr_psnr.mean().item())
        finding.passes.append(passes)

    def _prepare(self, variant: Variant, hr: Tensor, random: torch.Generator) -> Callable[[], object]:
        """The attack, on networks and with budgets that are the same whenever `random` is."""
        self.network.reset_identity((hr.shape[2], hr.shape[3]), random)
        state = random.get_state()
        objective = l1_objective(self._view(variant.dtype or self.precision))

        def attack() -> object:
            random.set_state(state)
            return variant.attack(self.network, hr, objective, random)

        return attack

    def _view(self, dtype: torch.dtype) -> FrozenModule:
        """G as the trainer shows it to its adversary."""
        if dtype not in self._views:
            self._views[dtype] = FrozenModule(self._model, dtype)
        return self._views[dtype]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _counted(network: nn.Module, model: nn.Module, batch: int) -> Iterator[dict[str, float]]:
    """Passes of whole batches inside, counted where images come out and their gradients go in."""
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
