"""Networks, losses and attacks of users' own classes: through training, resuming, saving, export and upscaling."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import content, options
from safetensors import safe_open
from study_images import photograph
from test_config import refused
from tiny_trainer import make, patches, watch_attack

from andfast import evaluate, export, train, upscale
from andfast.inference.models import find_model
from andfast.models import Compact, ModelError
from andfast.training.config import GeneratorConfig
from andfast.training.memory_check import estimate_memory
from andfast.training.options import parse_config
from andfast.utils.yaml_files import dump_yaml

OWN = '''
from dataclasses import dataclass, replace

import torch
from torch import nn

from andfast import PGD
from andfast.attack import Simulated


class Net(nn.Module):
    """Nearest neighbours and a correction, with dropout, a batch norm and a frozen weight."""

    def __init__(self, scale, features=4, rate=0.0):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, features, 3, padding=1), nn.BatchNorm2d(features), nn.Dropout(rate))
        self.tail = nn.Sequential(nn.Conv2d(features, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.gain = nn.Parameter(torch.tensor(0.5), requires_grad=False)

    def forward(self, x):
        scale = self.tail[1].upscale_factor
        return nn.functional.interpolate(x, scale_factor=scale) + self.gain * self.tail(self.head(x))


class Wrong(Net):
    """Twice as large as it should be."""

    def __init__(self, scale):
        super().__init__(2 * scale)


class Edges(nn.Module):
    """The L1 distance of differences between neighbours, for each image."""

    def __init__(self, power=1):
        super().__init__()
        self.register_buffer("power", torch.tensor(float(power)))

    def forward(self, restored, hr):
        return ((restored - hr).diff(dim=3).abs() ** self.power).mean(dim=(1, 2, 3))


class Coarse(nn.Module):
    """The L1 distance of means over 80 x 80 pixels, for each image, of which a smaller one has none."""

    def forward(self, restored, hr):
        distance = nn.functional.avg_pool2d(restored - hr, 80)
        return distance.abs().mean(dim=(1, 2, 3))


class Random(nn.Module):
    """The distance of random features, for each image; which values it has cannot be known without computing."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3)

    def forward(self, restored, hr):
        distance = (self.features(restored) - self.features(hr)).abs().mean(dim=(1, 2, 3))
        return distance if distance.max().item() < 100 else distance / 2


class Interpolation(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor=self.scale)


class Scalar:
    def __call__(self, restored, hr):
        return (restored - hr).abs().mean()


@dataclass
class Patient(PGD):
    """PGD with more steps."""

    more: int = 1

    def _search(self, inputs, objective):
        return PGD._search(replace(self, steps=self.steps + self.more, more=0), inputs, objective)


class Half(Simulated):
    def degrade(self, hr, scale, rng=None):
        return nn.functional.avg_pool2d(hr, scale).half()


class Bare(Half):
    def __call__(self, network, hr, objective, rng=None):
        return self.degrade(hr, network.scale)


@dataclass
class Failing(PGD):
    def _search(self, inputs, objective):
        raise IndexError("no such step")
