"""The adversary: find the degradation, within a budget, that the generator restores worst (Sec 3.3).

Every method is an `Attack`, called with a degradation network, HR images and the objective to make large:

=========  ==========================================================================================
`PGD`      the paper's: projected gradient ascent on the degradation network's parameters
`Random`   a random deviation in the same budget, no adversary ("synthetic data augmentation", Table 2)
`Noise`    adversarial additive noise on the LR image, no network ("adversarial noise training", Table 2)
`Bicubic`  no degradation but bicubic downsampling ("classical SR training", Table 2)
=========  ==========================================================================================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.degradation import DegradationNetwork
from andfast.losses import Objective
from andfast.metrics import psnr
from andfast.ops import projected_step, scaled_norm
from andfast.theta import ScaleFactors

# How far a shrunk LR image may stay inside its budget: closer costs more passes through F than it is worth.
BUDGET_SLACK_DB = 1.0
SHRINK_TRIES = 10


@dataclass
class AttackResult:
    """What an attack found. N networks, B images, `steps` gradient steps.

    `Noise` and `Bicubic` have no networks: for them every image stands alone, and N is B.

    Attributes:
        lr: (B, 3, h, w) in [0, 1], the degraded images.
        delta: (N, P), the deviation from the identity, or None where no network took part.
        theta: (N, P), theta_id plus the deviation, or None likewise.
        losses: (1 + steps, N): the objective on the clean LR image, then after every step.
        loss_before: (N,) the first row of `losses`.
        loss_after: (N,) the loss of `lr`. Of a search that is the worst iterate, and its loss the largest found.
        distance: (N,) the scaled norm ||s * delta||_2 reached; for `Noise` the 2-norm of the added noise before
            the image is clamped to [0, 1].
        lr_psnr: (N,) PSNR in dB of `lr` against the clean LR image.
        budget_db: (N,) the least `lr_psnr` allowed; -inf where there was no such budget. Only a deviation of zero
            may miss it: in half types narrow networks round more than that (bfloat16, 12 draws: 54 dB from the
            clean image at 64 channels, 42 at 16, 27 at 8).
    """

    lr: Tensor
    delta: Tensor | None
    theta: Tensor | None
    losses: Tensor
    loss_before: Tensor
    loss_after: Tensor
    distance: Tensor
    lr_psnr: Tensor
    budget_db: Tensor


class Attack(ABC):
    """What every method of this module is."""

    @abstractmethod
    def __call__(
        self,
        network: DegradationNetwork,
        hr: Tensor,
        objective: Objective,
        generator: torch.Generator | None = None,
        margin_db: float = 0.0,
    ) -> AttackResult:
        """Degrade `hr`.

        Args:
            network: fresh from `reset_identity` for images of this size; not changed.
            hr: (B, 3, H, W) in [0, 1].
            objective: what to make large; a loss for each image.
            generator: where random choices come from, a generator of hr's device; None for torch's own.
            margin_db: makes an LR-PSNR budget milder by so many dB: a curriculum's ramp.
        """

    def clean(self, network: DegradationNetwork, hr: Tensor) -> Tensor:
        """The LR images that the method starts from, (B, 3, h, w): for a network, its identity's."""
        return network.clean(hr)


def draw_budget(
    lr_psnr: tuple[float, float] | None,
    count: int,
    margin_db: float,
    device: torch.device,
    generator: torch.Generator | None,
) -> Tensor:
    """The least PSNR allowed, in dB, for each of `count` networks: uniform in the range, plus the margin."""
    if lr_psnr is None:
        return torch.full((count,), -math.inf, device=device)
    low, high = lr_psnr
    return low + margin_db + (high - low) * torch.rand(count, device=device, generator=generator)


def check_range(lr_psnr: tuple[float, float] | None) -> None:
    """Refuse a range of PSNR that is none."""
    if lr_psnr is not None and not 0 < lr_psnr[0] <= lr_psnr[1] < math.inf:
        raise ValueError(f"lr_psnr is {lr_psnr}; it must be (low, high) in dB with 0 < low <= high")


def by_network(per_image: Tensor, num_networks: int) -> Tensor:
    """(B,) -> (N,): the mean over the images that share a network."""
    return per_image.unflatten(0, (num_networks, -1)).mean(dim=1)


def network_psnr(lr: Tensor, clean: Tensor, num_networks: int) -> Tensor:
    """PSNR in dB of all images of a network taken together, (N,) float32."""
    height, width = lr.shape[-2:]
    return psnr(lr.reshape(num_networks, -1, height, width), clean.reshape(num_networks, -1, height, width)).float()


