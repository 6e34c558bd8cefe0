"""Batches: HR patches that are blurred, and a share of images from other degradations or camera pairs."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import as_options
from PIL import Image
from runs import lines, photograph_crops
from tiny_trainer import TINY, make, patches
from torch import Tensor

from andfast import train
from andfast.attack import BSRGAN, RealESRGAN
from andfast.attack.base import bicubic_downsample
from andfast.data.pair_patches import PairPatches
from andfast.data.pairs import find_pairs
from andfast.ops.blur_pool import blur_pool
from andfast.training.batches import blur_hr, make_pair_patches
from andfast.training.config import Config, DataConfig
from andfast.training.distributed import World
from andfast.training.options import parse_config
from andfast.training.trainer import Trainer
from andfast.utils.rng import step_generator


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two pairs: LR images of one colour each, HR images of another."""
    for index in range(2):
        for folder, size, level in (("HR", 48, 200 + index), ("LR", 12, 20 + index)):
            (tmp_path / "pairs" / folder).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (size, size), (level,) * 3).save(tmp_path / "pairs" / folder / f"{index}.png")
    return tmp_path / "pairs"


def trained_on(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, steps: int = 1) -> tuple[Tensor, Tensor]:
    """The LR and HR images of the last of so many updates."""
    seen: list[tuple[Tensor, Tensor]] = []
    config = trainer.config
    folder = config.attack.mix.pairs
    pairs = make_pair_patches(config, find_pairs(folder, config.scale) if folder else [], trainer.world)
    update = trainer._update

    def watched(lr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((lr.detach(), hr))
        return update(lr, hr)

    monkeypatch.setattr(trainer, "_update", watched)
    for _ in range(steps):
        trainer.train_step(patches(), pairs and pairs(trainer.step))
    return seen[-1]


@pytest.mark.parametrize("method", ["clean", "bicubic", "bsrgan", "real_esrgan"])
def test_the_last_images_come_from_the_other_degradation(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lr, hr = trained_on(make(attack__mix__share=0.5, attack__mix__method=method), monkeypatch)
    given = patches().float() / 255
    assert torch.equal(hr, given)
    expected = {
        "clean": lambda: blur_pool(given[2:], 4),
        "bicubic": lambda: bicubic_downsample(given[2:], 4),
        "bsrgan": lambda: BSRGAN().degrade(given[2:], 4, step_generator(0, 0, given.device, 1)),
        "real_esrgan": lambda: RealESRGAN().degrade(given[2:], 4, step_generator(0, 0, given.device, 1)),
    }[method]()
    assert torch.equal(lr[2:], expected)
    clean = blur_pool(given[:2], 4)
    assert ((lr[:2] - clean).abs().amax(dim=(1, 2, 3)) > 0.02).all()


@pytest.mark.parametrize("method", ["clean", "bicubic", "real_esrgan"])
def test_noise_is_added_to_the_images_of_the_mixture_alone(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mix = {"attack__mix__share": 0.5, "attack__mix__method": method}
    without, _ = trained_on(make(**mix), monkeypatch)
    noisy, hr = trained_on(make(**mix, attack__mix__noise="[2, 5]"), monkeypatch)
    assert torch.equal(hr, patches().float() / 255)
    assert torch.equal(noisy[:2], without[:2])
    deviation = (noisy - without)[2:].std(dim=(1, 2, 3)) * 255
    # Clamping at black and white takes a part of it.
    assert ((deviation > 0.5) & (deviation < 5.5)).all()
    assert 0 <= noisy.min() <= noisy.max() <= 1


@pytest.mark.parametrize("networks", [1, 2, "batch"])
@pytest.mark.parametrize("method", ["pgd", "noise", "random", "style", "yopo"])
def test_the_attack_gets_the_other_images_alone(
    method: str, networks: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes of mixed images through F or G would be a waste."""
    options: dict[str, Any] = {"attack__method": method, "degradation__num_networks": networks}
    trainer = make(**options, attack__mix__share=0.5, attack__mix__method="bicubic")
    shown: list[int] = []
    for module in (trainer.frozen.module, trainer.make_bank(1).__class__):
        forward = module.forward
        bound = isinstance(module, torch.nn.Module)

        def counted(*arguments: Any, forward: Any = forward, bound: bool = bound, **more: Any) -> Tensor:
            shown.append(len(arguments[0 if bound else 1]))
            return forward(*arguments, **more)

        monkeypatch.setattr(module, "forward", counted)
    trained_on(trainer, monkeypatch)
    assert set(shown) == {2}


def test_the_other_images_are_attacked_like_a_batch_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed, _ = trained_on(make(attack__mix__share=0.5, degradation__num_networks=2), monkeypatch)
    trainer = make(train__batch_size=2, degradation__num_networks=2)
    alone, _ = trainer._make_lr(patches()[:2].float() / 255)
    assert torch.equal(mixed[:2], alone)


def test_nothing_is_mixed_in_during_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"train__warmup": 1, "attack__mix__share": 0.5, "attack__mix__method": "bsrgan"}
    given = patches().float() / 255
    lr, _ = trained_on(make(**options), monkeypatch)
    assert torch.equal(lr, blur_pool(given, 4))
    lr, _ = trained_on(make(**options), monkeypatch, steps=2)
    assert not torch.equal(lr[2:], blur_pool(given[2:], 4))


def test_pairs_replace_hr_images_too(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mix = {"attack__mix__method": "pairs", "attack__mix__pairs": pairs, "attack__mix__share": 0.5}
    lr, hr = trained_on(make(**mix), monkeypatch)
    assert torch.equal(hr[:2], patches()[:2].float() / 255)
    kinds = {(round(float(a.mean() * 255)), round(float(b.mean() * 255))) for a, b in zip(lr[2:], hr[2:], strict=True)}
    assert kinds == {(20, 200), (21, 201)}


def test_with_the_method_pairs_nothing_is_attacked(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(attack__method="pairs", attack__mix__pairs=pairs)
    monkeypatch.setattr(trainer, "attack", None)
    lr, hr = trained_on(trainer, monkeypatch)
    assert (hr * 255 > 199).all()
    assert (lr * 255 < 22).all()
    pair_patches = make_pair_patches(trainer.config, find_pairs(pairs, 4), trainer.world)
    result = trainer.train_step(patches(), pair_patches(trainer.step)).read()
    assert result.loss == result.loss_before_attack == result.loss_after_attack
    with pytest.raises(ValueError, match="the batch has none"):
        trainer.train_step(patches())


def test_losses_before_and_after_are_those_of_the_images_attacked() -> None:
    mixed = make(attack__mix__share=0.5, attack__mix__method="bicubic", degradation__num_networks=2)
    alone = make(train__batch_size=2, degradation__num_networks=2)
    last = make(attack__mix__share=0.5, degradation__num_networks=2, attack__return_iterate="last")
    found, right = mixed.train_step(patches()).read(), alone.train_step(patches()[:2]).read()
    assert found.loss_before_attack == pytest.approx(right.loss_before_attack, rel=1e-6)
    assert found.loss_after_attack == pytest.approx(right.loss_after_attack, rel=1e-6)
    assert found.lr_psnr == pytest.approx(right.lr_psnr, rel=1e-6)
    assert found.loss < found.loss_after_attack
    found = last.train_step(patches()).read()
    assert found.loss < found.loss_after_attack


@pytest.mark.parametrize("images", [1, 2])
def test_a_mixture_in_micro_batches_is_the_same(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"attack__mix__share": 0.5, "attack__mix__method": "bsrgan", "degradation__num_networks": 2}
    whole, parts = make(**options), make(**options, train__micro_batch=images)
    (lr, _), (found, _) = (trained_on(trainer, monkeypatch) for trainer in (whole, parts))
    torch.testing.assert_close(found, lr, atol=1e-4, rtol=0)
    for one, other in zip(whole._weights, parts._weights, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-2)


def run(folder: Path, **changed: Any) -> list[dict[str, Any]]:
    settings = TINY | {"run_dir": folder, "data.hr": photograph_crops(), "data.held_out": 1, "data.workers": 0}
    # A cosine would know when the run ends.
    settings |= {"train.iterations": 4, "train.schedule": "constant"}
    assert train.main(as_options(settings, **changed)) == 0
    return lines(folder)


@pytest.mark.parametrize(
    "changed",
    [
        {"attack__method": "bsrgan"},
        {"attack__method": "real_esrgan"},
        {"attack__method": "style"},
        {"attack__method": "pairs"},
        {"attack__mix__share": 0.5, "attack__mix__method": "pairs"},
        {"attack__mix__share": 0.5, "attack__mix__method": "real_esrgan"},
        {"attack__baseline": "bicubic", "attack__noise_every": 3},
    ],
    ids=lambda changed: "-".join(map(str, changed.values())),
)
def test_runs_train_and_resume_bit_for_bit(changed: dict[str, Any], pairs: Path, tmp_path: Path) -> None:
    if "pairs" in changed.values():
        changed = changed | {"attack__mix__pairs": pairs}
    whole = run(tmp_path / "whole", **changed)
    assert all(np.isfinite(record["loss"]) for record in whole if "validation" not in record)
    run(tmp_path / "parts", **changed, train__iterations=2)
    parts = run(tmp_path / "parts", **changed)
    last = [records[-2] for records in (whole, parts)]
    assert last[0]["step"] == 4
    assert last[0] == last[1]
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True)["generator"] for name in ("whole", "parts")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_weighted_folders_resume_bit_for_bit(tmp_path: Path) -> None:
    crops = sorted(photograph_crops().iterdir())
    for name, part in (("one", crops[:2]), ("two", crops[2:])):
        (tmp_path / name).mkdir()
        for path in part:
            (tmp_path / name / path.name).symlink_to(path)
    folders = {"data__hr": f'["{tmp_path / "one"}", "{tmp_path / "two"}"]', "attack__method": "none"}
    weighted = folders | {"data__weights": "[3, 1]"}
    whole = run(tmp_path / "whole", **weighted)
    run(tmp_path / "parts", **weighted, train__iterations=2)
    assert run(tmp_path / "parts", **weighted, data__workers=1)[-2:] == whole[-2:]
    assert run(tmp_path / "unweighted", **folders)[-2:] != whole[-2:]


def test_workers_read_the_same_pairs_as_the_main_process(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"attack__mix__share": 0.5, "attack__mix__method": "pairs", "attack__mix__pairs": pairs}
    changed["train__warmup"] = 1
    read, parent, steps = PairPatches.__call__, os.getpid(), []

    def watched(self: PairPatches, step: int) -> tuple[Tensor, Tensor]:
        if os.getpid() == parent:
            steps.append(step)
        return read(self, step)

    monkeypatch.setattr(PairPatches, "__call__", watched)
    alone = run(tmp_path / "alone", **changed)
    assert steps == [1, 2, 3]
    assert run(tmp_path / "workers", **changed, data__workers=2) == alone
    assert steps == [1, 2, 3]


def test_the_folder_of_pairs_is_named_if_a_worker_dies(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = os.getpid()

    def dies(self: PairPatches, step: int) -> tuple[Tensor, Tensor]:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    monkeypatch.setattr(PairPatches, "__call__", dies)
    changed = {"attack__method": "pairs", "attack__mix__pairs": pairs, "data__workers": 1}
    assert train.main(as_options(TINY | {"run_dir": tmp_path / "run"}, **changed)) == 3
    assert f"was killed by SIGKILL, as happens where memory runs out while reading: {pairs}" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["attack.method", "attack.mix.method"])
def test_invalid_pairs_are_named_before_anything_is_written(
    key: str, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pairs / "LR" / "1.png").unlink()
    options = [f"--run_dir={tmp_path / 'run'}", f"--{key}=pairs", f"--attack.mix.pairs={pairs}", "--data.workers=0"]
    share = [] if key == "attack.method" else ["--attack.mix.share=0.5"]
    assert train.main([*options, *share, "--degradation.num_networks=1"]) == 2
    assert "without a partner: HR/1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_blur_widths_depend_on_seed_and_step_alone_and_fill_their_range() -> None:
    # Of an impulse's blur the middle is 1 / (2 pi sigma^2), nearly.
    impulse = torch.zeros(64, 1, 33, 33)
    impulse[:, :, 16, 16] = 1
    config = Config(seed=3, data=DataConfig(soften=(1.0, 2.0)))
    first = blur_hr(impulse, config, 5, World())
    assert torch.equal(first, blur_hr(impulse, config, 5, World()))
    assert not torch.equal(first, blur_hr(impulse, config, 6, World()))
    sigma = (2 * torch.pi * first[:, 0, 16, 16]).rsqrt()
    assert 0.98 < sigma.min() < 1.1
    assert 1.9 < sigma.max() < 2.02


def test_a_step_trains_on_blurred_images() -> None:
    """An untrained generator has a lower loss on images with less detail."""
    crisp = make(attack__method="none").train_step(patches()).read().loss
    soft = make(attack__method="none", data__soften="[3, 3]").train_step(patches()).read().loss
    assert soft < crisp / 1.5


@pytest.mark.parametrize("value", ["[2, 1]", "[-1, 1]", "[0, 0]", "1"])
def test_an_invalid_range_of_widths_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--data.soften", value])
    assert "soften" in capsys.readouterr().err
