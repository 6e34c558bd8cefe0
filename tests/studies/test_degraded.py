"""The sheet of what an adversary makes of photographs."""

import numpy as np
import pytest
import torch
from PIL import Image
from study_images import photograph

from andfast.data.tensors import to_tensor
from andfast.models import build_generator, save_model
from andfast.ops.blur_pool import blur_pool
from studies.degraded import main

SETTINGS = {"degradation.channels": 8, "degradation.blocks": 2, "degradation.num_networks": "batch", "attack.steps": 1}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_generator("compact", 4, features=8, convs=1).eval().requires_grad_(False)


@pytest.fixture
def files(tmp_path, model):
    for seed in range(2):
        Image.fromarray(photograph(seed, size=48)).save(tmp_path / f"{seed}.png")
    save_model(model, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text("attack: {lens: {blur: [2, 4]}, steps: 1}\nrun_dir: elsewhere\n")
    return tmp_path


def command(files, *more):
    options = ["--config", files / "config.yaml", "--model", files / "model.pth", "--output", files / "sheet.png"]
    options += [f"--set={key}={value}" for key, value in SETTINGS.items()]
    images = [files / "0.png", f"{files / '1.png'}@16,8"]
    return [str(part) for part in [*images, *options, "--size", 32, *more]]


def cell(path, row, column):
    with Image.open(path) as image:
        top, left = 22 + row * 36, 4 + column * 36
        return np.array(image)[top : top + 32, left : left + 32]


def test_the_command_writes_a_line_an_image(files):
    assert main(command(files)) == 0
    with Image.open(files / "sheet.png") as image:
        assert image.size == (6 * 36 + 4, 2 * 36 + 22)
    original = photograph(1, size=48)[8:40, 16:48]
    assert np.array_equal(cell(files / "sheet.png", 1, 0), original)
    clean = cell(files / "sheet.png", 1, 1)
    pooled = (blur_pool(to_tensor(original), 4)[0].permute(1, 2, 0).numpy() * 255).round()
    assert np.array_equal(clean, pooled.repeat(4, axis=0).repeat(4, axis=1))


def test_settings_and_seeds_decide(files):
    sheets = {}
    for name, more in {
        "first": [],
        "again": ["--seed", "0"],
        "seed": ["--seed", "1"],
        "lens": ["--set=attack.lens.blur=[1, 1]"],
        "without": ["--set", "attack.lens=null"],
    }.items():
        assert main(command(files, *more)) == 0
        sheets[name] = (files / "sheet.png").read_bytes()
    assert sheets["first"] == sheets["again"]
    assert len(set(sheets.values())) == 4
    with Image.open(files / "sheet.png") as image:
        assert image.width == 5 * 36 + 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "30"], "wanted are multiples of 4"),
        (["--size", "64"], "hold no crop of 64 x 64"),
        (["--model", "nothing.pth"], "nothing.pth: no such file"),
        (["--set", "attack.method=none"], "attack.method is none"),
        (["--set", "scale=2"], "the model's scale is 4 and the configuration's 2"),
        (["--set", "degradation.num_networks=4"], "num_networks is 4; it must divide the batch size, 2"),
    ],
)
def test_what_does_not_go_together_is_said(files, capsys, more, message):
    assert main(command(files, *more)) == 2
    assert message in capsys.readouterr().err
    assert not (files / "sheet.png").exists()


def test_an_unknown_setting_is_named(files, capsys):
    with pytest.raises(SystemExit):
        main(command(files, "--set", "attack.lense=null"))
    assert "attack.lens" in capsys.readouterr().err