@torch.no_grad()
def within_budget(
    network: DegradationNetwork, hr: Tensor, clean: Tensor, delta: Tensor, budget_db: Tensor
) -> tuple[Tensor, Tensor]:
    """Shrink each network's deviation until its LR image is no further from the clean one than the budget.

    The gain of ten layers compounds, so a radius in parameter space is a poor control: what a person can read is
    how far the image moves.

    Args:
        network, hr: as in `Attack`.
        clean: (B, 3, h, w), the clean LR images.
        delta: (N, P), the deviations wished for.
        budget_db: (N,), the least PSNR of an LR image against the clean one.

    Returns:
        The deviations, (N, P), each a multiple in [0, 1] of its row of `delta`, and their LR images: at most
        `BUDGET_SLACK_DB` inside the budget, further only where so many tries did not get nearer. A budget that
        the compute type's own rounding exceeds at the identity gives a zero deviation, and so does a deviation
        more than ten orders of magnitude too large.
    """
    count = network.num_networks
    scale = torch.ones_like(budget_db)
    inside, outside = torch.zeros_like(scale), torch.full_like(scale, math.inf)
    psnr_inside, psnr_outside = torch.full_like(scale, math.inf), torch.full_like(scale, -math.inf)
    aim = budget_db + BUDGET_SLACK_DB / 2
    for attempt in range(SHRINK_TRIES):
        lr = network(hr, delta * scale[:, None])
        # An image that overflowed is as far outside as images in [0, 1] can be.
        found = network_psnr(lr, clean, count).nan_to_num(nan=0.0, posinf=math.inf)
        fits = found >= budget_db
        inside, psnr_inside = torch.where(fits, scale, inside), torch.where(fits, found, psnr_inside)
        outside, psnr_outside = torch.where(fits, outside, scale), torch.where(fits, psnr_outside, found)
        done = fits & ((scale == 1) | (found <= budget_db + BUDGET_SLACK_DB))
        if done.all():
            return delta * scale[:, None], lr
        # The error grows at least with the deviation: exactly so gives the first guess, and from a pair of
        # brackets on the line between them in log(scale) is better. A saturated image does not show how far
        # outside it is, so while nothing fits, later guesses shrink faster and faster.
        haste = 2 ** max(attempt - 3, 0)
        proportional = scale * 10 ** ((found - aim).clamp(min=-14) * haste / 20)
        slope = (outside / inside).log() / (psnr_outside - psnr_inside)
        between = inside * ((aim - psnr_inside) * slope).exp()
        within = torch.maximum(torch.minimum(between, 0.98 * outside + 0.02 * inside), 0.02 * outside + 0.98 * inside)
        guess = torch.where(inside > 0, within, proportional)
        scale = torch.where(done, scale, guess)
    delta = delta * inside[:, None]
    return delta, network(hr, delta)


@dataclass
class PGD(Attack):
    """Projected gradient ascent on theta, from the identity (Sec 3.3 and 4.3).

    A step is delta += step_size * s^-2 g / ||s^-1 g||_2 with the gradient g and the scale vector s, then the
    projection onto ||s * delta||_2 <= epsilon, then the shrinking of each network's deviation into its LR-PSNR
    budget. Returned is the worst of all iterates.

    Args:
        steps: gradient steps.
        step_size: length of a step in the scaled norm.
        epsilon: radius of the ball in the scaled norm.
        scale_factors: the scaled norm's factors by group of parameters.
        lr_psnr: (low, high) in dB; each network draws its budget from this range: the least PSNR of its LR image
            against the clean one. None: the ball alone. Camera-captured LR images lie 22 to 36 dB from the
            downsampled HR image.
    """

    steps: int = 5
    step_size: float = 0.1
    epsilon: float = 0.5
    scale_factors: ScaleFactors = field(default_factory=ScaleFactors)
    lr_psnr: tuple[float, float] | None = (24.0, 40.0)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size is {self.step_size}; it must be positive and finite")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon is {self.epsilon}; it must be positive")
        check_range(self.lr_psnr)

    @classmethod
    def paper(cls) -> PGD:
        """The paper's numbers to the letter: 5 steps of 6 in a ball of radius 20, factors 1, 10, 50 (Sec 4.3).

        They do not work as written: with Xavier-initialised centres the whole of theta has a norm of about 24, so a
        single step of 6 drowns the image (L1 loss from 0.03 to 9e4 before clamping). Here to be studied.
        """
        factors = ScaleFactors(conv_dc=1.0, conv_shift=1.0, conv=1.0, noise=10.0, slope=50.0)
        return cls(steps=5, step_size=6.0, epsilon=20.0, scale_factors=factors, lr_psnr=None)

    def __call__(
        self,
        network: DegradationNetwork,
        hr: Tensor,
        objective: Objective,
        generator: torch.Generator | None = None,
        margin_db: float = 0.0,
    ) -> AttackResult:
        network.check_images(hr)
        inv_scale = 1 / network.layout.scale_vector(self.scale_factors, hr.device)
        budget_db = draw_budget(self.lr_psnr, network.num_networks, margin_db, hr.device, generator)
        clean = self.clean(network, hr)
        delta = torch.zeros_like(network.theta_id)
        worst = _Worst(network.num_networks)
        for _ in range(self.steps):
            lr, loss, gradient = loss_and_gradient(network, hr, delta, objective)
            worst.see(loss, lr, delta)
            delta = projected_step(delta, gradient, inv_scale, self.step_size, self.epsilon)
            delta, lr = within_budget(network, hr, clean, delta, budget_db)
        with torch.no_grad():
            worst.see(by_network(objective(lr, hr), network.num_networks), lr, delta)
        return worst.result(network, clean, budget_db, scaled_norm(worst.variable, inv_scale))


