"""What the paper compares its adversary with (Table 2) and takes a budget: random deviations, adversarial noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from andfast.attack.base import ImageAttack, Iterates, NetworkAttack, Task, by_network
from andfast.attack.budget import check_range
from andfast.attack.origin import random_deviation
from andfast.attack.pgd import PGD
from andfast.degradation.lens import Lens
from andfast.ops import projected_step
from andfast.ops.theta_layout import ScaleFactors


@dataclass
class Random(NetworkAttack):
    """A random deviation in the same budget: no adversary (Table 2, "synthetic data augmentation").

    Each network moves by epsilon in the scaled norm, in a direction drawn uniformly, and is then shrunk into its
    LR-PSNR budget. It costs two passes forward through F, one more for every try that a budget refuses, and two through
    G.

    Args:
        epsilon, scale_factors, lr_psnr, lens: as for `PGD`; epsilon is finite.
    """

    epsilon: float = PGD.epsilon
    scale_factors: ScaleFactors = field(default_factory=ScaleFactors)
    lr_psnr: tuple[float, float] | None = PGD.lr_psnr
    lens: Lens | None = None

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon is {self.epsilon}; it must be positive and finite")
        check_range(self.lr_psnr)

    def _search(self, task: Task) -> Iterates:
        network, hr, objective = task.network, task.hr, task.objective
        delta, lr = random_deviation(task, self.inv_scale(network), self.epsilon)
        iterates = Iterates()
        with torch.no_grad():
            before = by_network(objective(network(task.seen), hr), network.num_networks)
            # Not the worse of the two: a random deviation is taken as it comes.
            iterates.see(by_network(objective(lr, hr), network.num_networks), lr, delta)
            iterates.losses.insert(0, before)
        return iterates


@dataclass
class Noise(ImageAttack):
    """Adversarial additive noise on the bicubic LR image (Table 2, "adversarial noise training").

    Projected gradient ascent on the noise itself, for each image, in the 2-norm ball that its LR-PSNR budget means,
    in steps of twice the radius in all.

    Args:
        steps: gradient steps.
        lr_psnr: as for `PGD`.
    """

    steps: int = 5
    lr_psnr: tuple[float, float] = (22.0, 36.0)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")
        check_range(self.lr_psnr)

    def _search(self, task: Task) -> Iterates:
        clean, hr, objective = task.clean, task.hr, task.objective
        radius = (clean[0].numel() ** 0.5 * 10 ** (-task.budget_db / 20))[:, None]
        noise = torch.zeros_like(clean).flatten(1)
        free = torch.ones(noise.shape[1], device=hr.device)
        iterates = Iterates()
        for _ in range(self.steps):
            lr = (clean + noise.view_as(clean)).clamp(0, 1).requires_grad_()
            loss = objective(lr, hr)
            (gradient,) = torch.autograd.grad(loss.sum(), lr)
            iterates.see(loss.detach(), lr.detach(), noise)
            # In units of its radius every image's ball is the unit ball.
            noise = radius * projected_step(noise / radius, gradient.flatten(1), free, 2 / self.steps, 1.0)
        with torch.no_grad():
            lr = (clean + noise.view_as(clean)).clamp(0, 1)
            iterates.see(objective(lr, hr), lr, noise)
        return iterates