'''


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return file


def everything(own: Path) -> dict[str, Any]:
    return {
        "generator.name": f"{own}:Net",
        "generator.options": "{features: 6, rate: 0.2}",
        "loss.custom": f"{own}:Edges",
        "loss.custom_weight": 0.5,
        "loss.custom_options": "{power: 2}",
        "attack.method": f"{own}:Patient",
        "attack.options": "{more: 2}",
        "train.schedule": "constant",
    }


def run(folder: Path, changed: dict[str, Any], **more: Any) -> None:
    without = {key: value for key, value in changed.items() if value is not None}
    command = [text for text in options(folder, **more) if not text.startswith("--generator")]
    assert train.main([*command, *(f"--{key}={value}" for key, value in without.items())]) == 0


def test_a_run_resumes_bit_by_bit_and_its_model_is_exported_and_upscales(own: Path, tmp_path: Path) -> None:
    run(tmp_path / "whole", everything(own))
    run(tmp_path / "parts", everything(own), train__iterations=3)
    run(tmp_path / "parts", everything(own))
    assert content(tmp_path / "whole") == content(tmp_path / "parts")
    saved = tmp_path / "whole" / "model.safetensors"
    with safe_open(saved, "pt") as file:
        record = file.metadata()
        # The class's own names, as its author's other scripts know them.
        assert set(file.keys()) >= {"head.0.weight", "head.1.running_mean", "tail.0.bias", "gain"}
    assert (record["architecture"], record["options"]) == (f"{own}:Net", '{"features": 6, "rate": 0.2}')
    state = torch.load(tmp_path / "whole" / "state.pt", weights_only=True)["generator"]
    assert state["model.gain"] == 0.5  # frozen by the class
    # No other command runs the class unless it is named.
    for path in (saved, tmp_path / "whole" / "model.pth"):
        with pytest.raises(ModelError, match=r"own\.py:Net; to run that code give FILE@"):
            find_model(str(path))
    named = f"{saved}@{own}:Net"
    model, image = find_model(named), torch.rand(1, 3, 20, 24)
    assert export.main([named, "--output", str(tmp_path / "out.pth"), str(tmp_path / "out.onnx")]) == 0
    assert torch.equal(find_model(f"{tmp_path / 'out.pth'}@{own}:Net")(image), model(image))
    Image.fromarray(photograph(0, 40)).save(tmp_path / "small.png")
    output = tmp_path / "large.png"
    assert upscale.main([str(tmp_path / "small.png"), "--model", named, "--output", str(output)]) == 0
    lr = torch.from_numpy(photograph(0, 40)).permute(2, 0, 1)[None].float() / 255
    expected = (model(lr)[0].permute(1, 2, 0).detach() * 255).round().clamp(0, 255).numpy()
    assert np.abs(np.asarray(Image.open(output)).astype(int) - expected).max() <= 1


def test_a_loss_with_random_weights_and_decisions_by_values(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"loss.custom": f"{own}:Random", "train.schedule": "constant"}
    run(tmp_path / "whole", changed)
    assert "the memory that it needs is not known" in capsys.readouterr().out
    torch.rand(7)  # as another process has drawn other numbers before
    run(tmp_path / "parts", changed, train__iterations=3)
    torch.rand(7)
    run(tmp_path / "parts", changed)
    assert content(tmp_path / "whole") == content(tmp_path / "parts")


def test_a_model_is_evaluated_under_its_folder_s_name(own: Path, tmp_path: Path) -> None:
    run(tmp_path / "mine", everything(own), train__iterations=1)
    (tmp_path / "hr").mkdir()
    Image.fromarray(photograph(0, 64)).save(tmp_path / "hr" / "a.png")
    command = ["--model", f"{tmp_path / 'mine' / 'model.safetensors'}@{own}:Net", "--data", f"hr={tmp_path / 'hr'}"]
    command += ["--degrade", "bicubic", "--metrics", "psnr_y", "--run_dir", str(tmp_path / "results")]
    assert evaluate.main([*command, "--csv", str(tmp_path / "found.csv")]) == 0
    assert "mine" in (tmp_path / "found.csv").read_text()


def test_training_goes_on_from_a_file(own: Path, tmp_path: Path) -> None:
    run(tmp_path / "first", everything(own), train__iterations=1)
    file = tmp_path / "first" / "model.pth"
    options = {"features": 6, "rate": 0.2}
    for config in (
        GeneratorConfig(f"{own}:Net", options=options, init=str(file)),
        GeneratorConfig(init=f"{file}@{own}:Net"),
    ):
        model = config.build(4, seed=0)
        assert model.training
        assert torch.equal(model.model.tail[0].weight, find_model(f"{file}@{own}:Net").model.tail[0].weight)
    with pytest.raises(ModelError, match=r"generator\.init: .*model\.pth: not the weights of .*head\.0\.bias"):
        GeneratorConfig(f"{own}:Net", init=str(file)).build(4, seed=0)


def test_the_loss_and_the_attack_are_used(own: Path) -> None:
    more = {key.replace(".", "__"): value for key, value in everything(own).items() if "generator" not in key}
    trainer = make(**more, attack__steps=2)
    results = watch_attack(trainer)
    terms = trainer.train_step(patches()).read().terms
    assert terms.keys() == {"loss_l1", "loss_custom"}
    assert len(results[0].losses) == 1 + 2 + 2
    restored, hr = torch.rand(2, 2, 3, 32, 32)
    expected = (restored - hr).abs().mean(dim=(1, 2, 3))
    expected += 0.5 * ((restored - hr)[..., 1:] - (restored - hr)[..., :-1]).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(trainer.loss(restored, hr), expected)
    assert estimate_memory(trainer) > 0


def test_a_network_in_a_module_that_is_installed() -> None:
    """Here one of our own, which `generator.name` knows by another name as well."""
    one = GeneratorConfig("andfast.models.compact:Compact", options={"features": 8, "convs": 2}).build(2, seed=3)
    other = GeneratorConfig(features=8, depth=2).build(2, seed=3)
    assert isinstance(one.model, Compact)
    assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_settings_are_written_and_read_back(own: Path, tmp_path: Path) -> None:
    config = parse_config([f"--{key}={value}" for key, value in everything(own).items()])
    (tmp_path / "config.yaml").write_text(dump_yaml(config.to_dict()))
    assert parse_config(["--config", str(tmp_path / "config.yaml")]) == config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"generator__name": "{own}:Nett"}, ["own.py has no class Nett; it has Net, Wrong, Edges, "]),
        ({"loss__custom": "{own}:Coarse", "train__patch_size": "64"}, ["Coarse: RuntimeError"]),
        ({"generator__name": "{own}:Wrong"}, ["makes (1, 3, 256, 256)", "with scale 4 it must be (1, 3, 128, 128)"]),
        ({"generator__name": "{own}:Edges"}, ["cannot be called with scale=4", "scale"]),
        ({"generator__name": "{own}:Scalar"}, ["a class of torch.nn.Module is wanted"]),
        ({"generator__name": "{own}:Net", "generator__options": "{width: 3}"}, ["cannot be called", "width"]),
        ({"generator__name": "{own}:Net", "generator__options": "{features: 0}"}, ["with {'features': 0}: "]),
        ({"generator__name": "nowhere.py:Net"}, ["no file /", "nowhere.py"]),
        ({"generator__name": "no.such.module:Net"}, ["importing it fails (ModuleNotFoundError: No module named 'no'"]),
        ({"loss__custom": "{own}:Scalar"}, ["makes () of two images", "a loss for each, (2,)"]),
        ({"loss__custom": "{own}:Net"}, ["loss.custom", "TypeError", "scale"]),
        ({"loss__custom": "{own}:Edges", "loss__custom_options": "{power: x}"}, ["with {'power': 'x'}: ValueError"]),
        ({"generator__name": "{own}:Interpolation"}, ["ValueError: it has no weights to train"]),
        ({"attack__method": "{own}:Half"}, ["makes (2, 3, 16, 16) of float16", "LR images of float32"]),
        ({"attack__method": "{own}:Bare"}, ["makes a Tensor; wanted is an AttackResult"]),
        ({"attack__method": "{own}:Failing"}, ["attack.method", "Failing: IndexError: no such step"]),
    ],
)
def test_classes_that_do_not_fit_are_refused_before_anything_is_written(
    settings: dict[str, str],
    words: list[str],
    own: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {key: value.replace("{own}", str(own)) for key, value in settings.items()}
    command = [text for text in options(tmp_path / "run", **given) if not text.startswith("--generator.fe")]
    assert train.main([text for text in command if not text.startswith("--generator.de")]) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--attack.method", "{own}:Net"], ["a subclass of andfast.Attack is wanted"]),
        (["--attack.method", "andfast:FreeAT"], ["a subclass of andfast.Attack is wanted, not of FreeAT"]),
        (["--attack.method", "{own}:Patient", "--attack.options", "{less: 2}"], ["with {'less': 2}: TypeError"]),
        (["--attack.options", "{more: 2}"], ["attack.options is {'more': 2}; attack.method pgd has none"]),
        (["--loss.custom_options", "{power: 2}"], ["loss.custom_options is {'power': 2}, and loss.custom null"]),
        (["--loss.custom", "Edges"], ["loss.custom", "Edges"]),
        (["--generator.name", "resnet"], ["generator.name is resnet", "a class of your own as my_file.py:MyNet"]),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    arguments: list[str], words: list[str], own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = " ".join(refused([text.replace("{own}", str(own)) for text in arguments], capsys).split())
    for word in words:
        assert word in message
