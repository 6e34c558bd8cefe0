"""Optimizers, learning rate schedules and gradient clipping: what each computes, skips, saves and resumes."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import content, options
from schedulefree import AdamWScheduleFree
from test_config import refused
from tiny_trainer import make, patches

from andfast import train
from andfast.models import load_discriminator
from andfast.training.memory_check import estimate_memory

OPTIMIZERS = ("adam", "adamw", "adan", "schedule_free")
CONSTANT = {"train__schedule": "constant"}


def gradients_of_steps(trainer: Any, count: int) -> list[list[torch.Tensor]]:
    """Train; returns the gradients of each update, as the optimizer gets them."""
    found: list[list[torch.Tensor]] = []
    hook = trainer.optimizer.register_step_pre_hook(
        lambda *_: found.append([weight.grad.clone() for weight in trainer._weights])
    )
    for seed in range(count):
        trainer.train_step(patches(seed=seed))
    hook.remove()
    return found


def adan(weights: list[torch.Tensor], gradients: list[list[torch.Tensor]], rates: list[float]) -> list[torch.Tensor]:
    """Algorithm 1 of Xie et al. (arXiv:2208.06677), with bias corrections, betas 0.98, 0.92, 0.99, weight decay 0.1."""
    weights = [weight.double() for weight in weights]
    m, v, n = ([torch.zeros_like(weight) for weight in weights] for _ in range(3))
    for k, (of_update, rate) in enumerate(zip(gradients, rates, strict=True)):
        for index, gradient in enumerate(of_update):
            difference = gradient - gradients[max(k - 1, 0)][index]
            m[index] = 0.98 * m[index] + 0.02 * gradient
            v[index] = 0.92 * v[index] + 0.08 * difference
            n[index] = 0.99 * n[index] + 0.01 * (gradient + 0.92 * difference).double() ** 2
            eta = rate / ((n[index] / (1 - 0.99 ** (k + 1))).sqrt() + 1e-8)
            move = m[index] / (1 - 0.98 ** (k + 1)) + 0.92 * v[index] / (1 - 0.92 ** (k + 1))
            weights[index] = (weights[index] - eta * move) / (1 + rate * 0.1)
    return [weight.float() for weight in weights]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_those_of_the_optimizer(name: str) -> None:
    """Of PyTorch's plain ones, the published algorithm, and the package used as its README says."""
    trainer = make(train__optimizer=name, train__weight_decay=0.1, **CONSTANT)
    start = [weight.detach().clone() for weight in trainer._weights]
    gradients = gradients_of_steps(trainer, 3)
    rates = [2e-3 * (step + 1) / 100 for step in range(3)]
    if name == "adan":
        expected = adan(start, gradients, rates)
    else:
        expected = [torch.nn.Parameter(weight.clone()) for weight in start]
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "schedule_free": AdamWScheduleFree}
        betas = {"betas": (0.9, 0.99)} if name != "schedule_free" else {}
        optimizer = kinds[name](expected, weight_decay=0.1, foreach=False, **betas)
        for of_update, rate in zip(gradients, rates, strict=True):
            if name == "schedule_free":
                optimizer.train()
            optimizer.param_groups[0]["lr"] = rate
            for weight, gradient in zip(expected, of_update, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
            if name == "schedule_free":
                optimizer.eval()
    found = trainer._averages if name == "schedule_free" else trainer._weights
    for one, other, first in zip(found, expected, start, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
        assert not torch.equal(one, first)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_betas_are_given_to_the_optimizer(name: str) -> None:
    betas = (0.8, 0.9, 0.95)[: 3 if name == "adan" else 2]
    trainer = make(train__optimizer=name, train__betas=list(betas), loss__gan=0.1, **CONSTANT)
    for optimizer in (trainer.optimizer, trainer.discriminator.optimizer):
        assert optimizer.param_groups[0]["betas"] == betas


@pytest.mark.parametrize("name", ["adamw", "adan", "schedule_free"])
def test_an_update_that_is_not_finite_changes_nothing(name: str) -> None:
    trainer, untouched = (make(train__optimizer=name, train__clip_grad=1, **CONSTANT) for _ in range(2))
    for each in (trainer, untouched):
        each.train_step(patches(seed=0))
    hook = trainer._weights[1].register_hook(lambda gradient: gradient * torch.nan)
    assert trainer.train_step(patches(seed=1)).read().skipped == 1
    hook.remove()
    untouched.step = trainer.step
    for each in (trainer, untouched):
        each.train_step(patches(seed=2))
    assert all(map(torch.equal, trainer._weights, untouched._weights))
    assert all(map(torch.equal, trainer._averages, untouched._averages))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_resumes_bit_by_bit_however_often_it_validates(name: str, tmp_path: Path) -> None:
    more = {"train.optimizer": name, "train.schedule": "constant", "loss.gan": 0.1, "discriminator.name": "unet"}
    more |= {"discriminator.features": 2, "train.clip_grad": 0.5, "train.weight_decay": 0.01}
    command = [f"--{key}={value}" for key, value in more.items()]
    for folder, iterations in (("whole", 6), ("parts", 3), ("parts", 6)):
        found = options(tmp_path / folder, **{"train.iterations": iterations})
        assert train.main([*found, *command]) == 0
    assert content(tmp_path / "whole") == content(tmp_path / "parts")
    # Neither validating nor saving changes what is trained.
    assert (
        train.main([*options(tmp_path / "once", **{"train.validate_every": 0, "train.save_every": 0}), *command]) == 0
    )
    once, whole = content(tmp_path / "once"), content(tmp_path / "whole")
    assert once["state.pt"] == whole["state.pt"]
    assert once["model.safetensors"] == whole["model.safetensors"]


def test_schedule_free_saves_the_weights_that_it_averages(tmp_path: Path) -> None:
    """As the package's eval() makes them, of both networks; what is trained are others."""
    more = ["--train.optimizer=schedule_free", "--train.schedule=constant", "--loss.gan=0.1"]
    more += ["--discriminator.name=unet", "--discriminator.features=2"]
    assert train.main([*options(tmp_path), *more]) == 0
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    saved = torch.load(tmp_path / "model.pth", weights_only=True)["params_ema"]
    discriminator = dict(load_discriminator(tmp_path / "discriminator.pth").named_parameters())
    for trained, kept, found in (
        (state["generator"], state["optimizer"], saved),
        (state["discriminator"]["module"], state["discriminator"]["optimizer"], discriminator),
    ):
        weights = {name: torch.nn.Parameter(trained[name].clone()) for name in trained if name in found}
        optimizer = AdamWScheduleFree(weights.values())
        optimizer.load_state_dict(kept)
        optimizer.eval()
        for name, weight in weights.items():
            torch.testing.assert_close(weight.data, found[name].data, rtol=1e-5, atol=1e-7)
            assert not torch.equal(trained[name], found[name].data)


@pytest.mark.parametrize(("name", "package"), [("adan", "pytorch_optimizer"), ("schedule_free", "schedulefree")])
def test_a_missing_package_is_named_before_anything_is_written(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    more = {"train.optimizer": name, "train.schedule": "constant"}
    assert train.main(options(tmp_path / "run", **more)) == 2
    message = capsys.readouterr().err
    assert f"train.optimizer {name} needs the package {package}" in message
    assert f"pip install {package}" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train.optimizer", "sgd"], ["train.optimizer is sgd; it must be one of adam, adamw, "]),
        (["--train.betas", "[0.9]"], ["train.betas is [0.9]; train.optimizer adam has 2"]),
        (["--train.betas", "[0.9, 1]"], ["train.betas is [0.9, 1.0]", "each in [0, 1)"]),
        (["--train.optimizer", "adan", "--train.betas", "[0.9, 0.99]"], ["train.optimizer adan has 3"]),
        (["--train.optimizer", "schedule_free"], ["train.schedule is cosine", "schedule_free", "constant"]),
        (["--train.weight_decay", "-1"], ["train.weight_decay", "-1"]),
        (["--train.clip_grad", "0"], ["train.clip_grad", "0"]),
        (["--train.schedule", "multistep"], ["train.milestones is []", "multistep needs some"]),
        (["--train.milestones", "[5]"], ["train.milestones is [5]; train.schedule cosine has none"]),
        (["--train.schedule=multistep", "--train.milestones=[5, 5]"], ["train.milestones is [5, 5]", "later"]),
        (["--train.schedule=multistep", "--train.milestones=[0]"], ["train.milestones", "0"]),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = " ".join(refused(arguments, capsys).split())
    for word in words:
        assert word in message


def test_multistep_is_pytorch_s() -> None:
    trainer = make(train__schedule="multistep", train__milestones=[101, 103], train__gamma=0.1, train__iterations=200)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, [101, 103], gamma=0.1)
    for step in range(106):
        trainer.step = step
        if step >= 99:  # the linear start is over
            assert trainer.learning_rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert trainer.learning_rate == pytest.approx(2e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_clipping_is_pytorch_s_and_leaves_small_gradients(precision: str) -> None:
    """Of each network on its own, by the norm of its whole gradient."""
    common = {"train__precision": precision, "loss__gan": 0.1, "discriminator__features": 2}
    free, loose, tight = (make(train__clip_grad=norm, **common) for norm in ("null", 1e6, 1e-3))
    found = []
    for trainer in (free, loose, tight):
        both: list[list[torch.Tensor]] = []
        for part, weights in ((trainer, trainer._weights), (trainer.discriminator, trainer.discriminator._weights)):
            part.optimizer.register_step_pre_hook(
                lambda *_, weights=weights, both=both: both.append([weight.grad.clone() for weight in weights])
            )
        trainer.train_step(patches())
        found.append(both)
    for unclipped, loosely, tightly in zip(*found, strict=True):
        assert all(map(torch.equal, unclipped, loosely))
        expected = [torch.nn.Parameter(gradient) for gradient in unclipped]
        for weight, gradient in zip(expected, unclipped, strict=True):
            weight.grad = gradient.clone()
        assert torch.nn.utils.clip_grad_norm_(expected, 1e-3) > 1e-3
        # D sees other images after a clipped update of G, but those of G before it.
        for weight, gradient in zip(expected, tightly, strict=True):
            torch.testing.assert_close(gradient, weight.grad, rtol=1e-4, atol=1e-9)


def test_the_norm_in_the_log_is_that_before_clipping() -> None:
    free, tight = (make(train__clip_grad=norm, loss__gan=0.1, discriminator__features=2) for norm in ("null", 1e-3))
    one, other = (trainer.train_step(patches()).read().terms["norm_d"] for trainer in (free, tight))
    assert one == other > 1e-3


def test_the_memory_estimate_counts_what_the_optimizer_keeps() -> None:
    needed = {name: estimate_memory(make(train__optimizer=name, **CONSTANT)) for name in OPTIMIZERS}
    trainers = {name: make(train__optimizer=name, **CONSTANT) for name in OPTIMIZERS}
    kept = {}
    for name, trainer in trainers.items():
        trainer.train_step(patches())
        states = copy.deepcopy(trainer.optimizer.state).values()
        kept[name] = sum(value.nbytes for state in states for value in state.values() if value.ndim)
    for name in OPTIMIZERS:
        assert needed[name] - needed["adam"] == kept[name] - kept["adam"]
    assert kept["adan"] > kept["adam"]
