"""One training step: no waiting for the device, and what the adversary looks through."""

import copy
import traceback
from dataclasses import fields
from typing import Any

import pytest
import torch
from tiny_trainer import make, patches
from torch.utils._python_dispatch import TorchDispatchMode

from andfast.losses import l1_objective
from andfast.models.views import FrozenView, View
from andfast.training.readout import DivergedError, PendingStep, Readout, StepResult
from andfast.training.trainer import Trainer


class Looks(TorchDispatchMode):
    """Names the operations for which a device's queue must run empty, and where they are called from.

    Only whether an image is within its range of PSNR the adversary must look at: "within_budget".
    """

    WAITING = ("_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "masked_select", "unique", "allclose")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(name == word or name.startswith(f"_{word}") for word in self.WAITING):
            callers = {frame.f_code.co_name for frame, _ in traceback.walk_stack(None)}
            self.seen.append((name, "within_budget" in callers))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("generator", ["compact", "rrdbnet"])
@pytest.mark.parametrize(
    "options", [{}, {"train__warmup": 5}, {"train__precision": "bfloat16"}, {"attack__method": "free"}]
)
def test_a_step_waits_for_the_device_in_the_trust_region_alone(generator: str, options: dict[str, Any]) -> None:
    trainer = make(generator__name=generator, **options)
    with Looks() as looks:
        step = trainer.train_step(patches())
    assert bool(looks.seen) != (trainer.config.train.warmup > 0)
    assert all(allowed for _, allowed in looks.seen)
    assert step.read().loss > 0
    # It does see what one might write.
    with looks:
        assert torch.ones(()).item() == 1
    assert looks.seen[-1] == ("_local_scalar_dense", False)


@pytest.mark.parametrize("generator", ["compact", "rrdbnet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_frozen_view_computes_what_the_generator_does(generator: str, dtype: torch.dtype) -> None:
    trainer = make(generator__name=generator)
    lr, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)
    view = FrozenView(trainer.generator, dtype)
    for _ in range(2):
        found = []
        for look in (View(trainer.generator, dtype), view):
            image = lr.clone().requires_grad_()
            loss = l1_objective(look)(image, hr)
            found.append((loss, *torch.autograd.grad(loss.sum(), image)))
        assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
        # And again after an update.
        before = loss
        trainer.train_step(patches())
        view.refresh()
        assert not torch.equal(l1_objective(view)(lr, hr), before)
    assert not any(weight.requires_grad for weight in view.module.parameters())
    assert all(weight.requires_grad for weight in trainer.generator.parameters())
    memory = {weight.data_ptr() for weight in trainer.generator.parameters()}
    shared = [weight.data_ptr() in memory for weight in view.module.parameters()]
    assert all(shared) if dtype == torch.float32 else not any(shared)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_attack_leaves_no_gradient_on_the_generator(precision: str) -> None:
    trainer = make(train__precision=precision)
    attack = trainer.attack
    weights = [*trainer.generator.parameters(), *trainer.frozen.module.parameters()]

    def watched(*arguments: Any) -> Any:
        result = attack(*arguments)
        assert all(weight.grad is None for weight in weights)
        return result

    trainer.attack = watched
    trainer.train_step(patches())
    assert all(weight.grad is not None for weight in trainer.generator.parameters())


def test_nothing_changes_from_the_diverged_step_on() -> None:
    trainer = make(train__warmup=9)
    good = [trainer.train_step(patches(seed=seed)) for seed in range(2)]
    kept = {name: [tensor.clone() for tensor in tensors] for name, tensors in _all_tensors(trainer).items()}
    hook = trainer._weights[0].register_hook(lambda gradient: gradient / 0)
    bad = trainer.train_step(patches(seed=2))
    hook.remove()
    later = trainer.train_step(patches(seed=3))
    for name, tensors in _all_tensors(trainer).items():
        assert all(torch.equal(*pair) for pair in zip(tensors, kept[name], strict=True)), name
    assert all(step.read().loss > 0 for step in good)
    with pytest.raises(DivergedError, match=r"in step 3 .*train\.learning_rate \(now 4\.5") as error:
        bad.read()
    assert error.value.step == 3
    with pytest.raises(DivergedError):
        later.read()
    # A state that was loaded is gone on from.
    trainer.load(trainer.state())
    trainer.train_step(patches(seed=3))
    assert not torch.equal(trainer._weights[0], kept["weights"][0])


def _all_tensors(trainer: Trainer) -> dict[str, list[torch.Tensor]]:
    return {
        "weights": list(trainer.generator.parameters()),
        "average": list(trainer.ema.parameters()),
        "optimizer": [value for state in trainer.optimizer.state.values() for value in state.values()],
    }


class Lines:
    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    def write(self, record: dict[str, Any]) -> None:
        self.written.append(record)


@pytest.mark.parametrize("every", [1, 2, 3, 100])
def test_what_is_logged_does_not_depend_on_how_often(every: int) -> None:
    log = Lines()
    readout = Readout(log, every)
    values = {field.name: torch.tensor(1.0) for field in fields(StepResult)}
    for step in range(1, 6):
        diverged, norm, loss = (torch.tensor(float(value)) for value in (step == 5, 0, step))
        pending = PendingStep(step, 1e-3, diverged, norm, {**values, "loss": loss})
        if every == 1 and step == 5:
            break
        assert readout.add(pending, seconds=1.0, data_wait=0.5) == (step % every == 0)
        assert len(log.written) == step - step % every
    if every == 1:
        with pytest.raises(DivergedError):
            readout.add(pending, seconds=1.0, data_wait=0.5)
    else:
        with pytest.raises(DivergedError):
            readout.flush()
    assert [(record["step"], record["loss"]) for record in log.written] == [(step, step) for step in range(1, 5)]
    readout.close()
    assert len(log.written) == 4


def test_a_state_of_an_adam_that_was_not_fused_is_gone_on_from() -> None:
    trainer, other = make(), make()
    plain = torch.optim.Adam(trainer._weights, lr=1e-3, betas=(0.9, 0.99))
    trainer.objective(torch.rand(4, 3, 8, 8), torch.rand(4, 3, 32, 32)).mean().backward()
    plain.step()
    state = trainer.state() | {"optimizer": plain.state_dict(), "step": 1}
    other.load(copy.deepcopy(state))
    assert other.optimizer.param_groups[0]["fused"]
    assert state["optimizer"]["param_groups"][0]["fused"] is None
    rate = other._set_learning_rate()
    plain.param_groups[0]["lr"] = rate
    plain.zero_grad()
    other.train_step(patches())
    for weight, theirs in zip(trainer._weights, other._weights, strict=True):
        weight.grad = theirs.grad.clone()
    plain.step()
    for weight, theirs in zip(trainer._weights, other._weights, strict=True):
        torch.testing.assert_close(weight, theirs, rtol=1e-5, atol=1e-7)


def test_a_single_replay_is_a_plain_step_on_the_identity() -> None:
    trainer, other = make(attack__method="free", attack__replays=1), make()
    hr = patches().float() / 255
    network, _, _ = other._identity(hr)
    losses, _ = other._update(network(hr), hr)
    assert trainer.train_step(patches()).read().loss == losses.mean().item()
    assert all(torch.equal(*pair) for pair in zip(trainer._weights, other._weights, strict=True))


@pytest.mark.parametrize("options", [{}, {"train__micro_batch": 2}])
def test_replays_update_the_generator_and_theta_from_the_same_passes(options: dict[str, Any]) -> None:
    trainer, other = (make(attack__method="free", attack__replays=3, **more) for more in (options, {}))
    hr = patches().float() / 255
    network, random, margin_db = other._identity(hr)
    replay = other.attack.begin(network, hr, random, margin_db)
    losses = []
    for index in range(3):
        loss = other.objective(replay.lr, hr).mean()
        other.optimizer.zero_grad()
        loss.backward()
        other._set_learning_rate()
        other.optimizer.step()
        losses.append(loss.item())
        if index < 2:
            replay.advance(replay.lr.grad)
    result = trainer.train_step(patches()).read()
    assert trainer.step == 1
    assert (result.loss_before_attack, result.loss) == pytest.approx((losses[0], losses[2]), rel=1e-5)
    assert result.loss_after_attack == result.loss
    for one, two in zip(trainer._weights, other._weights, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=2e-6)
