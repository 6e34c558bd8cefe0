"""Names that old archives, cameras and people give to files, in every command."""

import csv
import json
import os
import unicodedata

import numpy as np
import pytest
import torch
from commands import as_options
from PIL import Image

from andfast import degrade, evaluate, export, plot, train, upscale
from andfast.demo.models import load_offered
from andfast.inference.output_paths import plan_outputs
from andfast.models import build_generator, load_model, save_model
from andfast.models.onnx_files import load_onnx
from andfast.training.options import parse_config
from andfast.training.records import read_records
from andfast.utils.command_line import UsageError

LATIN = os.fsdecode(b"caf\xe9")  # no UTF-8

SMALL_NETWORK = {"degradation.channels": 8, "degradation.blocks": 1}
TINY = SMALL_NETWORK | {
    "train.iterations": 2,
    "train.warmup": 1,
    "train.ramp": 0,
    "train.batch_size": 2,
    "train.patch_size": 32,
    "generator.features": 8,
    "generator.depth": 1,
    "attack.steps": 1,
    "data.workers": 0,
    "device": "cpu",
}


@pytest.fixture
def here(tmp_path):
    """A folder of such a name."""
    (tmp_path / LATIN).mkdir()
    return tmp_path / LATIN


@pytest.fixture
def model_file(here):
    torch.manual_seed(0)
    save_model(build_generator("compact", 4, features=8, convs=1), here / f"{LATIN}.safetensors")
    return here / f"{LATIN}.safetensors"


def image(path, side=48):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(command, *arguments):
    return command.main([str(argument) for argument in arguments])


def test_images_of_such_names_are_upscaled(here, model_file, capsys):
    image(here / "in" / f"{LATIN}.png", 8)
    image(here / "in" / LATIN / "a.png", 8)
    for form in ("png", "jpeg", "webp", "tiff"):
        assert run(upscale, here / "in", "--output", here / form, "--model", model_file, "--format", form) == 0
        assert sum(path.is_file() for path in (here / form).rglob("*")) == 2
    assert str(here / "tiff").replace("\udce9", "\\udce9") in capsys.readouterr().out


def test_pairs_of_such_names_are_made(here, model_file, capsys):
    image(here / "in" / f"{LATIN}.png")
    command = [
        here / "in",
        "--output",
        here / "out",
        "--model",
        model_file,
        *as_options(SMALL_NETWORK | {"attack.method": "random"}),
    ]
    assert run(degrade, *command, "--sheet", here / "sheet.png") == 0
    made = (here / "out" / "LR" / f"{LATIN}.png").read_bytes()
    assert run(degrade, *command) == 0
    assert "1 of them before" in capsys.readouterr().out
    # The random choices are the name's.
    (here / "out" / "LR" / f"{LATIN}.png").unlink()
    assert run(degrade, *command) == 0
    assert (here / "out" / "LR" / f"{LATIN}.png").read_bytes() == made


def test_images_of_such_names_are_measured(here, model_file, capsys):
    image(here / "set" / f"{LATIN}.png", 64)
    names = {"json": here / "a.json", "csv": here / "a.csv", "sheet": here / "a.png", "run_dir": here / "run"}
    command = [
        "--model",
        model_file,
        "--data",
        f"{LATIN}={here / 'set'}",
        "--degrade",
        "noise=5",
        "--metrics",
        "psnr_y",
    ]
    command += ["--device", "cpu", *as_options(names)]
    for _ in range(2):
        assert run(evaluate, *command) == 0
    assert "2 of 2 results there before" in capsys.readouterr().out
    found = json.loads((here / "a.json").read_bytes())
    assert {(each["data"], each["image"]) for each in found["images"]} == {(LATIN, LATIN)}
    with open(here / "a.csv", encoding="utf-8", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["caf\\udce9"] * 2


def test_models_of_such_names_are_exported_and_offered(here, model_file):
    outputs = [here / f"{LATIN}{suffix}" for suffix in (".pth", ".pt", ".onnx")]
    assert run(export, model_file, "--output", *outputs) == 0
    low = torch.rand(1, 3, 9, 11)
    with torch.no_grad():
        expected = load_model(model_file)(low)
        for path in outputs:
            found = load_onnx(path) if path.suffix == ".onnx" else load_model(path)
            assert torch.allclose(found(low), expected, atol=1e-5)
    assert "caf\\udce9" in load_offered([str(here)], torch.device("cpu"))  # browsers take nothing else


def test_images_of_such_names_are_trained_on(here, capsys):
    for name in ("a", "b", LATIN):
        image(here / "hr" / f"{name}.png")
    places = {"data.hr": here / "hr", "data.cache": here / "cache", "run_dir": here / "run"}
    assert run(train, *as_options(TINY | places)) == 0
    config = here / "run" / "config.yaml"
    assert parse_config(["--config", str(config)]).run_dir == str(here / "run")
    assert run(train, "--config", config, "--train.iterations", 4) == 0
    said = capsys.readouterr()
    assert "resuming" in said.out
    assert "tensorboard is left out, the run goes on without" in said.err
    assert [record["step"] for record in read_records(here / "run" / "metrics.jsonl") if "loss" in record] == [
        1,
        2,
        3,
        4,
    ]
    assert load_model(here / "run" / "model.safetensors").scale == 4
    assert run(plot, here / "run") == 0
    assert (here / "run" / "plot.png").exists()


def test_names_as_long_as_they_can_be_are_kept_and_longer_ones_fail_alone(tmp_path, capsys):
    names = ["a" * 251 + ".png", "\u5149" * 83 + "ab.png", "b.png"]
    for name in names:
        image(tmp_path / "in" / name, 8)
    assert run(upscale, tmp_path / "in", "--output", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(names)
    # .webp is one more than .png.
    assert run(upscale, tmp_path / "in", "--output", tmp_path / "webp", "--format", "webp") == 1
    assert {path.name for path in (tmp_path / "webp").iterdir()} == {"b.webp"}
    said = capsys.readouterr().err
    assert said.count("failed") == said.count("File name too long") == 2
    assert run(degrade, tmp_path / "in", "--output", tmp_path / "pairs", "--identity") == 0
    assert {path.name for path in (tmp_path / "pairs" / "LR").iterdir()} == set(names)


@pytest.mark.parametrize(
    ("compare", "refused"),
    [
        (str, []),
        (str.casefold, ["case"]),
        (lambda name: unicodedata.normalize("NFD", name), ["form"]),
        (lambda name: unicodedata.normalize("NFD", name).casefold(), ["case", "form"]),
    ],
)
def test_results_that_a_file_system_takes_for_one_are_refused(compare, refused, tmp_path, monkeypatch):
    def exists(path):
        return any(compare(other.name) == compare(path.name) for other in path.parent.iterdir())

    monkeypatch.setattr("andfast.utils.files.os.path.lexists", exists)
    for kind, names in {"case": ["a.png", "A.png"], "form": ["\u00e9.png", "e\u0301.png"]}.items():
        for name in names:
            image(tmp_path / kind / name, 8)
        if kind in refused:
            with pytest.raises(UsageError, match="takes them for one"):
                plan_outputs([tmp_path / kind], tmp_path / "new" / "out")
        else:
            assert len(plan_outputs([tmp_path / kind], tmp_path / "new" / "out").pairs) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case", "form"]
