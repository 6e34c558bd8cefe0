"""The calibration study's deviations of the degradation network, and measures of their LR images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from andfast.attack import PGD, Lens, RandomDeviation
from andfast.degradation.network import DegradationNetwork
from andfast.losses import Objective
from andfast.ops.theta_layout import NoiseKind, ScaleFactors
from studies.measures import Measures, measure

_NONE = dict.fromkeys(("conv_dc", "conv_shift", "conv", "noise", "slope"), math.inf)
# For a single free group only the LR-PSNR budget should limit the deviation: a wide ball, and steps that are much
# longer than the budget allows.
_WIDE = {"pgd": 4.0, "random": 30.0}


@dataclass(frozen=True)
class Mixture:
    """The relative weights of the groups of parameters, which distinguish one adversary from another.

    Attributes:
        name: in tables.
        factors: of the scaled norm.
        noise: the kind of noise injection.
        single: only one group is free; its factor has no meaning, and the ball is made wide.
    """

    name: str
    factors: ScaleFactors = field(default_factory=ScaleFactors)
    noise: NoiseKind = "map"
    single: bool = False


def _only(name: str, group: str, noise: NoiseKind = "map") -> Mixture:
    return Mixture(name, ScaleFactors(**{**_NONE, group: 1.0}), noise, single=True)


GROUPS = (
    _only("conv DC", "conv_dc"),
    _only("conv shift", "conv_shift"),
    _only("conv AC", "conv"),
    _only("noise map", "noise"),
    _only("noise gaussian", "noise", "gaussian"),
    _only("slope", "slope"),
)


@dataclass(frozen=True)
class Case:
    """One cell of the study.

    Attributes:
        mixture: how the groups are weighed.
        method: "pgd" (5 steps), "random", or "none": the identity.
        lr_psnr: (low, high), the range of budgets in dB; None for the identity, which needs none.
        channels: width of F.
        per_image: every image has its own network (N = B); else a batch shares one (N = 1).
        size: height and width of the middle of each crop that is degraded; None: the whole crop.
        lens: applied to HR images before the networks; budgets are relative to the identity's result for its images.
    """

    mixture: Mixture
    method: str
    lr_psnr: tuple[float, float] | None
    channels: int
    per_image: bool = True
    size: int | None = None
    lens: Lens | None = None

    def attack(self) -> PGD | RandomDeviation | None:
        """The attack, without the lens, which `run` draws; None for the identity."""
        if self.method == "none":
            return None
        common = {"scale_factors": self.mixture.factors, "psnr_range": self.lr_psnr}
        if self.method == "random":
            return RandomDeviation(epsilon=_WIDE["random"], **common)
        wide = {"epsilon": _WIDE["pgd"], "step_ratio": 0.3} if self.mixture.single else {}
        return PGD(steps=5, **wide, **common)


@dataclass
class PriorResult:
    """The result of a case; lists have one value an image.

    Attributes:
        measures: of the degraded images, against the original HR images.
        loss_ratio: the generator's loss on the degraded image, relative to that on the pooled HR image.
        distance: the deviation's scaled norm.
        shares: the squared difference from the identity's result that each group of the deviation causes alone,
            relative to that of the whole deviation; they need not sum to one. Empty for the identity.
    """

    measures: list[Measures]
    loss_ratio: list[float]
    distance: list[float]
    shares: dict[str, list[float]]


def run(case: Case, hr: Tensor, objective: Objective, batch: int, seed: int) -> PriorResult:
    """Degrade images, `batch` at a time, with new networks.

    Args:
        case: the case.
        hr: (B, 3, H, W) in [0, 1]; B a multiple of `batch`.
        objective: the adversary maximises it.
        batch: images of one attack.
        seed: of networks, lenses, directions and budgets.
    """
    attack, found = case.attack(), PriorResult([], [], [], {group: [] for group in _NONE})
    generator = torch.Generator().manual_seed(seed)
    # A second generator, so that networks and budgets are the same with and without lenses.
    lenses = torch.Generator().manual_seed(seed + 1)
    networks = batch if case.per_image else 1
    network = DegradationNetwork(4, networks, channels=case.channels, noise=case.mixture.noise)
    edge = 0 if case.size is None else (hr.shape[-1] - case.size) // 2
    for images in hr[..., edge : hr.shape[-2] - edge, edge : hr.shape[-1] - edge].split(batch):
        network.reset_identity(tuple(images.shape[-2:]), generator)
        # Drawn here and not by the attack, which would not return the images.
        inputs = images if case.lens is None else case.lens(images, networks, lenses)
        lr = clean = network.clean(inputs)
        if attack is not None:
            result = attack(network, inputs, partial(_towards, images, objective), generator)
            lr = result.lr
            moved = _square(lr - clean)
            for group, shares in found.shares.items():
                with torch.no_grad():
                    alone = network(inputs, _part(network, result.delta, group))
                shares += (_square(alone - clean) / moved).tolist()
            found.distance += result.distance.tolist()
        with torch.no_grad():
            found.loss_ratio += (objective(lr, images) / objective(network.clean(images), images)).tolist()
        found.measures += [measure(image, each) for image, each in zip(images, lr, strict=True)]
    return found


def _towards(hr: Tensor, objective: Objective, lr: Tensor, _: Tensor) -> Tensor:
    """The objective of an attack on images through a lens: the generator's target is the original HR image."""
    return objective(lr, hr)


def _square(difference: Tensor) -> Tensor:
    return difference.square().mean(dim=(1, 2, 3))


def _part(network: DegradationNetwork, delta: Tensor, group: str) -> Tensor:
    """The deviation of one group, and zeros for the others."""
    factors = ScaleFactors(**{**_NONE, group: 1.0})
    return delta * network.layout.scale_vector(factors).isfinite()


def cases(
    mixtures: Sequence[Mixture],
    budgets: Sequence[float],
    middle: float,
    ranges: dict[str, Sequence[tuple[float, float]]],
    sizes: Sequence[int],
    channels: tuple[int, int],
    lens: Lens,
    behind: Mixture,
) -> list[Case]:
    """All cases: every mixture at every budget with N = 1 and a narrow F; variations at the middle budget; the lens.

    Args:
        mixtures: `GROUPS` and more.
        budgets: LR-PSNR in dB.
        middle: the budget at which random directions, N = B and the wide F are compared.
        ranges: the ranges of budgets of the mixtures that are used in training, by the mixture's name.
        sizes: smaller crops, for the mixtures that are used in training.
        channels: of the narrow F and of the wide one.
        lens: measured alone and before `behind`.
        behind: measured behind the lens, at the middle budget and at its ranges.
    """
    found, (narrow, wide) = [], channels
    for mixture in mixtures:
        found += [Case(mixture, "pgd", (budget, budget), narrow, per_image=False) for budget in budgets]
        at = Case(mixture, "pgd", (middle, middle), narrow, per_image=False)
        found += [
            replace(at, method="random"),
            replace(at, per_image=True),
            replace(at, channels=wide),
            replace(at, method="random", channels=wide),
        ]
        if mixture.name in ranges:
            trained = [replace(at, lr_psnr=each) for each in ranges[mixture.name]]
            found += [replace(case, per_image=per_image) for case in trained for per_image in (False, True)]
            found += [replace(at, size=size) for size in sizes]
    found.append(Case(Mixture("lens"), "none", None, narrow, lens=lens))
    for budget in ((middle, middle), *ranges[behind.name]):
        found += [Case(behind, "pgd", budget, narrow, per_image, lens=lens) for per_image in (False, True)]
    return found
