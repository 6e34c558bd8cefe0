"""The paper's adversary: projected gradient ascent on theta (Sec 3.3 and 4.3), and its variants.

From top to bottom: the settings of a step, the search (`PGD`), one step of it (`Ascent`), the backward pass through G
(`loss_and_grad_lr`), random starts, and the variants, which override parts of the search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from andfast.attack.base import NetworkAttack, SearchResult, by_network
from andfast.attack.budget import BUDGET_SLACK_DB, SearchInputs, check_range, network_psnr, within_budget
from andfast.degradation.lens import Lens
from andfast.degradation.network import DegradationNetwork
from andfast.losses import Objective
from andfast.ops import projected_step, scaled_norm
from andfast.ops.theta_layout import ScaleFactors
from andfast.utils.rng import draw_rows

# Scaled norms of random deviations. A start is drawn so far away that the LR-PSNR budget always shrinks it. Up to
# `_PROBE` the image's error is proportional to the norm; beyond `_SATURATED` images are so saturated that their PSNR
# says little.
_START_RADIUS, _PROBE, _SATURATED = 30.0, 0.3, 1.0


@dataclass(kw_only=True)
class GradientAttack(NetworkAttack):
    """An attack that takes gradient steps in theta: the settings of a step.

    A step is delta += length * s^-2 g / ||s^-1 g||_2 with the gradient g and the scale vector s, then the projection
    onto ||s * delta||_2 <= epsilon, then the shrinking of each network's deviation into its LR-PSNR budget.

    Args:
        step_size: length of a step in the scaled norm.
        step_ratio: length of a step relative to epsilon; replaces `step_size`.
        epsilon: radius of the ball in the scaled norm.
        scale_factors: the scaled norm's factors by group of parameters.
        psnr_range: (low, high) in dB, from which each network draws its budget: the least PSNR of its LR image against
            the clean one (camera-captured LR images have 22 to 36 dB). None: the ball alone.
        lens: between the HR images and the networks, drawn anew for each network; None: no lens, as in the paper.
    """

    step_size: float = 0.1
    step_ratio: float | None = None
    epsilon: float = 0.5
    scale_factors: ScaleFactors = field(default_factory=ScaleFactors)
    psnr_range: tuple[float, float] | None = (22.0, 36.0)
    lens: Lens | None = None

    def __post_init__(self) -> None:
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size is {self.step_size}; it must be positive and finite")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon is {self.epsilon}; it must be positive")
        if self.step_ratio is not None and not 0 < self.step_ratio < math.inf:
            raise ValueError(f"step_ratio is {self.step_ratio}; it must be positive and finite, or None")
        if self.step_ratio is not None and self.epsilon == math.inf:
            raise ValueError(f"step_ratio is {self.step_ratio} of an infinite epsilon; give step_size, or a finite one")
        check_range(self.psnr_range)

    @property
    def step_length(self) -> float:
        """Length of a step in the scaled norm, from `step_ratio` or `step_size`."""
        return self.step_size if self.step_ratio is None else self.step_ratio * self.epsilon


@dataclass
class PGD(GradientAttack):
    """Projected gradient ascent on theta, from the identity (Sec 3.3 and 4.3; Madry et al. 2018).

    This is the exact attack, to which the cheaper ones are compared. Fewer steps need longer ones: a `step_ratio` of
    0.5 for 3 steps, 0.75 for 2, 1 for a single one reaches the ball's surface as 5 steps with 0.2 do.

    Cost, K steps: K + 1 passes forward through F, one more for every attempt that exceeds the budget, and K backward;
    K + 1 forward through G (K with `return_iterate` "last") and K to its input.

    Args:
        steps: gradient steps, K.
        return_iterate: "worst" returns the iterate with the largest loss; "last" the last one, without computing its
            loss, which the training step computes anyway.
        random_start: the share, in [0, 1), of the squared error allowed by the LR-PSNR budget that a random deviation
            uses before the search begins, as in Madry et al.; the search uses the rest. The ball is centred at the
            start, `delta` and `distance` are relative to the identity, and `loss_before` is the start's.
    """

    steps: int = 5
    return_iterate: Literal["worst", "last"] = "worst"
    random_start: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")
        if self.return_iterate not in ("worst", "last"):
            raise ValueError(f"return_iterate is {self.return_iterate!r}; it must be 'worst' or 'last'")
        if not 0 <= self.random_start < 1:
            raise ValueError(f"random_start is {self.random_start}; it must be in [0, 1)")
        super().__post_init__()
        if self.random_start and self.psnr_range is None:
            raise ValueError(f"random_start is {self.random_start}, a share of the LR-PSNR budget; give psnr_range")

    @classmethod
    def paper(cls) -> PGD:
        """The paper's numbers to the letter: 5 steps of 6 in a ball of radius 20, factors 1, 10, 50 (Sec 4.3).

        For study only: with Xavier-initialised centres the whole of theta has a norm of about 24, so a single step of 6
        destroys the image (L1 loss from 0.03 to 9e4 before clamping).
        """
        factors = ScaleFactors(conv_dc=1.0, conv_shift=1.0, conv=1.0, noise=10.0, slope=50.0)
        return cls(steps=5, step_size=6.0, epsilon=20.0, scale_factors=factors, psnr_range=None)

    def _search(self, inputs: SearchInputs, objective: Objective) -> SearchResult:
        origin = self._origin(inputs)
        if origin is None:
            return self._ascend(inputs, objective)
        delta, lr = origin
        result = self._ascend(replace(inputs, network=OffsetNetwork(inputs.network, delta), start=lr), objective)
        result.variable = delta + result.variable
        return result

    def _draw(self, network: DegradationNetwork, rng: torch.Generator | None) -> Tensor | None:
        if not self.random_start:
            return None
        return _START_RADIUS * random_direction(network, self.inv_scale(network), rng)

    def _origin(self, inputs: SearchInputs) -> tuple[Tensor, Tensor | None] | None:
        """The deviations (N, P) that the search starts at, and their LR images, if known; None: zero."""
        if inputs.drawn is None:
            return None
        share = replace(inputs, budget_db=inputs.budget_db - 10 * math.log10(self.random_start))
        return shrink_random(share, inputs.drawn, _START_RADIUS)

    def _ascend(self, inputs: SearchInputs, objective: Objective) -> SearchResult:
        """The search of Sec 3.3: maximise the objective over the deviations, from zero."""
        count = inputs.network.num_networks
        ascent, result = Ascent(self, inputs), SearchResult()
        for step in range(1, self.steps + 1):
            loss, grad_lr = loss_and_grad_lr(ascent.lr, inputs.hr, objective, count)
            result.keep_worst(loss, ascent.lr.detach(), ascent.delta.detach())
            self._step(ascent, grad_lr, last=step == self.steps)
        if self.return_iterate == "last":
            result.keep_last(ascent.lr, ascent.delta)
        else:
            with torch.no_grad():
                result.keep_worst(by_network(objective(ascent.lr, inputs.hr), count), ascent.lr, ascent.delta)
        return result

    def _step(self, ascent: Ascent, grad_lr: Tensor, last: bool) -> None:
        """Move theta after a pass through G."""
        ascent.step(grad_lr, last)


class Ascent:
    """The state of gradient ascent in theta.

    Args:
        attack: the settings of a step.
        inputs: the inputs of the search.
        requires_grad: whether a step follows at all.

    Attributes:
        delta: (N, P), the deviations; zero at first.
        lr: (B, 3, h, w), their LR images. While a step follows they carry the graph to `delta`, so that its gradient
            needs no further forward pass.
    """

    def __init__(self, attack: GradientAttack, inputs: SearchInputs, requires_grad: bool = True) -> None:
        self._attack, self._inputs = attack, inputs
        self._inv_scale = attack.inv_scale(inputs.network)
        self.delta = torch.zeros_like(inputs.network.theta_id).requires_grad_(requires_grad)
        with torch.set_grad_enabled(requires_grad):
            self.lr = inputs.network(inputs.input, self.delta)

    def step(self, grad_lr: Tensor, last: bool = False) -> None:
        """Backward through F, a step along the gradient, the projection onto the ball, and the LR-PSNR budget.

        Args:
            grad_lr: (B, 3, h, w), the loss's gradient on `lr`; may be scaled by any positive factor per network, since
                a step is normalised.
            last: no other step follows.
        """
        inputs, attack = self._inputs, self._attack
        (gradient,) = torch.autograd.grad(self.lr, self.delta, self._in_range(grad_lr))
        delta = projected_step(self.delta, gradient, self._inv_scale, attack.step_length, attack.epsilon)
        first = self._first_try(delta)
        # Free this graph before the next one is made.
        del self.lr, self.delta, gradient
        self.delta, self.lr = within_budget(inputs, delta, first, graph=not last)

    @torch.no_grad()
    def _first_try(self, delta: Tensor) -> Tensor:
        """The factors of `delta`, (N,), that would just use up the budget if the image error grew with the norm.

        From step to step a deviation changes its direction more than its norm, so this is a good first guess.
        """
        psnr = network_psnr(self.lr, self._inputs.clean, self._inputs.network.num_networks)
        norm, next_norm = (torch.linalg.vector_norm(rows, dim=1) for rows in (self.delta, delta))
        multiple = norm / next_norm * 10 ** ((psnr - self._inputs.budget_db - BUDGET_SLACK_DB / 2) / 20)
        # 0 or NaN at the identity, which has no ratio.
        known = multiple.isfinite() & (multiple > 0)
        return torch.where(known, multiple, _probe(scaled_norm(delta, self._inv_scale))).clamp(max=1)

    def _in_range(self, grad_lr: Tensor) -> Tensor:
        """`grad_lr` with each network's 1-norm set to a fixed value: half types would under- or overflow in F."""
        groups = grad_lr.unflatten(0, (self._inputs.network.num_networks, -1))
        total = groups.abs().sum(dim=(1, 2, 3, 4), keepdim=True).clamp(min=torch.finfo(grad_lr.dtype).tiny)
        # 1024 keeps sums over all pixels below float16's 65504 and single pixels above its smallest normal number.
        return (groups * (1024 / total)).flatten(0, 1)


