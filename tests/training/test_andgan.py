"""ANDGAN: training steps against plain PyTorch, the terms that the attack raises, and whole runs."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import as_options
from runs import lines
from study_images import write_photographs
from tiny_trainer import make, patches, watch_attack
from torch import Tensor, nn
from vgg_file import WANTED, vgg_features, write_vgg

from andfast import train
from andfast.losses import generator_objective
from andfast.models import build_generator, load_discriminator, load_model, save_model
from andfast.training.memory_check import estimate_memory, remedies
from andfast.training.trainer import Trainer
from bench.peak_memory import peak_memory

GAN = {"loss__gan": 0.1, "discriminator__features": 4, "train__learning_rate": 1e-3}
UNET = GAN | {"discriminator__name": "unet"}


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    return path, write_vgg(path)


def generator_term(kind: str, fake: Tensor, real: Tensor) -> Tensor:
    """The GAN losses from their papers' formulas, for each image."""
    fake, real = fake.flatten(1), real.flatten(1)
    probability = {
        "vanilla": lambda: -torch.log(torch.sigmoid(fake)),
        "hinge": lambda: -fake,
        "relativistic": lambda: (
            -torch.log(torch.sigmoid(fake - real.mean())) - torch.log(1 - torch.sigmoid(real - fake.mean()))
        ),
    }
    return probability[kind]().mean(dim=1)


def discriminator_term(kind: str, fake: Tensor, real: Tensor) -> Tensor:
    fake, real = fake.flatten(1), real.flatten(1)
    losses = {
        "vanilla": lambda: -torch.log(torch.sigmoid(real)) - torch.log(1 - torch.sigmoid(fake)),
        "hinge": lambda: (1 - real).clamp(min=0) + (1 + fake).clamp(min=0),
        "relativistic": lambda: (
            -torch.log(torch.sigmoid(real - fake.mean())) - torch.log(1 - torch.sigmoid(fake - real.mean()))
        ),
    }
    return losses[kind]().mean()


@pytest.mark.parametrize(
    ("name", "kind", "weight"),
    [
        ("vgg", "vanilla", 0.5),
        ("vgg", "hinge", 0),
        ("vgg", "relativistic", 0),
        ("unet", "vanilla", 0),
        ("unet", "hinge", 0),
    ],
)
def test_steps_are_those_of_plain_pytorch(
    name: str, kind: str, weight: float, vgg: tuple[Path, dict[str, Tensor]]
) -> None:
    """G is updated on the attacked images with all terms, then D on G's images before that update."""
    path, weights = vgg
    more = {"loss__perceptual": weight, "loss__vgg": path, "loss__gan_loss": kind, "discriminator__name": name}
    trainer = make(**GAN | more, attack__steps=1)
    generator, discriminator = copy.deepcopy(trainer.generator), copy.deepcopy(trainer.discriminator.module)
    start = [copy.deepcopy(each.state_dict()) for each in (generator, discriminator)]
    plain_g, plain_d = (torch.optim.Adam(each.parameters(), betas=(0.9, 0.99)) for each in (generator, discriminator))
    attacks = watch_attack(trainer)
    factors = dict(zip(WANTED, (0.1, 0.1, 1, 1, 1), strict=True))
    for step in range(3):
        hr = patches(seed=step).float() / 255
        result = trainer.train_step(patches(seed=step)).read()
        # The trainer's rate: a linear start, times the cosine's share.
        rate = 1e-3 * (step + 1) / 100 * (0.01 + 0.99 * (1 + math.cos(math.pi * step / 6)) / 2)
        restored = generator(attacks[-1].lr)
        discriminator.eval()
        gan = generator_term(kind, discriminator(restored), discriminator(hr)).mean()
        l1 = (restored - hr).abs().mean()
        loss, expected = l1 + 0.1 * gan, {"loss_l1": l1, "loss_gan": gan}
        if weight:
            with torch.no_grad():
                real = vgg_features(weights, hr)
            found_features = vgg_features(weights, restored)
            distances = [factor * (found_features[key] - real[key]).square().mean() for key, factor in factors.items()]
            expected["loss_perceptual"] = sum(distances)
            loss = loss + weight * sum(distances)
        plain_g.zero_grad()
        loss.backward()
        plain_g.param_groups[0]["lr"] = plain_d.param_groups[0]["lr"] = rate
        plain_g.step()
        discriminator.train()
        fake, real = discriminator(torch.cat([restored.detach(), hr])).chunk(2)
        loss_d = discriminator_term(kind, fake, real)
        plain_d.zero_grad()
        loss_d.backward()
        plain_d.step()
        squares = [weight.grad.square().sum() for weight in discriminator.parameters()]
        expected |= {
            "loss_d": loss_d,
            "norm_d": sum(squares).sqrt(),
            "logit_real": real.mean(),
            "logit_restored": fake.mean(),
        }
        assert result.terms == pytest.approx({key: value.item() for key, value in expected.items()}, rel=2e-3, abs=1e-4)
        assert result.loss == pytest.approx(loss.item(), rel=1e-4)
    for own, other, before in (
        (trainer.generator, generator, start[0]),
        (trainer.discriminator.module, discriminator, start[1]),
    ):
        own, other = own.state_dict(), other.state_dict()
        for key, value in other.items():
            # What is added to all logits alike makes no difference to the relativistic loss: the gradient of the last
            # bias is rounding, and much of that of the bias before it cancels.
            if value.is_floating_point() and (kind, key) != ("relativistic", "linear2.bias"):
                bound = 0.1 if (kind, key) == ("relativistic", "linear1.bias") else 0.03
                assert (own[key] - value).norm() <= bound * (value - before[key]).norm(), key


