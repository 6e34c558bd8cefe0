"""The study of the prior from end to end on tiny images, and the page that its committed results make."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import andfast
from andfast.degradation.camera import gaussian_blur
from studies import calibration
from studies.calibration_report import FIGURES, TABLES
from studies.measures import Measures, measure
from studies.prior import GROUPS

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs" / "calibration.md", ROOT / "studies" / "results" / "calibration_x4.json"


def photograph(seed: int, size: int = 128) -> np.ndarray:
    random = np.random.default_rng(seed)
    image = gaussian_blur(random.standard_normal((size, size, 3)), 1.5) + gaussian_blur(
        random.standard_normal((size, size, 1)), 6.0
    )
    return np.rint(255 * (0.1 + 0.8 * (image - image.min()) / np.ptp(image))).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, pairs of two cameras, the second one blurred more, and a model."""
    folder = tmp_path_factory.mktemp("study")
    for part in ("photographs", "pairs/HR", "pairs/LR"):
        (folder / part).mkdir(parents=True)
    for index in range(4):
        Image.fromarray(photograph(index)).save(folder / "photographs" / f"{index}.png")
    for camera, sigma in (("a", 1.0), ("b", 4.0)):
        for number in range(2):
            hr = photograph(10 + number)
            lr = gaussian_blur(hr.astype(float), sigma).reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
            lr += np.random.default_rng(0).normal(0, 1, lr.shape)
            if number == 1:  # the reporting part: nothing of it may be read
                lr = np.zeros_like(lr)
            Image.fromarray(hr).save(folder / "pairs" / "HR" / f"cam_{camera}_{number}.png")
            Image.fromarray(lr.clip(0, 255).astype(np.uint8)).save(
                folder / "pairs" / "LR" / f"cam_{camera}_{number}.png"
            )
    torch.manual_seed(0)
    andfast.save_model(andfast.Compact(scale=4, features=8, convs=1), folder / "model.safetensors")
    return folder


def command(folder: Path, *more: str) -> list[str]:
    paths = ["--model", folder / "model.safetensors", "--data.hr", folder / "photographs", "--pairs", folder / "pairs"]
    paths += ["--output", folder / "out.json", "--figures", folder / "figures"]
    return [*map(str, paths), *more]


def test_the_whole_study_at_a_reduced_size(folder, capsys, monkeypatch):
    # The cases that the figures need; test_prior.py has all groups.
    monkeypatch.setattr(calibration, "GROUPS", [group for group in GROUPS if group.name in ("conv AC", "noise map")])
    monkeypatch.setattr(calibration, "RANGES", {"trained": calibration.RANGES["trained"][:1]})
    assert calibration.main(command(folder, "--quick")) == 0
    printed = capsys.readouterr().out
    record = json.loads((folder / "out.json").read_text())
    assert str(folder) not in (folder / "out.json").read_text()
    cameras = record["cameras"]
    assert {name: camera["images"] for name, camera in cameras.items()} == {"cam_a": 1, "cam_b": 1}
    blur = {name: camera["kernel"]["response"][4] for name, camera in cameras.items()}
    assert blur["cam_b"] < blur["cam_a"] < record["pooling"]["response"][4]
    for row in (*cameras.values(), *record["prior"]):
        assert row["inside"].keys() == set(calibration.COMPARED)
        assert row["measures"].keys() == Measures.__dataclass_fields__.keys()
    behind = [row for row in record["prior"] if row["lens"] is not None]
    assert [(row["name"], row["method"], row["per_image"]) for row in behind] == [
        ("lens", "none", True),
        *(("trained", "pgd", per_image) for _ in range(2) for per_image in (False, True)),
    ]
    # Of a network for each image it is known that the lenses are those of the lens alone.
    assert all(row["loss_ratio"] > behind[0]["loss_ratio"] for row in behind[1:] if row["per_image"])
    for row in record["prior"]:
        if row["lens"] is not None:  # the budget is from what is behind it
            continue
        assert row["measures"]["psnr"][0] >= row["lr_psnr"][0] - (0 if row["per_image"] else 6)
        assert row["loss_ratio"] >= 1 or row["method"] == "random"
    for name, table in TABLES.items():
        assert table(record) in printed, name
    for name in FIGURES:
        assert Image.open(folder / "figures" / name).width == 1400


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "62"], "--size is 62; it must be a multiple of 4"),
        (["--images", "3", "--batch", "2"], "--images is 3; it must be a multiple of --batch, 2"),
        (["--middle", "29"], "--middle is 29; it must be one of --budgets"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder, capsys, more, message):
    with pytest.raises(SystemExit) as refusal:
        calibration.main(command(folder, *more))
    assert refusal.value.code == 2
    assert message in capsys.readouterr().err


def test_too_few_photographs_are_refused(folder, capsys):
    assert calibration.main(command(folder, "--images", "8")) == 2
    assert "photographs: 4 images of at least 128 x 128; 8 are needed" in capsys.readouterr().err


def test_ranges_count_every_camera_alike():
    hr = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    levels = torch.linspace(0.01, 0.2, 20)
    many = [measure(hr, andfast.DegradationNetwork(4).clean(hr[None])[0] + level) for level in levels]
    shared = calibration.common_ranges({"one": many, "other": many[:1] * 500})
    offsets = [each.flat_noise for each in many]
    assert shared["flat_noise"][0] >= min(offsets)
    assert calibration.share_inside(many, {"offset": [0.0, 0.105]}) == {"offset": pytest.approx(0.5, abs=0.06)}


def test_the_page_shows_the_committed_results():
    record, text = json.loads(RESULTS.read_text()), PAGE.read_text()
    for name, table in TABLES.items():
        assert f"<!-- studies/results/{RESULTS.name}: {name} -->\n{table(record)}\n" in text, name
    for name in FIGURES:
        assert f"]({name})" in text
        assert (PAGE.parent / name).exists()
    assert record["commit"]