def loss_and_grad_lr(lr: Tensor, hr: Tensor, objective: Objective, num_networks: int) -> tuple[Tensor, Tensor]:
    """One pass forward through G, and one backward to its input.

    G may compute in float16, whose smallest normal number is 6e-5: the loss is multiplied by (about) the number of
    values that it is the mean of, so that the gradients of G's output are about 1. The factor is a power of two, which
    rounds nothing, and a step in theta is normalised.

    Returns:
        The mean loss of each network's images, (N,), and dL/dLR, (B, 3, h, w), times that factor; no gradient flows
        into the graph of `lr`.
    """
    image = lr.detach().requires_grad_()
    loss = by_network(objective(image, hr), num_networks)
    values = hr[0].numel() * len(hr) // num_networks
    (grad_lr,) = torch.autograd.grad(loss.sum() * 2.0 ** round(math.log2(values)), image)
    return loss.detach(), grad_lr


class OffsetNetwork:
    """The part of `DegradationNetwork` that a search needs, with deviations relative to `origin`, (N, P)."""

    def __init__(self, network: DegradationNetwork, origin: Tensor) -> None:
        self._network, self._origin = network, origin
        self.layout, self.theta_id, self.num_networks = network.layout, network.theta_id, network.num_networks

    def __call__(self, hr: Tensor, delta: Tensor) -> Tensor:
        return self._network(hr, self._origin + delta)