@dataclass
class Random(Attack):
    """A random deviation in the same budget: no adversary (Table 2, "synthetic data augmentation").

    Each network moves by epsilon in the scaled norm, in a direction drawn uniformly, and is then shrunk into its
    LR-PSNR budget. Arguments as for `PGD`.
    """

    epsilon: float = PGD.epsilon
    scale_factors: ScaleFactors = field(default_factory=ScaleFactors)
    lr_psnr: tuple[float, float] | None = PGD.lr_psnr

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon is {self.epsilon}; it must be positive and finite")
        check_range(self.lr_psnr)

    def __call__(
        self,
        network: DegradationNetwork,
        hr: Tensor,
        objective: Objective,
        generator: torch.Generator | None = None,
        margin_db: float = 0.0,
    ) -> AttackResult:
        network.check_images(hr)
        inv_scale = 1 / network.layout.scale_vector(self.scale_factors, hr.device)
        budget_db = draw_budget(self.lr_psnr, network.num_networks, margin_db, hr.device, generator)
        clean = self.clean(network, hr)
        direction = torch.randn(network.theta_id.shape, device=hr.device, generator=generator)
        direction *= inv_scale > 0
        delta = self.epsilon * inv_scale * direction / direction.norm(dim=1, keepdim=True)
        delta, lr = within_budget(network, hr, clean, delta, budget_db)
        worst = _Worst(network.num_networks)
        with torch.no_grad():
            before = by_network(objective(network(hr), hr), network.num_networks)
            after = by_network(objective(lr, hr), network.num_networks)
        # Not the worse of the two: a random deviation is taken as it comes.
        worst.see(after, lr, delta)
        worst.losses.insert(0, before)
        return worst.result(network, clean, budget_db, scaled_norm(delta, inv_scale))


@dataclass
class Noise(Attack):
    """Adversarial additive noise on the bicubic LR image (Table 2, "adversarial noise training").

    Projected gradient ascent on the noise itself, for each image, in the 2-norm ball that its LR-PSNR budget means,
    in steps of twice the radius in all.

    Args:
        steps: gradient steps.
        lr_psnr: as for `PGD`.
    """

    steps: int = 5
    lr_psnr: tuple[float, float] = (24.0, 40.0)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")
        check_range(self.lr_psnr)

    def clean(self, network: DegradationNetwork, hr: Tensor) -> Tensor:
        """Bicubic-downsampled images: no network has a part in them."""
        return bicubic_downsample(hr, network.scale)

    def __call__(
        self,
        network: DegradationNetwork,
        hr: Tensor,
        objective: Objective,
        generator: torch.Generator | None = None,
        margin_db: float = 0.0,
    ) -> AttackResult:
        images = hr.shape[0]
        clean = self.clean(network, hr)
        budget_db = draw_budget(self.lr_psnr, images, margin_db, hr.device, generator)
        radius = (clean[0].numel() ** 0.5 * 10 ** (-budget_db / 20))[:, None]
        noise = torch.zeros_like(clean).flatten(1)
        free = torch.ones(noise.shape[1], device=hr.device)
        worst = _Worst(images)
        for _ in range(self.steps):
            lr = (clean + noise.view_as(clean)).clamp(0, 1).requires_grad_()
            loss = objective(lr, hr)
            (gradient,) = torch.autograd.grad(loss.sum(), lr)
            worst.see(loss.detach(), lr.detach(), noise)
            # In units of its radius every image's ball is the unit ball.
            noise = radius * projected_step(noise / radius, gradient.flatten(1), free, 2 / self.steps, 1.0)
        with torch.no_grad():
            lr = (clean + noise.view_as(clean)).clamp(0, 1)
            worst.see(objective(lr, hr), lr, noise)
        return worst.result(None, clean, budget_db, worst.variable.norm(dim=1))


