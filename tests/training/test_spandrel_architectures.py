"""Architectures of spandrel through training, resuming, saving, upscaling, export and evaluation."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import as_options
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from study_images import photograph, write_photographs
from tiny_trainer import make, patches

from andfast import evaluate, export, train, upscale
from andfast.inference.models import find_model
from andfast.inference.upscaler import Upscaler
from andfast.models import ModelError, save_model
from andfast.models.frozen import FrozenModule
from andfast.models.spandrel_models import SpandrelModel, build_with_spandrel, import_spandrel
from andfast.training.checkpoints import load_state, save_state
from andfast.training.config import GeneratorConfig
from andfast.training.memory_check import estimate_memory
from andfast.training.options import parse_config
from andfast.utils.torchvision_operators import declare_missing

declare_missing()
pytest.importorskip("spandrel")

SIZES: dict[str, dict[str, Any]] = {
    "SPAN": {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8},
    "RealPLKSR": {"dim": 16, "n_blocks": 1, "kernel_size": 5},
    "SwinIR": {
        "img_size": 16, "window_size": 8, "depths": [1], "num_heads": [2], "embed_dim": 8,
        "upsampler": "pixelshuffledirect",
    },
    "DAT": {
        "img_size": 16, "embed_dim": 16, "split_size": [8, 8], "depth": [1], "num_heads": [2], "expansion_factor": 2.0,
        "upsampler": "pixelshuffledirect",
    },
    "OmniSR": {"num_feat": 8, "block_num": 1, "res_num": 1, "window_size": 8},
    "RCAN": {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 16},  # multiplies its input in place
}  # fmt: skip


WINDOWS = ("SwinIR", "DAT", "OmniSR")


def build(name: str, scale: int = 2) -> SpandrelModel:
    torch.manual_seed(0)
    return build_with_spandrel(name, scale, SIZES[name])


def read_by_spandrel(path: Path) -> Any:
    return import_spandrel().ModelLoader(device="cpu").load_from_file(path).eval()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs") / "hr", 4)


@pytest.mark.parametrize("name", SIZES)
def test_a_run_from_its_beginning_to_a_model_of_other_programs(
    name: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "run_dir": tmp_path / "run", "scale": 2, "data.hr": photographs, "data.held_out": 1, "data.workers": 0,
        "generator.name": f"spandrel:{name}", "generator.options": json.dumps(SIZES[name]),
        "degradation.channels": 4, "attack.steps": 1, "train.batch_size": 2, "train.patch_size": 32,
        "train.warmup": 1, "train.ramp": 0, "train.iterations": 2,
    }  # fmt: skip
    assert train.main(as_options(options)) == 0
    assert f"spandrel:{name} x2 with " in capsys.readouterr().out
    more = options | {"train.iterations": 4}
    assert train.main(as_options(more)) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "loss" in line}
    assert sorted(steps) == [1, 2, 3, 4]
    assert all(steps[step]["gain"] > 0 for step in (2, 3, 4) if "gain" in steps[step])

    trained = tmp_path / "run" / "model.pth"
    model = find_model(str(trained))
    image = torch.rand(1, 3, 20, 27, generator=torch.Generator().manual_seed(0))
    theirs = read_by_spandrel(trained)(image.clone())
    with torch.no_grad():
        torch.testing.assert_close(model(image).clamp(0, 1), theirs, rtol=0, atol=1e-5)

    assert export.main([str(trained), "--output", str(tmp_path / "exported.safetensors")]) == 0
    # ONNX files are compared with the model on images of several sizes; those of attention in windows hold for one.
    onnx = tmp_path / "exported.onnx"
    assert export.main([str(trained), "--output", str(onnx)]) == (name in WINDOWS)
    assert onnx.exists() == (name not in WINDOWS)
    assert (f"failed: {onnx}" in capsys.readouterr().err) == (name in WINDOWS)
    Image.fromarray(photograph(1, 140)).save(tmp_path / "large.png")  # the memory of large images is measured
    arguments = [str(tmp_path / "large.png"), "--output", str(tmp_path / "up")]
    assert upscale.main([*arguments, "--model", str(tmp_path / "exported.safetensors")]) == 0
    with Image.open(tmp_path / "up" / "large.png") as result:
        found = torch.from_numpy(np.array(result.convert("RGB"))).permute(2, 0, 1)[None]
    pixels = torch.from_numpy(photograph(1, 140)).permute(2, 0, 1)[None].float() / 255
    expected = read_by_spandrel(trained)(pixels)
    assert (found.float() - 255 * expected).abs().max() <= 1

    for kind, size in (("HR", 80), ("LR", 40)):
        (tmp_path / "pairs" / kind).mkdir(parents=True)
        Image.fromarray(photograph(2, size)).save(tmp_path / "pairs" / kind / "a.png")
    arguments = [
        "--model",
        str(trained),
        "--data",
        f"pairs={tmp_path / 'pairs'}",
        "--metrics",
        "psnr_y",
        "--device",
        "cpu",
    ]
    arguments += ["--run_dir", str(tmp_path / "evaluation"), "--json", str(tmp_path / "results.json")]
    assert evaluate.main(arguments) == 0
    results = json.loads((tmp_path / "results.json").read_text())["means"]["pairs"]
    lr = torch.from_numpy(photograph(2, 40)).permute(2, 0, 1)[None].float() / 255
    made = read_by_spandrel(trained)(lr)[0].permute(1, 2, 0).double().mul(255).round().numpy()
    ours, wanted = (
        (each @ [65.481, 128.553, 24.966] / 255)[2:-2, 2:-2] for each in (made, photograph(2, 80).astype(float))
    )
    psnr = peak_signal_noise_ratio(wanted, ours, data_range=255)
    assert results["run"]["psnr_y"] == pytest.approx(psnr, abs=0.01)  # a pixel may be rounded to the other side


@pytest.mark.parametrize("name", SIZES)
def test_frozen_it_gives_the_same_images_and_their_gradients(name: str) -> None:
    model = build(name)
    frozen = FrozenModule(model, torch.float32)
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    leaf = image.clone().requires_grad_()
    restored = frozen(leaf)
    (gradient,) = torch.autograd.grad(restored.square().sum(), leaf)
    assert torch.equal(leaf.detach(), image)
    with torch.no_grad():
        torch.testing.assert_close(restored.detach(), model.eval()(image), rtol=1e-3, atol=1e-4)
    # Against differences along a random direction, in float64.
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(1)).double()
    wide = copy.deepcopy(frozen.module).double()
    with torch.no_grad():
        ends = [wide(image.double() + step * direction).square().sum() for step in (1e-6, -1e-6)]
    expected = (ends[0] - ends[1]) / 2e-6
    assert (gradient.double() * direction).sum().item() == pytest.approx(expected.item(), rel=2e-3)


@pytest.mark.parametrize("name", SIZES)
def test_measuring_memory_leaves_no_trace(name: str) -> None:
    own = {"generator__features": "null", "generator__depth": "null", "generator__options": json.dumps(SIZES[name])}
    trainer = make(scale=2, generator__name=f"spandrel:{name}", **own)
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in trainer.generator.state_dict().items()}
    assert estimate_memory(trainer) > 0
    for key, value in trainer.generator.state_dict().items():
        assert type(value) is torch.Tensor
        assert torch.equal(value, before[key])
    upscaler = Upscaler(trainer.generator)
    assert upscaler.bytes_a_pixel > 0
    with torch.no_grad():
        torch.testing.assert_close(upscaler.tensor(image), trainer.generator.eval()(image), rtol=1e-3, atol=1e-4)


def test_weights_that_others_are_computed_from_are_trained_alone() -> None:
    """SPAN's fused convolutions: neither trained nor averaged, but right in files."""
    model = build("SPAN")
    fused = {name for name, weight in model.named_parameters() if "eval_conv" in name}
    assert fused == {name for name, weight in model.named_parameters() if not weight.requires_grad}
    weight = model.model.conv_1.sk.weight
    with torch.no_grad():
        weight += 1
    state = model.portable_state()
    assert model.training
    # The middle of the fused 3x3 kernel holds the 1x1 convolution beside the others.
    other = build("SPAN")
    change = state["conv_1.eval_conv.weight"] - other.portable_state()["conv_1.eval_conv.weight"]
    expected = torch.zeros_like(change)
    expected[:, :, 1, 1] = 1
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("written", ["option", "file"])
def test_init_alone_takes_the_architecture_of_the_file(written: str, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    save_model(build("SPAN"), file)
    (tmp_path / "config.yaml").write_text(f"scale: 2\ngenerator: {{init: {file}}}\n")
    options = ["--scale=2", f"--generator.init={file}"]
    config = parse_config(options if written == "option" else ["--config", str(tmp_path / "config.yaml")])
    assert config.generator.architecture is None
    assert config.generator.build(2, seed=0).architecture == "SPAN"
    assert parse_config([]).generator.architecture == "compact"
    # As it was recorded once, where the name was always written.
    before, now = parse_config([]).to_dict(), parse_config([]).to_dict()
    before["generator"]["name"] = "compact"
    assert now["generator"]["name"] is None
    save_state(tmp_path / "state.pt", {"step": 0, "config": before, "images": []})
    load_state(tmp_path / "state.pt", now)


def test_dropout_is_kept_and_drawn_by_the_step(tmp_path: Path) -> None:
    """An option that no file tells: the result of training depends on it, and is the same each time."""
    options = SIZES["RealPLKSR"] | {"dropout": 0.5}
    model = build_with_spandrel("RealPLKSR", 2, options)
    assert [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout2d)] == [0.5]
    own = {"generator__features": "null", "generator__depth": "null", "train__warmup": 1}
    losses = []
    for dropout in (0.5, 0.5, 0.0):
        given = json.dumps(options | {"dropout": dropout})
        trainer = make(scale=2, generator__name="spandrel:RealPLKSR", generator__options=given, **own)
        torch.rand(len(losses) + 1)  # whatever else has been drawn
        losses.append(trainer.train_step(patches()).read().loss)
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("name", ["SwiftSRGAN", "DITN"])
def test_files_name_the_architecture_as_settings_do(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_with_spandrel(name, 4, {})
    assert model.architecture == name
    save_model(model, tmp_path / "m.safetensors")
    again = GeneratorConfig(name=f"spandrel:{name}", init=str(tmp_path / "m.safetensors")).build(4, seed=0)
    assert again.architecture == name


def test_a_file_of_any_architecture_is_trained_on(tmp_path: Path) -> None:
    save_model(build("RealPLKSR"), tmp_path / "m.safetensors")
    model = GeneratorConfig(init=str(tmp_path / "m.safetensors")).build(2, seed=0)
    assert isinstance(model, SpandrelModel)
    assert model.training
    with pytest.raises(ModelError, match=r"a spandrel:RealPLKSR x2 that does not fit the settings \(scale 4\)"):
        GeneratorConfig(init=str(tmp_path / "m.safetensors")).build(4, seed=0)
    with pytest.raises(ModelError, match=r"does not fit the settings \(generator\.name compact, scale 2\)"):
        GeneratorConfig(name="compact", init=str(tmp_path / "m.safetensors")).build(2, seed=0)
    pretrained = GeneratorConfig(init="andnet_compact_x4").build(4, seed=0)
    assert sum(weight.numel() for weight in pretrained.parameters()) == 621_424


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("Span", {}, r"spandrel:Span: spandrel has no such architecture; it has .*SPAN"),
        ("Compact", {}, r"spandrel:Compact: give generator\.name compact"),
        ("SPAN", {"features": 3}, r"spandrel:SPAN has no option features; it has num_in_ch, .*feature_channels"),
        ("SPAN", SIZES["SPAN"] | {"upscale": 3}, r"has the scale 3; scale is 2"),
        ("SPAN", SIZES["SPAN"] | {"img_range": 1.0}, r"would be read as another network"),
        ("SPAN", {"num_in_ch": "many"}, r"spandrel:SPAN with \{'num_in_ch': 'many'\}: TypeError"),
        ("DnCNN", {"in_nc": 1, "out_nc": 1, "nc": 8, "nb": 17}, r"a DnCNN, which does not turn RGB images"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build_with_spandrel(name, 2, options)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"name": "resnet"},
            r"generator\.name is resnet; it must be one of rrdbnet, compact, spandrel:NAME, or a class",
        ),
        (
            {"options": {"dim": 3}},
            r"generator\.options are for a generator\.name spandrel:NAME or my_file\.py:MyNet; compact has none",
        ),
        ({"name": "spandrel:SPAN", "depth": 3}, r"generator\.depth is 3; it needs .* not spandrel:SPAN"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GeneratorConfig(**settings)
