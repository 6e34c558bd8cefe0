"""The paper's adversary: projected gradient ascent on theta (Sec 3.3 and 4.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from andfast.attack.base import Iterates, NetworkAttack, Task, by_network
from andfast.attack.budget import check_range, within_budget
from andfast.degradation import DegradationNetwork
from andfast.losses import Objective
from andfast.ops import projected_step
from andfast.theta import ScaleFactors


@dataclass
class PGD(NetworkAttack):
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
    lr_psnr: tuple[float, float] | None = (22.0, 36.0)

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

    def _search(self, task: Task) -> Iterates:
        network, hr, objective = task.network, task.hr, task.objective
        inv_scale = self.inv_scale(network)
        delta = torch.zeros_like(network.theta_id)
        iterates = Iterates()
        for _ in range(self.steps):
            lr, loss, gradient = loss_and_gradient(network, hr, delta, objective)
            iterates.see(loss, lr, delta)
            delta = projected_step(delta, gradient, inv_scale, self.step_size, self.epsilon)
            delta, lr = within_budget(network, hr, task.clean, delta, task.budget_db)
        with torch.no_grad():
            iterates.see(by_network(objective(lr, hr), network.num_networks), lr, delta)
        return iterates


def loss_and_gradient(
    network: DegradationNetwork, hr: Tensor, delta: Tensor, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """The LR images (B, 3, h, w), each network's loss (N,), and the direction of its gradient on delta, (N, P).

    Each row of the gradient is scaled by a positive number: the image gradient of a network is brought to a fixed
    1-norm before it enters F, where half types would underflow (or overflow) otherwise. A normalised step does not
    see the difference. (What happens inside the objective is the objective's: a generator in float16 wants its loss
    scaled.)
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