def random_direction(network: DegradationNetwork, inv_scale: Tensor, rng: torch.Generator | None) -> Tensor:
    """Draw deviations (N, P) of norm 1 in the scaled norm, each in a uniform direction; none where `inv_scale` is 0."""
    count, columns = network.theta_id.shape
    direction = draw_rows(lambda rows: torch.randn(rows, columns, device=inv_scale.device, generator=rng), count, rng)
    direction *= inv_scale > 0
    return inv_scale * direction / direction.norm(dim=1, keepdim=True)


def shrink_random(inputs: SearchInputs, delta: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """`within_budget` for random deviations (N, P) of scaled norm `radius`."""
    return within_budget(inputs, delta, _probe(torch.full_like(inputs.budget_db, radius)))


def _probe(norm: Tensor) -> Tensor:
    """The multiples of deviations of a scaled norm that show how far the image moves: 1, if it is not saturated."""
    return torch.where(norm > _SATURATED, _PROBE / norm, 1)


@dataclass
class YOPO(PGD):
    """PGD that takes several steps for one gradient of G: YOPO-m-n (Zhang et al. 2019, "You Only Propagate Once").

    By the chain rule the gradient in theta is F's gradient of <p, F_theta(HR)> with the costate p = dL/dLR (the
    gradient at the LR images), which alone needs G. So p is computed `steps` times (m), and each time held for
    `inner_steps` steps (n) in theta. The loss is known where p is computed, and the worst of these iterates is
    returned. With n = 1 this is exactly `PGD`.

    Cost: m n + 1 passes forward through F, one more for every attempt that exceeds the budget, m n backward; m + 1
    forward through G (m with `return_iterate` "last") and m to its input. It pays where G costs more than F: RRDBNet,
    not Compact.

    Args:
        steps: passes through G, m.
        inner_steps: steps in theta for each of them, n.
    """

    inner_steps: int = 2

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise ValueError(f"inner_steps is {self.inner_steps}; it must be at least 1")
        super().__post_init__()

    def _step(self, ascent: Ascent, costate: Tensor, last: bool) -> None:
        for inner in range(1, self.inner_steps + 1):
            ascent.step(costate, last and inner == self.inner_steps)


@dataclass
class SubsetPGD(PGD):
    """`PGD` on a part of the batch, whose theta then degrades the whole batch.

    For a single network (N = 1), which all images share: its gradient is a mean over images, which a part estimates.
    The part is the first images of the batch, which is drawn at random already. With a `share` of 1 this is exactly
    `PGD`.

    The budget applies to the whole batch: if its images move further than the part did, the deviation is shrunk once
    more. The losses, including `loss_after`, are those of the part, before that.

    Cost, K steps: those of `PGD` times the share, and one pass of the whole batch forward through F, or a few where the
    budget of the whole batch shrinks the deviation. It pays where one network for the whole batch is wanted anyway; the
    smaller the share, the weaker the adversary.

    Args:
        share: of the batch's images, in (0, 1]; at least one image is used.
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; it must be in (0, 1]")
        super().__post_init__()

    def _count(self, network: DegradationNetwork, hr: Tensor) -> int:
        if network.num_networks != 1:
            raise ValueError(
                f"the network is a bank of {network.num_networks}; SubsetPGD needs num_networks 1, for all images "
                "to share the degradation of a part of them"
            )
        return super()._count(network, hr)

    def _search(self, inputs: SearchInputs, objective: Objective) -> SearchResult:
        images = max(1, round(self.share * len(inputs.hr)))
        if images == len(inputs.hr):
            return super()._search(inputs, objective)
        hr, network_input, clean = (of_all[:images] for of_all in (inputs.hr, inputs.input, inputs.clean))
        result = super()._search(replace(inputs, hr=hr, input=network_input, clean=clean), objective)
        result.variable, result.lr = within_budget(inputs, result.variable)
        return result


@dataclass
class StyleShift(PGD):
    """`PGD` around random networks instead of identities (Sec 4.5; Table 2, "severe random style shift").

    All 3x3 kernels are drawn by Xavier's rule, std = sqrt(2 / (9 in + 9 out)); slopes and noise are the identity's. The
    LR images keep a skeleton of the HR images, in other colours and textures, clamped to [0, 1]. There is no LR-PSNR
    budget, because nothing is near the clean image. `delta` and `distance` count from the identity, `loss_before` is
    the random network's.
    """

    psnr_range: ClassVar[None] = None
    random_start: ClassVar[float] = 0.0

    def _draw(self, network: DegradationNetwork, rng: torch.Generator | None) -> Tensor:
        return xavier_deviation(network, rng)

    def _origin(self, inputs: SearchInputs) -> tuple[Tensor, Tensor | None] | None:
        return None if inputs.drawn is None else (inputs.drawn, None)


def xavier_deviation(network: DegradationNetwork, rng: torch.Generator | None = None) -> Tensor:
    """Draw deviations (N, P) that turn a bank's identities into random networks."""
    layout, theta_id = network.layout, network.theta_id
    wanted = theta_id.clone()
    for segment in layout.conv:
        out, into, size = segment.shape
        taps = draw_rows(
            lambda count, shape=segment.shape: torch.randn(count, *shape, device=theta_id.device, generator=rng),
            len(theta_id),
            rng,
        )
        segment.view(wanted).copy_(taps * (2 / (size * (out + into))) ** 0.5)
    return layout.to_moments(wanted - theta_id)
