"""The fast step equals the plain one: the same theta, loss and gradient of G with all backends."""

import pytest
import torch
from tiny_trainer import make, patches, watch_attack
from torch import Tensor

from andfast.attack import PGD
from andfast.losses import l1_objective
from andfast.ops import dispatch, use_backend
from andfast.training.trainer import Trainer

pytestmark = pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))

# Blocks of the size that the kernels are made for in little: every layer and way through them is there.
OPTIONS = {
    "train__batch_size": 2,
    "generator__depth": 1,
    "generator__features": 16,
    "degradation__channels": 16,
    "attack__steps": 5,
}


def step(trainer: Trainer) -> tuple[Tensor, Tensor, Tensor]:
    """The deviation of the attack, the loss of the update and its gradient, end to end."""
    results = watch_attack(trainer)
    loss = trainer.train_step(patches(2)).read().loss
    gradient = torch.cat([weight.grad.flatten() for weight in trainer.generator.parameters()])
    return results[0].delta, torch.tensor(loss), gradient


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("generator", ["rrdbnet", "compact"])
@pytest.mark.parametrize("networks", [1, "batch"])
def test_float32(generator, networks):
    options = OPTIONS | {"generator__name": generator, "degradation__num_networks": networks}
    with use_backend("reference"):
        plain = step(make(**options))
    for what, one, other in zip(("theta", "loss", "gradient"), step(make(**options)), plain, strict=True):
        assert distance(one, other) < 1e-4, what


# Rounding in half types grows with each step of the search, most in theta, since it changes the direction of gradients,
# and least in the loss. Relative bounds of the deviation, the loss and the gradient, about twice the measured ones.
HALF = (0.5, 0.015, 0.8)


@pytest.mark.parametrize("generator", ["rrdbnet", "compact"])
@pytest.mark.parametrize("networks", [1, "batch"])
def test_bfloat16_against_float64(generator, networks):
    options = OPTIONS | {"generator__name": generator, "degradation__num_networks": networks}
    half = {"train__precision": "bfloat16", "degradation__precision": "bfloat16"}
    trainer = make(**options | half)
    wide = make(**options | half)
    exact = step_in_float64(wide)
    for what, one, other, bound in zip(("theta", "loss", "gradient"), step(trainer), exact, HALF, strict=True):
        assert distance(one, other) < bound, what


def step_in_float64(trainer: Trainer) -> tuple[Tensor, Tensor, Tensor]:
    """`step` on the plain references in float64."""
    hr = patches(2).double() / 255
    random, _ = trainer._reset_bank(hr)
    network = trainer.bank
    network.dtype = torch.float64  # theta itself is float32 everywhere
    generator = trainer.generator.double()
    settings = trainer.config.attack
    attack = PGD(settings.steps, psnr_range=settings.psnr_range)
    with use_backend("reference"):
        found = attack(network, hr, l1_objective(generator.requires_grad_(False)), random)
        weights = list(generator.requires_grad_(True).parameters())
        loss = l1_objective(generator)(found.lr, hr).mean()
        gradient = torch.autograd.grad(loss, weights)
    return found.delta, loss.detach(), torch.cat([part.flatten() for part in gradient])
