"""A training step: it does not wait for the device, skips bad updates, and replays minibatches."""

import copy
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from host_graph import HostGraph
from tiny_trainer import make, patches
from torch.utils._python_dispatch import TorchDispatchMode

from andfast.attack.base import bicubic_upsample
from andfast.attack.captured import TRIES, CapturedSearch, CudaGraph
from andfast.losses import charbonnier_loss, frequency_loss, l1_objective
from andfast.models.frozen import AutocastModule, FrozenModule
from andfast.training.step_metrics import DivergedError, PendingStep, StepLogger, StepResult
from andfast.training.trainer import Trainer


class DeviceWaits(TorchDispatchMode):
    """Records the operations that wait for a device, and whether "within_budget" calls them, where one is allowed."""

    WAITING = ("_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "masked_select", "unique", "allclose")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(name == word or name.startswith(f"_{word}") for word in self.WAITING):
            callers = {frame.f_code.co_name for frame, _ in traceback.walk_stack(None)}
            self.calls.append((name, "within_budget" in callers))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("generator", ["compact", "rrdbnet"])
@pytest.mark.parametrize(
    "options",
    [{}, {"train__warmup": 5}, {"train__precision": "bfloat16"}, {"attack__method": "free"}, {"loss__gan": 0.1}],
)
def test_a_step_waits_for_the_device_only_to_check_budgets(generator: str, options: dict[str, Any]) -> None:
    trainer = make(generator__name=generator, **options)
    with DeviceWaits() as waits:
        step = trainer.train_step(patches())
    assert bool(waits.calls) != (trainer.config.train.warmup > 0)
    assert all(allowed for _, allowed in waits.calls)
    assert step.read().loss > 0
    # The test can fail.
    with waits:
        assert torch.ones(()).item() == 1
    assert waits.calls[-1] == ("_local_scalar_dense", False)


@pytest.mark.parametrize(
    "options",
    [{}, {"train__precision": "bfloat16", "train__micro_batch": 2}, {"loss__gan": 0.1}, {"attack__random_start": 0.5}],
)
def test_an_attack_in_a_graph_trains_alike_and_waits_for_nothing(options: dict[str, Any]) -> None:
    on_gpu = torch.cuda.is_available()
    plain, graphed = (make(cuda_graphs="off", **options) for _ in range(2))
    assert plain.captured is None
    plain.captured = lambda search, inputs, objective: search(replace(inputs, tries=TRIES), objective)
    reports: list[str] = []
    graphed.captured = CapturedSearch(True, graphed.caching_hr, reports.append, CudaGraph if on_gpu else HostGraph)
    graphed.captured._seconds = lambda function, device: float("recorded" not in function.__code__.co_freevars)
    for seed in range(6):
        results = [trainer.train_step(patches(seed=seed)).read() for trainer in (plain, graphed)]
        assert results[0] == results[1] if not on_gpu else results[0].loss == pytest.approx(results[1].loss, rel=0.01)
    assert reports == ["the attack runs as a CUDA graph, in 0.00 of the time"]
    assert on_gpu or all(map(torch.equal, plain.generator.parameters(), graphed.generator.parameters()))
    with DeviceWaits() as waits:
        graphed.train_step(patches())
    assert not waits.calls


@pytest.mark.parametrize("generator", ["compact", "rrdbnet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_frozen_module_computes_what_the_generator_does(generator: str, dtype: torch.dtype) -> None:
    trainer = make(generator__name=generator)
    lr, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)
    frozen = FrozenModule(trainer.generator, dtype)
    for _ in range(2):
        results = []
        for module in (AutocastModule(trainer.generator, dtype), frozen):
            image = lr.clone().requires_grad_()
            loss = l1_objective(module)(image, hr)
            results.append((loss, *torch.autograd.grad(loss.sum(), image)))
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
        # And again after an update.
        before = loss
        trainer.train_step(patches())
        frozen.refresh()
        assert not torch.equal(l1_objective(frozen)(lr, hr), before)
    assert not any(weight.requires_grad for weight in frozen.module.parameters())
    assert all(weight.requires_grad for weight in trainer.generator.parameters())
    memory = {weight.data_ptr() for weight in trainer.generator.parameters()}
    shared = [weight.data_ptr() in memory for weight in frozen.module.parameters()]
    assert all(shared) if dtype == torch.float32 else not any(shared)


@pytest.mark.parametrize("baseline", [None, "bicubic"])
def test_the_adversary_raises_the_loss_that_the_generator_lowers(baseline: str | None) -> None:
    """With a baseline the difference from its loss of pixels."""
    trainer = make(loss__pixel="charbonnier", loss__frequency=0.3, attack__baseline=baseline or "null")
    lr, hr = torch.rand(2, 3, 8, 8, requires_grad=True), torch.rand(2, 3, 32, 32)
    restored = trainer.frozen(lr)
    loss = charbonnier_loss(restored, hr) + 0.3 * frequency_loss(restored, hr)
    torch.testing.assert_close(trainer.attack_objective(lr, hr), loss)
    torch.testing.assert_close(trainer.sheet_objective(lr, hr), charbonnier_loss(restored, hr))
    if baseline:
        loss = loss - charbonnier_loss(bicubic_upsample(lr, 4), hr)
    gradients = [torch.autograd.grad(of.sum(), lr)[0] for of in (trainer.attack_objective(lr, hr), loss)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-8)
    assert trainer.train_step(patches()).read().terms.keys() == {"loss_charbonnier", "loss_frequency"}


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


@pytest.mark.parametrize("where", ["loss", "gradient", "theta"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_update_that_is_not_finite_is_skipped_and_the_next_one_is_made(where: str, value: float) -> None:
    """One bad value in an image, in a gradient or in the theta of a network."""
    trainer, untouched = make(train__micro_batch=2), make(train__micro_batch=2)
    for seed in range(2):
        assert trainer.train_step(patches(seed=seed)).read().skipped == 0
        untouched.train_step(patches(seed=seed))
    kept = {name: [tensor.clone() for tensor in tensors] for name, tensors in _all_tensors(trainer).items()}
    with _injected(trainer, where, value):
        bad = trainer.train_step(patches(seed=2)).read()
        assert bad.skipped == 1
        assert trainer.train_step(patches(seed=2)).read().skipped == 2
    for name, tensors in _all_tensors(trainer).items():
        assert all(torch.equal(*pair) for pair in zip(tensors, kept[name], strict=True)), name
    # Later updates are not affected.
    untouched.step = trainer.step
    for one in (trainer, untouched):
        assert one.train_step(patches(seed=3)).read().skipped == 0
    for name, tensors in _all_tensors(trainer).items():
        assert all(torch.equal(*pair) for pair in zip(tensors, _all_tensors(untouched)[name], strict=True)), name
        assert name == "frozen" or not all(torch.equal(*pair) for pair in zip(tensors, kept[name], strict=True)), name


@contextmanager
def _injected(trainer: Trainer, where: str, value: float) -> Iterator[None]:
    """Replace one number in the trainer's steps."""
    if where == "gradient":

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            gradient = gradient.clone()
            gradient.view(-1)[3] = value
            return gradient

        hook = trainer._weights[1].register_hook(spoil)
        yield
        hook.remove()
        return
    attack = trainer.attack

    def spoilt(network: Any, hr: torch.Tensor, *more: Any) -> Any:
        if where == "theta":
            network.theta_id[1, 4] = value  # a centre tap, of which the identity is made
            return attack(network, hr, *more)
        result = attack(network, hr, *more)
        result.lr[2, 0, 3, 3] = value
        return result

    trainer.attack = spoilt
    yield
    trainer.attack = attack


def test_the_first_bad_batch_in_a_row_is_kept() -> None:
    trainer = make(attack__method="none")
    trainer.train_step(patches(seed=0))
    with _injected(trainer, "loss", torch.nan):
        for seed in (1, 2):
            trainer.train_step(patches(seed=seed))
    trainer.train_step(patches(seed=3))
    hr, lr = trainer.guard.batch
    assert torch.equal(hr, patches(seed=1).float() / 255)
    assert lr.isnan().nonzero().tolist() == [[2, 0, 3, 3]]
    with _injected(trainer, "loss", torch.nan):
        trainer.train_step(patches(seed=4))
    assert torch.equal(trainer.guard.batch[0], patches(seed=4).float() / 255)


def _all_tensors(trainer: Trainer) -> dict[str, list[torch.Tensor]]:
    return {
        "weights": list(trainer.generator.parameters()),
        "average": list(trainer.ema.parameters()),
        "frozen": list(trainer.frozen.module.parameters()),
        "optimizer": [value for state in trainer.optimizer.state.values() for value in state.values()],
    }


class Lines:
    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    def write(self, record: dict[str, Any]) -> None:
        self.written.append(record)


def pending(step: int, skipped: int) -> PendingStep:
    values = {field.name: torch.tensor(1.0) for field in fields(StepResult) if field.name not in ("skipped", "terms")}
    values["loss"] = torch.tensor(torch.nan if skipped else float(step))
    return PendingStep(step, 4.5e-3, torch.tensor(float(skipped)), torch.tensor(0.0), values)


@pytest.mark.parametrize("every", [1, 2, 3, 100])
def test_the_log_does_not_depend_on_how_often_it_is_written(every: int, capsys: pytest.CaptureFixture[str]) -> None:
    log = Lines()
    logger = StepLogger(log, every, max_skipped=3)
    in_row = [0, 1, 2, 0, 0, 1, 2]
    for step, skipped in enumerate(in_row, start=1):
        assert logger.add(pending(step, skipped), seconds=1.0, data_wait=0.5) == (step % every == 0)
        assert len(log.written) == step - step % every

    def last() -> None:
        logger.add(pending(8, 3), seconds=1.0, data_wait=0.5)
        logger.flush()

    with pytest.raises(DivergedError, match=r"in step 6 .*train\.learning_rate \(now 0\.0045.*3 updates") as error:
        last()
    assert error.value.step == 6
    assert [record["step"] for record in log.written] == list(range(1, 9))
    assert [record["skipped"] for record in log.written] == [*in_row, 3]
    # Once a row.
    assert [line.partition(" the loss")[0] for line in capsys.readouterr().err.splitlines()] == [
        "warning: in step 2",
        "warning: in step 6",
    ]
    logger.close()
    assert len(log.written) == 8


def test_the_state_of_an_adam_that_was_not_fused_is_loaded() -> None:
    trainer, other = make(), make()
    plain = torch.optim.Adam(trainer._weights, lr=1e-3, betas=(0.9, 0.99))
    l1_objective(trainer.autocast)(torch.rand(4, 3, 8, 8), torch.rand(4, 3, 32, 32)).mean().backward()
    plain.step()
    state = trainer.state() | {"optimizer": plain.state_dict(), "step": 1}
    other.load(copy.deepcopy(state))
    assert other.optimizer.param_groups[0]["fused"]
    assert state["optimizer"]["param_groups"][0]["fused"] is None
    rate = other.learning_rate
    plain.param_groups[0]["lr"] = rate
    plain.zero_grad()
    other.train_step(patches())
    for weight, theirs in zip(trainer._weights, other._weights, strict=True):
        weight.grad = theirs.grad.clone()
    plain.step()
    for weight, theirs in zip(trainer._weights, other._weights, strict=True):
        torch.testing.assert_close(weight, theirs, rtol=1e-5, atol=1e-7)


def test_one_replay_is_a_plain_step_on_the_identity() -> None:
    trainer, other = make(attack__method="free", attack__replays=1), make()
    hr = patches().float() / 255
    other._reset_bank(hr)
    losses = other._update(other.bank(hr), hr).losses
    assert trainer.train_step(patches()).read().loss == losses.mean().item()
    assert all(torch.equal(*pair) for pair in zip(trainer._weights, other._weights, strict=True))


@pytest.mark.parametrize("options", [{}, {"train__micro_batch": 2}])
def test_replays_update_the_generator_and_theta_from_the_same_passes(options: dict[str, Any]) -> None:
    trainer, other = (make(attack__method="free", attack__replays=3, **more) for more in (options, {}))
    hr = patches().float() / 255
    random, margin_db = other._reset_bank(hr)
    replay = other.attack.begin(other.bank, hr, random, margin_db)
    losses = []
    for index in range(3):
        loss = l1_objective(other.autocast)(replay.lr, hr).mean()
        other.optimizer.zero_grad()
        loss.backward()
        other.optimizer.param_groups[0]["lr"] = other.learning_rate
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
