"""The metrics of a step, against float64 formulas on the attack's result."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_trainer import make, patches, watch_attack

from andfast.attack import AttackResult, FreeAT
from andfast.attack.budget import BUDGET_SLACK_DB
from andfast.ops.theta_layout import ThetaLayout
from andfast.training.step_metrics import StepResult
from andfast.training.trainer import Trainer

FACTORS = {"conv_dc": 3.0, "conv_shift": 2.0, "conv": 0.5, "noise": 1.5, "slope": 20.0}
FREE = {f"attack__scale_factors__{name}": value for name, value in FACTORS.items()}


def step(trainer: Trainer) -> tuple[StepResult, AttackResult]:
    """The metrics of a step, and its attack's result."""
    results = watch_attack(trainer)
    return trainer.train_step(patches()).read(), results[0]


def distances(trainer: Trainer, delta: torch.Tensor) -> np.ndarray:
    """The groups' scaled norms for each network, (3, N), in float64: kernels by the moments of their taps."""
    size = trainer.config.train.patch_size
    settings = trainer.config.degradation
    layout = ThetaLayout((size, size), trainer.config.scale, settings.channels, settings.blocks, settings.noise)
    moved = _in_taps(delta.double().numpy(), trainer)
    y, x = (axis.ravel() for axis in np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], indexing="ij"))
    squares = np.zeros((3, len(moved)))
    for segment in layout.segments:
        own = moved[:, segment.start : segment.stop]
        if segment.group != "conv":
            squares[1 if segment.group == "noise" else 2] += FACTORS[segment.group] ** 2 * (own**2).sum(1)
            continue
        taps = own.reshape(len(own), -1, 9)
        dc, shift = taps.sum(2) ** 2 / 9, ((taps @ x) ** 2 + (taps @ y) ** 2) / 6
        rest = (taps**2).sum(2) - dc - shift
        weighted = FACTORS["conv_dc"] ** 2 * dc + FACTORS["conv_shift"] ** 2 * shift + FACTORS["conv"] ** 2 * rest
        squares[0] += weighted.sum(1)
    return np.sqrt(squares)


def _in_taps(delta: np.ndarray, trainer: Trainer) -> np.ndarray:
    """A deviation with its kernels in taps, from the moments (1,1,1), (-1,0,1), (1,-2,1) in x and y."""
    one = np.array([[1, 1, 1], [-1, 0, 1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    order = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2)]
    basis = np.stack([np.outer(one[y], one[x]).ravel() for y, x in order])
    width, convs = trainer.config.degradation.channels, 2 * trainer.config.degradation.blocks - 1
    stop = 9 * (2 * 3 * width + convs * width**2)
    taps = (delta[:, :stop].reshape(len(delta), -1, 9) @ basis).reshape(len(delta), -1)
    return np.concatenate([taps, delta[:, stop:]], axis=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"degradation__noise": "gaussian"},
        {"attack__return_iterate": "last"},
        {"attack__method": "yopo", "degradation__num_networks": "batch"},
        {"attack__method": "subset", "degradation__num_networks": 1, "attack__share": 0.5},
        {"attack__method": "random"},
        {"attack__mix__share": 0.5, "degradation__num_networks": 2},
        {"train__micro_batch": 2},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_metrics_are_those_of_the_attack_s_result(options: dict[str, Any]) -> None:
    trainer = make(**FREE, **options)
    found, result = step(trainer)
    by_group = distances(trainer, result.delta)
    assert (by_group > 0).all()
    own = (found.distance_conv, found.distance_noise, found.distance_slope)
    np.testing.assert_allclose(own, by_group.mean(1), rtol=1e-5)
    np.testing.assert_allclose(result.distance, np.sqrt((by_group**2).sum(0)), rtol=1e-5)
    groups = len(result.lr_psnr)
    error = (result.lr.double() - result.clean.double()).reshape(groups, -1).square().mean(1).numpy()
    psnr = -10 * np.log10(error)
    assert found.lr_psnr == pytest.approx(psnr.mean(), abs=1e-3)
    assert found.budgets_bound == np.mean(psnr <= result.budget_db.numpy() + BUDGET_SLACK_DB)
    before = result.losses[0].double().mean().item()
    after = found.loss if result.loss_after is None else result.loss_after.double().mean().item()
    assert found.loss_before_attack == pytest.approx(before, rel=1e-6)
    assert found.loss_after_attack == pytest.approx(after, rel=1e-6)
    assert found.gain == pytest.approx(after / before, rel=1e-5)
    assert found.gain != 1


def test_metrics_of_replays_are_those_of_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(attack__method="free", attack__replays=3, **FREE)
    begin, replays = FreeAT.begin, []

    def watched(self: FreeAT, *arguments: Any) -> Any:
        replays.append(begin(self, *arguments))
        return replays[-1]

    monkeypatch.setattr(FreeAT, "begin", watched)
    found = trainer.train_step(patches()).read()
    (replay,) = replays
    by_group = distances(trainer, replay.delta)
    own = (found.distance_conv, found.distance_noise, found.distance_slope)
    np.testing.assert_allclose(own, by_group.mean(1), rtol=1e-5)
    error = (replay.lr.detach().double() - replay.clean.double()).reshape(2, -1).square().mean(1).numpy()
    assert found.lr_psnr == pytest.approx((-10 * np.log10(error)).mean(), abs=1e-3)
    assert found.budgets_bound == np.mean(-10 * np.log10(error) <= replay.budget_db.numpy() + BUDGET_SLACK_DB)
    assert found.gain == pytest.approx(found.loss_after_attack / found.loss_before_attack, rel=1e-5)


def test_forbidden_groups_do_not_move() -> None:
    found, _ = step(make(attack__scale_factors__noise=".inf", attack__scale_factors__slope=".inf"))
    assert found.distance_conv > 0
    assert found.distance_noise == found.distance_slope == 0


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"attack__psnr_range": "[60,60]", "attack__epsilon": 5}, 1.0),
        ({"attack__psnr_range": "[1,1]", "attack__epsilon": 1e-4, "attack__step_size": 1e-4}, 0.0),
        ({"attack__psnr_range": "null", "attack__epsilon": 1e-4}, math.nan),
    ],
)
def test_budgets_bind_if_nothing_else_limits_the_attack(options: dict[str, Any], bound: float) -> None:
    found, _ = step(make(**options))
    np.testing.assert_equal(found.budgets_bound, bound)


@pytest.mark.parametrize(
    ("options", "there"),
    [
        ({"train__warmup": 1}, set()),
        ({"attack__method": "noise"}, {"gain", "lr_psnr", "budgets_bound"}),
        ({"attack__method": "none"}, set()),
        ({"attack__method": "bsrgan"}, {"lr_psnr"}),
        ({"attack__method": "style"}, {"gain", "lr_psnr", "distance_conv", "distance_noise", "distance_slope"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_nan_marks_metrics_that_do_not_apply(options: dict[str, Any], there: set[str]) -> None:
    found = make(**options).train_step(patches()).read()
    losses = {"loss", "loss_before_attack", "loss_after_attack", "skipped"}
    assert {name for name, value in found.record().items() if math.isfinite(value)} == losses | there
    assert ("gain" in str(found)) == ("gain" in there)


def test_the_metrics_of_a_step_are_copied_together() -> None:
    """They are one tensor, which takes one copy to the host."""
    pending = make().train_step(patches())
    assert pending._values.dtype == torch.float32
    # The gradient's norm is for messages alone.
    assert pending._values.shape == (1 + len(pending.read().record()),)
