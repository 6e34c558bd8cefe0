"""Which deviations of the degradation network the calibration study tries, and the LR images that they make."""

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
# The LR-PSNR budget alone is to bind, whichever group is free: the ball is wide, and a step far longer than what the
# budget leaves of it.
_WIDE = {"pgd": 4.0, "random": 30.0}


@dataclass(frozen=True)
class Mixture:
    """A way to weigh the groups: what distinguishes one adversary from another.

    Attributes:
        name: what tables call it.
        factors: of the scaled norm.
        noise: what a noise injection adds.
        single: only one group is free, so that its factor means nothing and the ball is made wide.
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
        per_image: every image has a network of its own (N = B); else a batch shares one (N = 1).
        size: height and width of what is degraded, the middle of each crop; None: all of it.
        lens: what the networks see HR images through; None: as they are. Budgets count from what the identity makes of
            images through it.
    """

    mixture: Mixture
    method: str
    lr_psnr: tuple[float, float] | None
    channels: int
    per_image: bool = True
    size: int | None = None
    lens: Lens | None = None

    def attack(self) -> PGD | RandomDeviation | None:
        """What looks for the deviation; without the lens, which `run` draws for itself. None: nothing does."""
        if self.method == "none":
            return None
        common = {"scale_factors": self.mixture.factors, "psnr_range": self.lr_psnr}
        if self.method == "random":
            return RandomDeviation(epsilon=_WIDE["random"], **common)
        wide = {"epsilon": _WIDE["pgd"], "step_ratio": 0.3} if self.mixture.single else {}
        return PGD(steps=5, **wide, **common)


@dataclass
class PriorResult:
    """What a case gave; lists hold one value an image.

    Attributes:
        measures: of the degraded images, against the HR images as they are.
        loss_ratio: the generator's loss on the degraded image over that on the pooled HR image.
        distance: the deviation's scaled norm.
        shares: of the squared difference from what the identity makes (behind the lens, if there is one), what each
            group of the deviation makes when it acts alone; they need not sum to one. Empty for the identity itself.
    """

    measures: list[Measures]
    loss_ratio: list[float]
    distance: list[float]
    shares: dict[str, list[float]]


def run(case: Case, hr: Tensor, objective: Objective, batch: int, seed: int) -> PriorResult:
    """Degrade images, `batch` at a time, with fresh networks.

    Args:
        case: what is tried.
        hr: (B, 3, H, W) in [0, 1]; B a multiple of `batch`.
        objective: what the adversary makes large.
        batch: images of one attack.
        seed: of networks, lenses, directions and budgets.
    """
    attack, found = case.attack(), PriorResult([], [], [], {group: [] for group in _NONE})
    generator = torch.Generator().manual_seed(seed)
    # One of their own: with lenses and without, attacks draw the same networks and budgets, and the other way round.
    lenses = torch.Generator().manual_seed(seed + 1)
    networks = batch if case.per_image else 1
    network = DegradationNetwork(4, networks, channels=case.channels, noise=case.mixture.noise)
    edge = 0 if case.size is None else (hr.shape[-1] - case.size) // 2
    for images in hr[..., edge : hr.shape[-2] - edge, edge : hr.shape[-1] - edge].split(batch):
        network.reset_identity(tuple(images.shape[-2:]), generator)
        # Drawn here and not by the attack, which would keep what it saw to itself.
        seen = images if case.lens is None else case.lens(images, networks, lenses)
        lr = clean = network.clean(seen)
        if attack is not None:
            result = attack(network, seen, partial(_towards, images, objective), generator)
            lr = result.lr
            moved = _square(lr - clean)
            for group, shares in found.shares.items():
                with torch.no_grad():
                    alone = network(seen, _part(network, result.delta, group))
                shares += (_square(alone - clean) / moved).tolist()
            found.distance += result.distance.tolist()
        with torch.no_grad():
            found.loss_ratio += (objective(lr, images) / objective(network.clean(images), images)).tolist()
        found.measures += [measure(image, each) for image, each in zip(images, lr, strict=True)]
    return found


def _towards(hr: Tensor, objective: Objective, lr: Tensor, seen: Tensor) -> Tensor:
    """The objective of an attack on images through a lens: the generator's target is the HR image itself."""
    return objective(lr, hr)


def _square(difference: Tensor) -> Tensor:
    return difference.square().mean(dim=(1, 2, 3))


def _part(network: DegradationNetwork, delta: Tensor, group: str) -> Tensor:
    """The deviation with nothing but one group left."""
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
    """All cells: every mixture at every budget, N = 1, with a narrow F; at the middle one, everything else; and what
    is behind a lens.

    Args:
        mixtures: what is weighed, `GROUPS` and more.
        budgets: LR-PSNR in dB.
        middle: the one of them at which random directions, a network for each image and the wide F are compared.
        ranges: for each mixture by name that is trained with, its ranges of budgets; measured as it is trained.
        sizes: smaller crops, on which those mixtures are measured, too.
        channels: of the narrow F and of the wide one.
        lens: what is measured alone, and
        behind: the mixture that is behind it, at the middle budget and at its ranges.
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
