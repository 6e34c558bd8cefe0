"""Micro-batches and checkpointed blocks: the same step in less memory."""

from typing import Any

import pytest
import torch
from tiny_trainer import make, patches
from torch import Tensor

from andfast.losses import l1_objective
from andfast.training.micro_batches import micro_batched
from andfast.training.trainer import Trainer
from bench.peak_memory import peak_memory


def step(trainer: Trainer) -> dict[str, Tensor]:
    """The attack's theta, the loss on it, and G's gradient."""
    hr = patches().float() / 255
    lr, attack = trainer._make_lr(hr)
    assert attack is not None
    loss = trainer._backward(lr, hr)[0]
    gradient = torch.cat([weight.grad.flatten() for weight in trainer.generator.parameters()])
    return {"theta": attack.theta, "delta": attack.delta, "losses": attack.losses, "loss": loss, "gradient": gradient}


def distance(found: Tensor, right: Tensor) -> float:
    return ((found - right).norm() / right.norm()).item()


@pytest.mark.parametrize("networks", [1, 2, "batch"])
@pytest.mark.parametrize("images", [1, 2, 4])
def test_micro_batches_are_the_full_batch(networks: int | str, images: int) -> None:
    options: dict[str, Any] = {"degradation__num_networks": networks}
    right = step(make(**options))
    found = step(make(**options, train__micro_batch=images))
    assert right["delta"].norm() > 0.01
    for name in right:
        assert distance(found[name], right[name]) < 2e-5, name


@pytest.mark.parametrize(
    "changed",
    [
        {"generator__name": "rrdbnet"},
        {"degradation__noise": "gaussian", "degradation__num_networks": 2},
        {"attack__method": "noise"},
    ],
)
def test_micro_batches_with_other_generators_noises_and_attacks(changed: dict[str, Any]) -> None:
    right, found = (step_of_any(make(**changed, **more)) for more in ({}, {"train__micro_batch": 2}))
    for one, other in zip(found, right, strict=True):
        assert distance(one, other) < 1e-4


def step_of_any(trainer: Trainer) -> tuple[Tensor, ...]:
    hr = patches().float() / 255
    lr, _ = trainer._make_lr(hr)
    return lr, trainer._backward(lr, hr)[0], *(weight.grad for weight in trainer.generator.parameters())


@pytest.mark.parametrize("images", [1, 3, 5])
def test_the_micro_batched_loss_is_the_loss(images: int) -> None:
    torch.manual_seed(0)
    objective = l1_objective(torch.nn.Conv2d(3, 3, 3, padding=1))
    lr, hr, weights = torch.rand(5, 3, 8, 8, requires_grad=True), torch.rand(5, 3, 8, 8), torch.randn(5)
    right = objective(lr, hr)
    found = micro_batched(objective, images)(lr, hr)
    torch.testing.assert_close(found, right)
    gradients = [torch.autograd.grad((loss * weights).sum(), lr)[0] for loss in (found, right)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        assert not micro_batched(objective, images)(lr, hr).requires_grad
    assert micro_batched(objective, None) is objective


def test_micro_batched_gradients_do_not_underflow_in_half_types() -> None:
    def objective(lr: Tensor, hr: Tensor) -> Tensor:
        # The gradient passes float16, as it does in a generator that computes in it.
        return (lr.half().float() - hr).abs().mean(dim=(1, 2, 3))

    lr, hr = torch.rand(2, 3, 256, 256, requires_grad=True), torch.zeros(2, 3, 256, 256)
    (gradient,) = torch.autograd.grad(micro_batched(objective, 1)(lr, hr).sum(), lr)
    torch.testing.assert_close(gradient, torch.full_like(lr, 1 / hr[0].numel()))


def kept(trainer: Trainer) -> int:
    """The bytes that the graph of the update's loss holds."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = l1_objective(trainer.autocast)(torch.rand(4, 3, 8, 8), torch.rand(4, 3, 32, 32))
    del loss
    weights = sum(weight.untyped_storage().nbytes() for weight in trainer.generator.parameters())
    return sum(storages.values()) - weights


def test_checkpointed_blocks_give_the_same_gradients_from_less_memory() -> None:
    options = {"generator__name": "rrdbnet", "generator__depth": 4}
    plain, checkpointed = make(**options), make(**options, train__checkpoint_blocks=True)
    assert not checkpointed.frozen.module.body.checkpoint_blocks
    right, found = step(plain), step(checkpointed)
    assert all(torch.equal(found[name], right[name]) for name in right)
    assert kept(checkpointed) < 0.5 * kept(plain)


def test_a_micro_batch_takes_less_memory() -> None:
    def peak(trainer: Trainer) -> int:
        trainer.train_step(patches(size=64))
        return peak_memory(lambda: trainer.train_step(patches(size=64)), torch.device("cpu"))

    options = {"train__patch_size": 64, "degradation__num_networks": 1, "degradation__channels": 32}
    assert peak(make(**options, train__micro_batch=1)) < 0.5 * peak(make(**options))
