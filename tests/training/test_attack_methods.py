"""Training steps against every attack: each raises the loss."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from study_images import photograph
from tiny_trainer import make, patches, watch_attack

from andfast.attack import AdversarialNoise, AttackResult
from andfast.degradation.lens import Lens
from andfast.losses import l1_loss
from andfast.models.generators import save_model
from andfast.models.weights import ModelError
from andfast.training.samples import sample_sheet


@pytest.mark.parametrize(
    "method",
    [
        {"attack__method": "pgd", "attack__return_iterate": "last"},
        {"attack__method": "yopo", "attack__inner_steps": 2},
        {"attack__method": "yopo", "attack__inner_steps": 2, "attack__return_iterate": "last"},
        {"attack__method": "subset", "degradation__num_networks": 1, "attack__share": 0.5},
        {"attack__method": "free", "attack__replays": 2},
    ],
    ids=lambda method: "-".join(map(str, method.values())),
)
def test_training_against_every_attack(method: dict[str, Any]) -> None:
    trainer = make(**method, attack__step_ratio=0.5)
    for seed in range(2):
        result = trainer.train_step(patches(seed=seed)).read()
        assert result.loss_after_attack > 1.001 * result.loss_before_attack
        assert 20 < result.lr_psnr < 60
    assert sample_sheet(trainer, [("image", photograph(0))]).any()


@pytest.mark.parametrize("method", ["pgd", "random"])
def test_noise_in_turn(method: str) -> None:
    """After the warm-up every third update's images differ by adversarial noise; the others are the method's."""
    options = {"attack__noise_every": 3, "attack__psnr_range": "[30, 30]", "attack__lens__blur": "[1, 2]"}
    trainer = make(attack__method=method, train__warmup=1, **options)
    noise, calls, captured = trainer.noise_attack, [], []
    assert noise == AdversarialNoise(steps=2, psnr_range=(30, 30), lens=Lens(blur=(1, 2)))

    def watched(*arguments: Any) -> AttackResult:
        calls.append(trainer.step)
        assert arguments[2] is trainer.attack_objective
        return noise(*arguments)

    def run(search: Any, *inputs: Any) -> Any:
        captured.append(trainer.step)
        return search(*inputs)

    # A CUDA graph is of the method's search alone.
    trainer.noise_attack, trainer.captured = watched, run
    for step in range(7):
        result = trainer.train_step(patches(seed=step)).read()
        assert calls == [turn for turn in (3, 6) if turn <= step]
        if step in calls:
            assert math.isnan(result.distance_conv)
            assert abs(result.lr_psnr - 30) < 1.5
            assert result.loss_after_attack > 1.001 * result.loss_before_attack
        elif step > 0:
            assert result.distance_conv > 0
    assert captured == [1, 2, 4, 5]
    assert make(attack__method=method).noise_attack is None
    for other in ("none", "real_esrgan", "noise"):
        assert make(attack__method=other, attack__noise_every=3).noise_attack is None


def test_relative_to_bicubic_interpolation_the_adversary_leaves_alone_what_nothing_restores() -> None:
    """Of the same start and budget, it finds images where G is worse beside interpolation than the plain one does."""

    def regret(baseline: str) -> float:
        trainer = make(attack__baseline=baseline, attack__steps=4, attack__psnr_range="[26, 26]", train__iterations=40)
        trainer.config.train.warmup = 30
        for step in range(30):
            trainer.train_step(patches(seed=step))
        results = watch_attack(trainer)
        trainer.train_step(hr := patches(seed=99))
        lr, hr = results[0].lr, hr.float() / 255
        interpolated = F.interpolate(lr, scale_factor=4, mode="bicubic", antialias=True)
        before = trainer.warmup_ema  # the average; close to G as it was attacked
        with torch.no_grad():
            return float((l1_loss(before(lr), hr) - l1_loss(interpolated, hr)).mean())

    assert regret("bicubic") > regret("null")


def test_relative_to_a_model_file(tmp_path: Path) -> None:
    """Relative to the generator itself nothing is left to climb; the losses are still the generator's."""
    file, lr = tmp_path / "twin.safetensors", torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    save_model(make().generator, file)
    gradients, losses = [], []
    for baseline in (str(file), "null"):
        trainer = make(attack__baseline=baseline, generator__init=str(file))
        image = lr.clone().requires_grad_()
        losses.append(trainer.attack_objective(image, patches().float() / 255))
        gradients.append(torch.autograd.grad(losses[-1].sum(), image)[0])
    torch.testing.assert_close(*losses)
    assert gradients[0].norm() < 1e-5 * gradients[1].norm()


def test_a_baseline_of_another_scale_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_model(make(scale=2).generator, file)
    with pytest.raises(ModelError, match=r"attack\.baseline .*other\.safetensors: a model x2; scale is 4"):
        make(attack__baseline=str(file))
    with pytest.raises(ModelError, match=r"attack\.baseline: .*missing\.pth: no such file.* or give bicubic"):
        make(attack__baseline=str(tmp_path / "missing.pth"))
    # Not read where no attack raises a loss.
    assert make(attack__baseline=str(tmp_path / "missing.pth"), attack__method="random").baseline is None