@dataclass
class Bicubic(Attack):
    """No adversary and no network: the LR image is bicubic-downsampled (Table 2, "classical SR training")."""

    def clean(self, network: DegradationNetwork, hr: Tensor) -> Tensor:
        """Bicubic-downsampled images: no network has a part in them."""
        return bicubic_downsample(hr, network.scale)

    def __call__(
        self,
        network: DegradationNetwork,
        hr: Tensor,
        objective: Objective,
        generator: torch.Generator | None = None,
        margin_db: float = 0.0,
    ) -> AttackResult:
        lr = self.clean(network, hr)
        budget_db = draw_budget(None, hr.shape[0], margin_db, hr.device, generator)
        worst = _Worst(hr.shape[0])
        with torch.no_grad():
            worst.see(objective(lr, hr), lr, torch.zeros_like(lr).flatten(1))
        return worst.result(None, lr, budget_db, torch.zeros_like(budget_db))


def bicubic_downsample(hr: Tensor, scale: int) -> Tensor:
    """Bicubic downsampling with antialiasing, as Pillow and MATLAB do it: (B, C, H, W) -> (B, C, H/s, W/s), clamped.

    Raises:
        ValueError: H or W is not a multiple of `scale`.
    """
    height, width = hr.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"image is {height} x {width}; both must be multiples of the scale, {scale}")
    size = (height // scale, width // scale)
    return F.interpolate(hr, size=size, mode="bicubic", antialias=True).clamp(0, 1)


def loss_and_gradient(
    network: DegradationNetwork, hr: Tensor, delta: Tensor, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """The LR images (B, 3, h, w), each network's loss (N,), and the direction of its gradient on delta, (N, P).

    Each row of the gradient is scaled by a positive number: the image gradient of a network is brought to a fixed
    1-norm before it enters F, where half types would underflow (or overflow) otherwise. A normalised step does not
    see the difference.
    """
    delta = delta.detach().requires_grad_()
    lr = network(hr, delta)
    image = lr.detach().requires_grad_()
    loss = by_network(objective(image, hr), network.num_networks)
    (costate,) = torch.autograd.grad(loss.sum(), image)
    groups = costate.unflatten(0, (network.num_networks, -1))
    total = groups.abs().sum(dim=(1, 2, 3, 4), keepdim=True).clamp(min=torch.finfo(costate.dtype).tiny)
    # 1024 keeps sums over all pixels below float16's 65504 and single pixels above its smallest normal number.
    costate = (groups * (1024 / total)).flatten(0, 1)
    (gradient,) = torch.autograd.grad(lr, delta, costate)
    return lr.detach(), loss.detach(), gradient


class _Worst:
    """The iterate with the largest loss, for each network (or image), and the losses of all iterates."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.losses: list[Tensor] = []

    def see(self, loss: Tensor, lr: Tensor, variable: Tensor) -> None:
        self.losses.append(loss)
        if len(self.losses) == 1:
            self.loss, self.lr, self.variable = loss, lr, variable
            return
        worse = loss > self.loss
        per_image = worse.repeat_interleave(lr.shape[0] // self.count)[:, None, None, None]
        self.loss = torch.where(worse, loss, self.loss)
        self.lr = torch.where(per_image, lr, self.lr)
        self.variable = torch.where(worse[:, None], variable, self.variable)

    def result(
        self, network: DegradationNetwork | None, clean: Tensor, budget_db: Tensor, distance: Tensor
    ) -> AttackResult:
        return AttackResult(
            lr=self.lr,
            delta=None if network is None else self.variable,
            theta=None if network is None else network.theta_id + network.layout.to_taps(self.variable),
            losses=torch.stack(self.losses),
            loss_before=self.losses[0],
            loss_after=self.loss,
            distance=distance,
            lr_psnr=network_psnr(self.lr, clean, self.count),
            budget_db=budget_db,
        )
