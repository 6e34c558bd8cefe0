"""What a run needs is said before it begins, and running out of it loses nothing."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import options, records
from tiny_trainer import make, patches
from vgg_file import write_vgg

from andfast import train
from andfast.attack import PGD, RandomDeviation
from andfast.losses import l1_objective, no_objective
from andfast.models import Compact
from andfast.models.frozen import FrozenModule
from andfast.training import samples
from andfast.training.config import DegradationConfig
from andfast.training.memory_check import (
    describe_memory,
    estimate_memory,
    remedies,
    search_bytes,
)
from andfast.training.trainer import Trainer
from andfast.utils.memory import LiveBytes, _left_in_container, free_memory, is_out_of_memory
from bench.peak_memory import peak_memory


def peak(function: Callable[[], object]) -> int:
    """The most bytes that torch's allocator has given out at once."""
    gc.collect()  # what earlier tests left would be given back in the midst of this
    return peak_memory(function, torch.device("cpu"))


SIZES = {
    "train__patch_size": 64,
    "degradation__channels": 32,
    "degradation__blocks": 5,
    "generator__features": 32,
    "generator__depth": 8,
}
RRDBNET = {"generator__name": "rrdbnet", "generator__depth": 2}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"degradation__num_networks": "batch"},
        {"train__micro_batch": 1},
        {"scale": 1, "train__patch_size": 32},
        {"attack__method": "noise"},
        {"attack__method": "free"},
        {"loss__pixel": "charbonnier", "loss__frequency": 0.1},
        {"degradation__num_networks": "batch", "attack__mix__share": 0.5},
        RRDBNET,
        RRDBNET | {"attack__method": "none", "train__checkpoint_blocks": True},
        RRDBNET | {"train__micro_batch": 2},
    ],
    ids=str,
)
def test_the_estimate_is_near_what_is_measured(changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # No larger than the patches: the step is what is measured here, not the sheet.
    monkeypatch.setattr("andfast.training.memory_check.CROP", 32)
    trainers = []

    def steps() -> None:
        trainers.append(make(**SIZES | changed))
        for seed in range(2):
            trainers[0].train_step(patches(size=trainers[0].config.train.patch_size, seed=seed))

    assert estimate_memory_of(steps, trainers) == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("searches", [True, False])
def test_what_an_image_of_any_size_needs_is_near_what_is_measured(searches: bool, precision: str) -> None:
    settings = DegradationConfig(channels=32, precision=precision)
    view = FrozenModule(Compact(4, features=16, convs=2), torch.float32)
    hr = torch.rand(1, 3, 160, 96)

    def search() -> None:
        network = settings.build(4, 1, hr.device)
        network.reset_identity((160, 96))
        attack = PGD(steps=2) if searches else RandomDeviation()
        attack(network, hr, l1_objective(view) if searches else no_objective)

    estimate = search_bytes(settings, 4, view if searches else None, (160, 96), hr.device)
    # In half types, libraries on machines that multiply them well take less for themselves than on others.
    most = 1.35 if precision == "float32" else 5
    assert 0.65 < estimate / peak(search) < most


def test_the_estimate_knows_the_sample_sheet() -> None:
    trainers = []

    def one_sheet() -> None:
        trainers.append(make(attack__steps=1, degradation__channels=16))
        image = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
        samples.sample_sheet(trainers[0], [("image", image)] * 4)

    assert estimate_memory_of(one_sheet, trainers) == pytest.approx(1, abs=0.35)


def estimate_memory_of(function: Callable[[], None], trainers: list[Trainer]) -> float:
    """The estimate for the trainer that `function` makes and drives, over what it took."""
    measured = peak(function)
    return estimate_memory(trainers[0]) / measured


@pytest.mark.parametrize("changed", [{}, {"attack__method": "none"}, {"train__micro_batch": 2}], ids=str)
def test_the_estimate_knows_what_the_perceptual_loss_keeps(
    changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VGG19's weights, and the features of the HR images for as long as a step takes, which count once."""
    monkeypatch.setattr("andfast.training.memory_check.CROP", 32)
    write_vgg(tmp_path / "vgg19.pth")
    loss = {"loss__perceptual": 1, "loss__vgg": tmp_path / "vgg19.pth"}
    layers = {"loss__perceptual_layers": '{"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1}'}
    trainer = make(train__patch_size=64, **loss, **layers, **changed)  # its file takes more than a step

    def steps() -> None:
        for seed in range(2):
            trainer.train_step(patches(size=64, seed=seed))

    held = sum(weight.nbytes for weight in trainer.features.parameters())
    assert estimate_memory(trainer) / (peak(steps) + held) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    "changed", [{}, {"loss__gan": 0.1, "discriminator__name": "unet"}, {"loss__gan": 0.1, "attack__method": "free"}]
)
def test_an_estimate_changes_nothing(changed: dict[str, Any]) -> None:
    trainer, other = make(**changed), make(**changed)
    state = torch.random.get_rng_state()
    estimate_memory(trainer)
    assert torch.equal(torch.random.get_rng_state(), state)
    for one, two in ((trainer.generator, other.generator), (trainer.discriminator, other.discriminator)):
        modules = (one, two) if isinstance(one, torch.nn.Module) else (one and one.module, two and two.module)
        if modules[0] is not None:  # counters of batch norms included
            torch.testing.assert_close(modules[0].state_dict(), modules[1].state_dict(), rtol=0, atol=0)
    assert trainer.train_step(patches()).read() == other.train_step(patches()).read()


def test_live_bytes_counts_storages_while_they_live() -> None:
    with LiveBytes() as memory:
        one = torch.zeros(100)
        view, two = one[:10], one + 1
        assert memory.live == memory.peak == 800
        del one
        assert memory.live == 800  # the view holds it
        del view, two
        assert memory.live == 0
        assert memory.peak == 800


def test_free_memory_is_of_this_machine() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    assert describe_memory(3 * 2**30, 23 * 2**30) == "needs about 3.0 GiB of 23.0 GiB free"
    assert describe_memory(3 * 2**30, None) == "needs about 3.0 GiB"


def test_memory_that_a_container_may_take(tmp_path: Path) -> None:
    assert _left_in_container(tmp_path) == []  # no container, or none that says
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 600\nfile 100\nfile_mapped 50\n")
    assert _left_in_container(tmp_path) == [400]
    (tmp_path / "memory.max").write_text("max\n")
    assert _left_in_container(tmp_path) == []


def ask_for_too_much() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def raise_memory_error() -> None:
    raise MemoryError


def raise_cuda_s_error() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words.")


@pytest.mark.parametrize("fail", [ask_for_too_much, raise_memory_error, raise_cuda_s_error])
def test_running_out_of_memory_loses_nothing_and_says_what_to_change(
    fail: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_lr = Trainer._make_lr

    def failing(self: Trainer, hr: torch.Tensor) -> Any:
        if self.step == 3:
            fail()
        return make_lr(self, hr)

    monkeypatch.setattr(Trainer, "_make_lr", failing)
    arguments = options(tmp_path, train__log_every=100)
    assert train.main(arguments) == 3
    message = capsys.readouterr().err
    for word in (
        "stopped at step 3: out of memory",
        "train.micro_batch (now none, 2 images at once)",
        "train.patch_size (now 32)",
        "degradation.num_networks (now 2)",
        f"{tmp_path / 'state.pt'} is whole, of step 3",
    ):
        assert word in message, message
    assert "More words" not in message
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 3
    monkeypatch.undo()
    # As told.
    assert train.main([*arguments, "--train.micro_batch", "1"]) == 0
    assert [line["step"] for line in records(tmp_path) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_memory_that_runs_out_within_an_update_leaves_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    update = Trainer._update_ema

    def failing(self: Trainer) -> None:
        if self.step == 3:
            raise_memory_error()
        update(self)

    monkeypatch.setattr(Trainer, "_update_ema", failing)
    assert train.main(options(tmp_path)) == 3
    assert "stopped at step 3: out of memory (MemoryError)" in capsys.readouterr().err
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2
    monkeypatch.undo()
    assert train.main(options(tmp_path)) == 0


def test_the_remedies_are_those_that_are_left() -> None:
    def left(**changed: Any) -> str:
        return remedies(make(**RRDBNET, **changed).config)

    assert "train.micro_batch (now 2) or train.checkpoint_blocks true (now false); or, in" in left(train__micro_batch=2)
    assert "train.checkpoint_blocks" not in left(train__checkpoint_blocks=True)
    assert left(train__checkpoint_blocks=True, train__micro_batch=1).startswith("in a new run, a smaller")


def test_other_errors_are_not_taken_for_it() -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator: can't allocate memory"))


def test_a_run_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("andfast.training.run.free_memory", lambda device: 2**20)
    assert train.main(options(tmp_path, train__iterations=1)) == 0
    captured = capsys.readouterr()
    assert "needs about 0.0 GiB of 0.0 GiB free" in captured.out
    assert "warning: that may not fit; try a smaller train.micro_batch" in captured.err
