"""What models are tested on, and the tables of it."""

import numpy as np
import pytest
import torch
from PIL import Image
from study_images import photograph, write_pairs, write_photographs

from andfast.data.images import DataError
from andfast.data.tensors import to_tensor
from andfast.degradation.camera import bicubic_lr
from andfast.evaluation.models import bicubic_method
from andfast.metrics import psnr_y, ssim_y
from andfast.models import build_generator, save_model
from andfast.training.images import Skipped, find_images
from andfast.training.options import parse_config
from studies import evaluate
from studies.testsets import STRENGTHS, Case, digest, held_out_photographs, pair_sets, photograph_sets

NAMES = ["canon_1", "canon_2", "nikon_1", "nikon_2", "nikon_3"]


def test_pairs_are_split_by_folder_and_grouped_by_camera(tmp_path):
    folders = [write_pairs(tmp_path / "one", NAMES), write_pairs(tmp_path / "two", ["1", "2"])]
    sets = pair_sets(folders, 4)
    assert {name: [(case.group, case.image) for case in cases] for name, cases in sets.items()} == {
        "reporting": [("canon", "canon_2"), ("nikon", "nikon_2"), ("two", "2")],
        "tuning": [("canon", "canon_1"), ("nikon", "nikon_1"), ("nikon", "nikon_3"), ("two", "1")],
    }
    with pytest.raises(DataError, match="two of canon_1"):
        pair_sets([folders[0], folders[0]], 4)
    with pytest.raises(DataError, match="two at least"):
        pair_sets([write_pairs(tmp_path / "three", ["1"])], 4)


def test_pairs_of_twice_the_scale_are_reduced(tmp_path):
    folder = write_pairs(tmp_path / "pairs", NAMES[:2])
    (case,) = pair_sets([folder], 2)["reporting"]
    assert case.group == "canon, HR reduced x2"
    hr = np.asarray(Image.open(folder / "HR" / "canon_2.png"))
    assert np.array_equal(case.hr, bicubic_lr(hr, 2))
    assert np.array_equal(case.lr, np.asarray(Image.open(folder / "LR" / "canon_2.png")))
    with pytest.raises(DataError, match="HR is not 3 times LR"):
        pair_sets([folder], 3)


def test_photographs_under_all_degradations():
    photographs = [(f"{seed}.png", photograph(seed)) for seed in range(2)]
    sets = photograph_sets(photographs, 4)
    assert list(sets) == ["clean", *STRENGTHS]
    assert np.array_equal(sets["clean"][1].lr, bicubic_lr(photographs[1][1], 4))
    assert len({case.lr.tobytes() for cases in sets.values() for case in cases}) == 2 * 8
    alone = photograph_sets(photographs[1:], 4)
    assert all(np.array_equal(alone[name][0].lr, sets[name][1].lr) for name in sets)


def test_the_digest_sees_every_pixel():
    sets = photograph_sets([("a.png", photograph(0))], 4)
    same = photograph_sets([("a.png", photograph(0))], 4)
    assert digest(sets) == digest(same)
    same["severe"][0].lr[0, 0, 0] ^= 1
    assert digest(sets) != digest(same)


def test_held_out_photographs_are_not_trained_on(tmp_path):
    config = parse_config(["--data.held_out=2", "--data.hr", str(write_photographs(tmp_path / "hr", 8))])
    held_out = held_out_photographs(config)
    trained = {source.name.rpartition("/")[2] for source in find_images(config, Skipped()).sources}
    assert len(held_out) == 2
    assert len(trained) == 6
    assert not trained & {name for name, _ in held_out}


def test_scores_are_those_of_the_metrics(tmp_path):
    hr = photograph(3)
    sets = {"clean": [Case("a", "photographs", bicubic_lr(hr, 4), hr)]}
    model = build_generator("compact", 4, features=8, convs=1).eval()
    with torch.no_grad():
        restored = model(to_tensor(sets["clean"][0].lr))
    file = tmp_path / "small.safetensors"
    save_model(model, file)
    (method,) = evaluate.load_models([file], torch.device("cpu"))
    scores = evaluate.evaluate(method, sets, 4)
    for metric, measure in (("psnr_y", psnr_y), ("ssim_y", ssim_y)):
        assert scores[metric]["clean"] == [pytest.approx(measure(restored, to_tensor(hr), 4).item(), abs=1e-5)]
    assert evaluate.evaluate(bicubic_method(), sets, 4) != scores


def test_the_command_prints_means_by_camera(tmp_path, capsys):
    model = tmp_path / "run" / "model.safetensors"
    model.parent.mkdir()
    save_model(build_generator("compact", 4, features=8, convs=1), model)
    pairs = write_pairs(tmp_path / "pairs", NAMES)
    hr = write_photographs(tmp_path / "hr", 8)
    assert evaluate.main([str(model), "--data.hr", str(hr), "--pairs", str(pairs), "--data.held_out", "2"]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    psnr = {line[0]: line[1:] for line in lines[2 : lines.index([], 2)]}
    assert psnr[""] == ["images", "bicubic interpolation", "run"]
    assert psnr["tuning nikon"][0] == "2"
    assert psnr["reporting, all"][0] == "2"
    assert psnr["severe"][0] == "2"
    canon, nikon, both = (float(psnr[f"reporting{name}"][2]) for name in (" canon", " nikon", ", all"))
    assert both == pytest.approx((canon + nikon) / 2, abs=0.02)
    assert canon != nikon


def test_what_cannot_be_tested_is_said_at_once(tmp_path, capsys):
    assert evaluate.main([str(tmp_path / "none.pth"), "--pairs", str(tmp_path)]) == 2
    assert "none.pth: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main(["model.pth"])
    assert "nothing to test on" in capsys.readouterr().err


class Drawn:
    """A method that enlarges by repetition, and draws a grid: the first place in each LR pixel is brighter by 3."""

    upscaler, device = None, torch.device("cpu")

    def restore(self, lr, scale, device):
        large = np.kron(lr.transpose(2, 0, 1).astype(np.float64), np.ones((1, scale, scale)))
        large[:, ::scale, ::scale] += 3
        return torch.from_numpy(large / 255)[None].float()


def test_noise_and_grids_of_flat_areas():
    found = evaluate.noise_and_grid(Drawn(), 4, sigma=15.0)
    assert found["grid"] == pytest.approx(3, abs=0.01)
    assert found["noise"] == pytest.approx(15, rel=0.02)
    flat = evaluate.noise_and_grid(Drawn(), 4, sigma=0.0)
    assert flat["noise"] == pytest.approx(3 * (15**0.5) / 16, abs=0.01)
    assert evaluate.noise_and_grid(bicubic_method(), 4)["grid"] < 0.1
    assert 10 < evaluate.noise_and_grid(bicubic_method(), 4)["noise"] < 14