def trained_discriminator(trainer: Trainer) -> nn.Module:
    """Train D to distinguish G's images of clean LR from real ones."""
    hr = torch.cat([patches(seed=seed) for seed in range(4)]).float() / 255
    module = trainer.discriminator.module
    with torch.no_grad():
        restored = trainer.generator(trainer.attack.clean(trainer.make_bank(1), hr))
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(40):
        fake, real = module(torch.cat([restored, hr])).chunk(2)
        optimizer.zero_grad()
        discriminator_term("vanilla", fake, real).backward()
        optimizer.step()
    trainer.discriminator.frozen.refresh()
    return module


def attacked_terms(trainer: Trainer, weights: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The mean terms of the loss on clean LR images, and after an attack with these weights."""
    hr = patches().float() / 255
    settings = replace(trainer.config.loss, perceptual=weights.get("perceptual", 0), gan=weights.get("gan", 0))
    loss = settings.build(trainer.features, trainer.discriminator.frozen)
    random, margin_db = trainer._reset_bank(hr)
    result = trainer.attack(trainer.bank, hr, generator_objective(trainer.frozen, loss), random, margin_db)
    found = []
    with torch.no_grad():
        for lr in (result.clean, result.lr):
            restored = trainer.generator(lr)
            found.append({name: value.mean().item() for name, value in trainer.loss.terms(restored, hr).items()})
            found[-1]["logit"] = trainer.discriminator.frozen(restored).mean().item()
    return found[0], found[1]


@pytest.mark.parametrize("name", ["vgg", "unet"])
def test_the_attack_raises_each_term_of_the_loss(name: str, vgg: tuple[Path, dict[str, Tensor]]) -> None:
    options = GAN | {"discriminator__name": name, "loss__perceptual": 1.0, "loss__vgg": vgg[0], "attack__steps": 3}
    options |= {"loss__perceptual_layers": {"conv2_2": 1}, "degradation__num_networks": "batch"}
    trainer = make(**options)
    trained_discriminator(trainer)
    gains = {}
    # L1 counts in each; a large weight drowns it.
    for term, weight in (("l1", 0.0), ("perceptual", 1e3), ("gan", 1e3)):
        before, after = attacked_terms(trainer, {term: weight})
        assert after[term] > before[term]
        gains[term] = {each: after[each] - before[each] for each in before}
    # Nobody raises a term as much as the one who looks at it.
    for term in gains:
        others = [gains[other][term] for other in gains if other != term]
        assert gains[term][term] > max(others)
    # "Easier for the discriminator to distinguish" (Sec 3.4): D takes them for real less than before.
    assert gains["gan"]["logit"] < 0
    assert gains["gan"]["logit"] < min(gains["l1"]["logit"], gains["perceptual"]["logit"])


def test_the_generator_s_update_lowers_the_gan_term() -> None:
    trainer = make(**UNET | {"loss__gan": 1e3}, train__warmup=100)
    trained_discriminator(trainer)
    hr = patches().float() / 255
    lr = trainer.attack.clean(trainer.make_bank(1), hr)
    with torch.no_grad():
        before = trainer.discriminator.frozen(trainer.generator(lr)).mean()
    for _ in range(5):
        trainer._update(lr, hr)
    with torch.no_grad():
        assert trainer.discriminator.frozen(trainer.generator(lr)).mean() > before


@pytest.mark.parametrize("options", [GAN, UNET])
def test_in_half_types_the_frozen_discriminator_follows_it(options: dict[str, Any]) -> None:
    """After an update, and after a state is loaded. Weights that are normalised in each pass stay in float32."""
    trainer, other = (make(**options | {"train__precision": "bfloat16"}) for _ in range(2))
    before = tensors(trainer, "frozen")
    trainer.train_step(patches())
    other.load(trainer.state())
    for each in (trainer, other):
        module, frozen = each.discriminator.module.state_dict(), each.discriminator.frozen.module.state_dict()
        halves = {key for key, value in frozen.items() if value.dtype == torch.bfloat16}
        assert halves == {key for key in module if key.endswith(("weight", "bias")) and not key.startswith("bn")}
        assert all(torch.equal(frozen[key], value.to(frozen[key].dtype)) for key, value in module.items())
    assert not same(tensors(trainer, "frozen"), before)


def test_real_images_pass_vgg_once_a_step(vgg: tuple[Path, dict[str, Tensor]]) -> None:
    more = {"loss__perceptual": 1, "loss__vgg": vgg[0], "loss__perceptual_layers": {"conv1_1": 1}, "attack__steps": 2}
    for options, expected in (({}, 4 * (1 + 3 + 1)), ({"attack__mix__share": 0.5}, 4 + 2 * 3 + 4)):
        trainer = make(**GAN | more | options, degradation__num_networks="batch")
        seen = []
        trainer.features.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(len(inputs[0])))
        trainer.train_step(patches())
        assert sum(seen) == expected  # HR once; the attack's passes; the update's


def test_there_is_no_gain_over_a_loss_that_is_not_positive() -> None:
    trainer = make(**UNET | {"loss__gan_loss": "hinge", "loss__gan": 100.0})
    with torch.no_grad():
        trainer.discriminator.module.conv9.bias.fill_(5.0)
    trainer.discriminator.frozen.refresh()
    result = trainer.train_step(patches()).read()
    assert result.loss_before_attack < result.loss_after_attack < 0
    assert math.isnan(result.gain)


@pytest.mark.parametrize(
    ("options", "offered"), [(GAN, False), (UNET, True), (UNET | {"loss__gan_loss": "relativistic"}, False), ({}, True)]
)
def test_remedies_are_allowed_settings(options: dict[str, Any], offered: bool) -> None:
    assert ("train.micro_batch" in remedies(make(**options).config)) == offered


def test_replays_update_the_discriminator_once_a_minibatch() -> None:
    trainer = make(**UNET, attack__method="free", attack__replays=3)
    updates = {"g": 0, "d": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            updates[name] += 1

        return hook

    trainer.optimizer.register_step_post_hook(count("g"))
    trainer.discriminator.optimizer.register_step_post_hook(count("d"))
    trainer.train_step(patches())
    assert updates == {"g": 3, "d": 1}


def test_micro_batches_are_the_full_batch() -> None:
    """Spectral norms included, which make one power iteration an update."""
    whole, parts = make(**UNET), make(**UNET, train__micro_batch=1)
    for seed in range(3):
        right, found = (each.train_step(patches(seed=seed)).read() for each in (whole, parts))
        assert found.loss == pytest.approx(right.loss, rel=1e-4)
        assert found.terms == pytest.approx(right.terms, rel=1e-3, abs=1e-5)
    for one, other in ((parts.generator, whole.generator), (parts.discriminator.module, whole.discriminator.module)):
        for key, value in other.state_dict().items():
            torch.testing.assert_close(one.state_dict()[key], value, rtol=1e-2, atol=1e-5, msg=key)
    assert parts.discriminator.module.training


def tensors(trainer: Trainer, *names: str) -> dict[str, Tensor]:
    found = {f"g.{key}": value for key, value in trainer.generator.state_dict().items()}
    found |= {f"ema.{key}": value for key, value in trainer.ema.state_dict().items()}
    found |= {f"d.{key}": value for key, value in trainer.discriminator.module.state_dict().items()}
    found |= {f"frozen.{key}": value for key, value in trainer.discriminator.frozen.module.state_dict().items()}
    for key, state in enumerate(trainer.discriminator.optimizer.state.values()):
        found |= {f"adam.{key}.{name}": value for name, value in state.items()}
    return {key: value.clone() for key, value in found.items() if not names or key.partition(".")[0] in names}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("options", [GAN, UNET, UNET | {"train__precision": "bfloat16"}])
def test_an_image_that_is_not_finite_reaches_neither_network_nor_statistics(options: dict[str, Any]) -> None:
    trainer = make(**options)
    trainer.train_step(patches())
    kept = tensors(trainer)
    attack = trainer.attack

    def spoilt(*arguments: Any) -> Any:
        result = attack(*arguments)
        result.lr[2, 0, 3, 3] = torch.nan
        return result

    trainer.attack = spoilt
    assert trainer.train_step(patches(seed=1)).read().skipped == 1
    assert same(tensors(trainer), kept)
    assert trainer.bad_batch(1)[1].isnan().sum() == 1
    trainer.attack = attack
    assert trainer.train_step(patches(seed=2)).read().skipped == 0
    now = tensors(trainer)
    assert not any(torch.equal(now[key], kept[key]) for key in now if key.endswith("weight") and key[0] in "gd")
    assert all(value.isfinite().all() for value in now.values())


def test_a_discriminator_gradient_that_is_not_finite_skips_its_update_alone() -> None:
    trainer = make(**GAN)
    trainer.train_step(patches())
    d, g = tensors(trainer, "d", "adam"), tensors(trainer, "g")
    hook = next(trainer.discriminator.module.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    step = trainer.train_step(patches(seed=1))
    assert step.read().skipped == 1
    assert "of the discriminator 1." in step.describe()
    assert "and inf; try a smaller train.learning_rate or discriminator.learning_rate" in step.describe()
    assert same(tensors(trainer, "d", "adam"), d)
    assert not same(tensors(trainer, "g"), g)
    hook.remove()
    assert trainer.train_step(patches(seed=2)).read().skipped == 0
    assert not same(tensors(trainer, "d"), {key: d[key] for key in tensors(trainer, "d")})
    # Also when it is asked for later.
    assert torch.equal(trainer.bad_batch(1)[0], patches(seed=1).float() / 255)


@pytest.mark.parametrize("options", [GAN, UNET | {"train__micro_batch": 2}])
def test_the_memory_estimate_includes_the_discriminator(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("andfast.training.memory_check.CROP", 32)
    trainers = []

    def steps() -> None:
        trainers.append(make(**options | {"discriminator__features": 48, "train__patch_size": 64}))
        for seed in range(2):
            trainers[0].train_step(patches(size=64, seed=seed))

    measured = peak_memory(steps, torch.device("cpu"))
    plain = make(train__patch_size=64)
    assert estimate_memory(trainers[0]) / measured == pytest.approx(1, abs=0.35)
    assert estimate_memory(trainers[0]) > 2 * estimate_memory(plain)


SMALL = {
    "scale": 4,
    "train.batch_size": 2,
    "train.patch_size": 32,
    "train.warmup": 0,
    "train.ramp": 0,
    "train.learning_rate": 1e-4,
    "train.precision": "float32",
    "generator.name": "compact",
    "loss.gan": 0.1,
    "discriminator.features": 4,
    "degradation.channels": 8,
    "degradation.blocks": 2,
    "degradation.precision": "float32",
    "attack.steps": 1,
    "data.held_out": 1,
    "data.workers": 0,
}


@pytest.fixture(scope="module")
def andnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model trained with L1 alone, and its training images."""
    folder = tmp_path_factory.mktemp("andnet")
    images = write_photographs(folder / "hr", 6)
    before = {"run_dir": folder / "run", "data.hr": images, "loss.gan": 0, "train.warmup": 140, "train.iterations": 150}
    before |= {"generator.features": 8, "generator.depth": 2, "train.learning_rate": 2e-3, "train.validate_every": 0}
    assert train.main(as_options(SMALL | before)) == 0
    return folder / "run", images


def test_a_run_from_an_andnet(
    andnet: tuple[Path, Path],
    vgg: tuple[Path, dict[str, Tensor]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """200 iterations: D learns and G still restores images."""
    more = {"data.hr": andnet[1], "generator.init": andnet[0] / "model.safetensors", "train.iterations": 200}
    more |= {"train.validate_every": 200, "loss.perceptual": 1, "loss.vgg": vgg[0], "run_dir": tmp_path}
    assert train.main(as_options(SMALL | more | {"loss.perceptual_layers": {"conv1_2": 0.1, "conv2_2": 1}})) == 0
    said = capsys.readouterr().out
    assert "0.1 GAN (vanilla)" in said
    assert "without a perceptual term" not in said
    assert "VGGStyleDiscriminator with" in said
    steps = [line for line in lines(tmp_path) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 201))
    metrics = {"loss_l1", "loss_gan", "loss_perceptual", "loss_d", "logit_real", "logit_restored"}
    assert all(metrics <= line.keys() and all(math.isfinite(line[name]) for name in metrics) for line in steps)
    assert not any(line["skipped"] for line in steps)
    # Chance is 2 log 2, and equal logits.
    late = steps[150:]
    assert sum(line["loss_d"] for line in late) / len(late) < 2 * math.log(2)
    assert sum(line["logit_real"] - line["logit_restored"] for line in late) > 0
    before = lines(andnet[0])[-1]["validation"]["bicubic"]["psnr_y"]
    after = lines(tmp_path)[-1]["validation"]["bicubic"]["psnr_y"]
    assert before - 1 < after
    assert isinstance(load_discriminator(tmp_path / "discriminator.pth"), nn.Module)
    assert load_model(tmp_path / "model.safetensors").scale == 4


def test_a_resumed_run_equals_an_uninterrupted_one(
    andnet: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"data.hr": andnet[1], "generator.init": andnet[0] / "model.safetensors", "train.schedule": "constant"}
    for name, iterations in (("two", 4), ("two", 9), ("one", 9)):
        run = {"run_dir": tmp_path / name, "train.iterations": iterations, "train.validate_every": 0}
        assert train.main(as_options(SMALL | more | run)) == 0
    assert "0.1 GAN (vanilla), without a perceptual term (loss.perceptual is 0)" in capsys.readouterr().out
    one, two = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("one", "two"))
    for name in ("generator", "ema"):
        assert same(one[name], two[name])
    assert same(one["discriminator"]["module"], two["discriminator"]["module"])
    for key, moments in one["discriminator"]["optimizer"]["state"].items():
        assert same(moments, two["discriminator"]["optimizer"]["state"][key])


def test_it_starts_from_another_run_s_discriminator(andnet: tuple[Path, Path], tmp_path: Path) -> None:
    more = {"data.hr": andnet[1], "generator.init": andnet[0] / "model.safetensors", "train.validate_every": 0}
    first, second = (SMALL | more | {"run_dir": tmp_path / name} for name in ("first", "second"))
    assert train.main(as_options(first | {"train.iterations": 3})) == 0
    file = tmp_path / "first" / "discriminator.pth"
    trainer = make(**GAN | {"discriminator__init": file, "discriminator__learning_rate": 3e-4})
    assert same(trainer.discriminator.module.state_dict(), load_discriminator(file).state_dict())
    assert trainer.discriminator.learning_rate == 3e-4
    assert train.main(as_options(second | {"train.iterations": 3, "discriminator.init": file})) == 0
    # D starts where the other run ended.
    early = [lines(tmp_path / name)[0]["loss_d"] for name in ("first", "second")]
    assert early[1] != early[0]
    assert early[1] == pytest.approx(lines(tmp_path / "first")[2]["loss_d"], abs=0.2)


def test_missing_weights_are_named_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = SMALL | {"run_dir": tmp_path / "run", "loss.perceptual": 1, "loss.vgg": tmp_path / "vgg19.pth"}
    assert train.main(as_options(options)) == 2
    assert f"error: {tmp_path / 'vgg19.pth'}: no such file" in capsys.readouterr().err
    save_model(build_generator("rrdbnet", 4, features=4, blocks=1), tmp_path / "other.pth")
    options |= {"loss.perceptual": 0, "generator.init": tmp_path / "other.pth"}
    assert train.main(as_options(options)) == 2
    assert "does not fit" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(as_options(SMALL | {"run_dir": tmp_path / "run", "train.patch_size": 36}))
    assert "train.patch_size is 36; discriminator.name vgg" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
