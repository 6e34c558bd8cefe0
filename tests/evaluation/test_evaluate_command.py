"""`python -m andfast.evaluate`: what it finds, keeps, computes again and refuses."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import lpips_files
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from study_images import photograph
from upscaling_models import save_two_models

from andfast import evaluate
from andfast.data.tensors import to_tensor
from andfast.degradation.camera import camera_like
from andfast.evaluation.degrading import name_seed
from andfast.evaluation.models import BICUBIC, INPUT, Computing, Method, load_methods
from andfast.inference.upscaler import upscale_tensor
from andfast.metrics import niqe
from andfast.models import build_generator, load_model, save_model
from andfast.models.frozen import FrozenModule

SIZES = {"a": (192, 200), "b": (96, 192), "c": (200, 204)}


def save_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def original(seed: int, height: int, width: int) -> np.ndarray:
    return photograph(seed, 256)[:height, :width].copy()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Two models, and pairs of unequal sizes; the working directory."""
    monkeypatch.chdir(tmp_path)
    save_two_models(tmp_path)
    for seed, (name, size) in enumerate(SIZES.items()):
        hr = original(seed, *size)
        save_image(tmp_path / "pairs" / "HR" / f"{name}.png", hr)
        save_image(tmp_path / "pairs" / "LR" / f"{name}.png", camera_like(hr, 4, seed))
    return tmp_path


@pytest.fixture
def restored(monkeypatch):
    """Counts what is computed, as (title, LR height)."""
    calls, restore = [], Method.restore

    def counted(self, lr, scale, device):
        calls.append((self.title, lr.shape[0]))
        return restore(self, lr, scale, device)

    monkeypatch.setattr(Method, "restore", counted)
    return calls


def run(*arguments: str) -> int:
    return evaluate.main(["--device", "cpu", "--model", "one.safetensors", "two.safetensors", *arguments])


def results(path: str = "out.json") -> dict:
    return json.loads(Path(path).read_text())


def by_image(content: dict, model: str) -> dict[str, dict]:
    return {each["image"]: each for each in content["images"] if each["model"] == model}


def expected_scores(model: str, name: str) -> dict[str, float]:
    """With scikit-image and the whole image at once."""
    lr, hr = (np.array(Image.open(f"pairs/{kind}/{name}.png")) for kind in ("LR", "HR"))
    if model == BICUBIC:
        sr = np.array(Image.fromarray(lr).resize(hr.shape[1::-1], Image.Resampling.BICUBIC))
    else:
        network = load_model(f"{model}.safetensors")
        # In float64, as metrics round: a value may lie that near to the middle between two of 8 bits.
        values = upscale_tensor(network, to_tensor(lr))[0].double().clamp(0, 1).mul(255).round()
        sr = values.permute(1, 2, 0).numpy().astype(np.uint8)
    a, b = (rgb2ycbcr(image)[4:-4, 4:-4, 0] for image in (sr, hr))
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return {
        "psnr_y": peak_signal_noise_ratio(a, b, data_range=255),
        "ssim_y": structural_similarity(a, b, data_range=255, **wang),
        "niqe": niqe(to_tensor(sr))[0].item(),
    }


def test_the_results_are_those_of_scikit_image(here, capsys):
    assert run("--data", "mine=pairs", "--json", "out.json", "--csv", "out.csv") == 0
    content = results()
    for model in (BICUBIC, "one", "two"):
        found = by_image(content, model)
        assert list(found) == ["a", "b", "c"]
        expected = {name: expected_scores(model, name) for name in SIZES}
        for name, scores in expected.items():
            assert {key: found[name][key] for key in scores} == pytest.approx(scores, abs=2e-6)
        for key in ("psnr_y", "ssim_y", "niqe"):  # every image counts as much, whatever its size
            mean = sum(scores[key] for scores in expected.values()) / 3
            assert content["means"]["mine"][model][key] == pytest.approx(mean, abs=2e-6)
    printed = capsys.readouterr().out
    assert "mine: 3 pairs, x4" in printed
    lines = {line.split("  ")[0]: line.split() for line in printed.splitlines()}
    means = content["means"]["mine"]["two"]
    assert lines["two"] == ["two", f"{means['psnr_y']:.2f}", f"{means['ssim_y']:.4f}", f"{means['niqe']:.3f}"]
    assert printed.endswith("Of NIQE lower is better.\n")
    rows = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    assert [(row["image"], row["model"]) for row in rows[:3]] == [("a", BICUBIC), ("a", "one"), ("a", "two")]
    assert float(rows[2]["psnr_y"]) == by_image(content, "two")["a"]["psnr_y"]


def test_at_scale_1_the_input_is_compared_with(here, capsys):
    hr = original(0, 64, 48)
    noisy = camera_like(hr, 1, 0)
    save_image(here / "noisy" / "HR" / "a.png", hr)
    save_image(here / "noisy" / "LR" / "a.png", noisy)
    save_model(build_generator("compact", 1, features=4, convs=1), "restore.safetensors")
    given = ["--device", "cpu", "--model", "restore.safetensors", "--metrics", "psnr_y", "--sheet", "sheet.png"]
    assert evaluate.main([*given, "--data", "noisy=noisy", "--json", "out.json"]) == 0
    a, b = (rgb2ycbcr(image)[1:-1, 1:-1, 0] for image in (noisy, hr))
    expected = peak_signal_noise_ratio(a, b, data_range=255)
    assert results()["means"]["noisy"][INPUT]["psnr_y"] == pytest.approx(expected, abs=1e-6)
    assert results()["means"]["noisy"].keys() == {INPUT, "restore"}
    assert "noisy: 1 pairs, x1" in capsys.readouterr().out
    assert evaluate.main([*given, "--data", "noisy=noisy/HR", "--degrade", "bicubic"]) == 2
    assert "--degrade bicubic changes nothing at x1; give blur, noise or jpeg" in capsys.readouterr().err


def test_models_are_computed_in_the_given_type(here):
    lr, cpu = original(0, 24, 20), torch.device("cpu")
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        (one,) = load_methods(["one.safetensors"], Computing(cpu, dtype))
        found[dtype] = one.restore(lr, 4, cpu)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = load_model("one.safetensors")(to_tensor(lr)).float()
    assert not torch.equal(found[torch.float32], found[torch.bfloat16])
    torch.testing.assert_close(found[torch.bfloat16], expected, rtol=0, atol=0.01)


def test_weights_are_converted_once_for_all_images(here, monkeypatch):
    made, begin = [], FrozenModule.__init__

    def counted(self, source, dtype, **more):
        made.append(dtype)
        begin(self, source, dtype, **more)

    monkeypatch.setattr(FrozenModule, "__init__", counted)
    assert run("--data", "mine=pairs", "--precision", "bfloat16", "--sheet", "sheet.png") == 0
    assert made == [torch.bfloat16] * 2


def test_the_file_says_how_it_was_made(here):
    run("--data", "mine=pairs", "--json", "out.json", "--tile", "16", "--overlap", "8")
    content = results()
    assert content["command"].startswith("python -m andfast.evaluate --device cpu --model one.safetensors")
    assert content["machine"]["versions"]["torch"] == torch.__version__
    assert content["data"]["mine"]["layout"] == "pairs"
    settings = content["data"]["mine"]["settings"]
    assert (settings["tile"], settings["overlap"], settings["precision"]) == (16, 8, "float32")
    assert settings["metrics"]["psnr_y"]["border"] == settings["metrics"]["ssim_y"]["border"] == 4
    assert "65.481 R + 128.553 G + 24.966 B + 16, not rounded" in settings["metrics"]["psnr_y"]["channel"]
    assert settings["metrics"]["niqe"]["block"] == 96
    assert len(content["models"]["one"]["digest"]) == 64


def test_an_interrupted_evaluation_goes_on(here, restored, monkeypatch, capsys):
    assert run("--data", "mine=pairs", "--json", "whole.json", "--run_dir", "whole") == 0
    assert len(restored) == 9
    counted = Method.restore

    def interrupted(self, lr, scale, device):
        if len(restored) == 9 + 4:
            raise KeyboardInterrupt
        return counted(self, lr, scale, device)

    with monkeypatch.context() as patch:
        patch.setattr(Method, "restore", interrupted)
        assert run("--data", "mine=pairs", "--run_dir", "half") == 130
    assert "the same command goes on with what is in half/images.jsonl" in capsys.readouterr().err
    restored.clear()
    assert run("--data", "mine=pairs", "--json", "half.json", "--run_dir", "half") == 0
    assert restored == [("one", 24), ("two", 24), (BICUBIC, 50), ("one", 50), ("two", 50)]
    assert "4 of 9 results there before" in capsys.readouterr().out
    whole, half = results("whole.json"), results("half.json")
    assert (whole["images"], whole["means"]) == (half["images"], half["means"])
    restored.clear()
    assert run("--data", "mine=pairs", "--run_dir", "half") == 0
    assert not restored


def test_a_killed_evaluation_goes_on(here, restored):
    script = (
        "import os, sys\n"
        "from andfast import evaluate\n"
        "from andfast.evaluation.records import Records\n"
        "add, count = Records.add, 0\n"
        "def killed(self, record):\n"
        "    global count\n"
        "    add(self, record)\n"
        "    count += 1\n"
        "    if count == 2:\n"
        "        with self.path.open('a') as file:\n"
        '            file.write(\'{"data": "mi\')\n'
        "        os._exit(9)\n"
        "Records.add = killed\n"
        "sys.exit(evaluate.main(sys.argv[1:]))\n"
    )
    arguments = ["--device", "cpu", "--model", "one.safetensors", "--data", "mine=pairs"]
    assert subprocess.run([sys.executable, "-c", script, *arguments], check=False).returncode == 9
    assert evaluate.main(arguments) == 0
    assert restored == [(BICUBIC, 24), ("one", 24), (BICUBIC, 50), ("one", 50)]


def test_changed_models_and_images_are_computed_again(here, restored, capsys):
    psnr = ["--data", "mine=pairs", "--metrics", "psnr_y"]
    run(*psnr)
    restored.clear()
    Path("two.safetensors").write_bytes(Path("one.safetensors").read_bytes())
    assert run(*psnr, "--json", "out.json") == 0
    assert [title for title, _ in restored] == ["two"] * 3
    assert "the model changed, computed again: 3 of two on mine\n" in capsys.readouterr().out
    means = results()["means"]["mine"]
    assert means["two"] == means["one"]

    restored.clear()
    image = np.array(Image.open("pairs/LR/b.png"))
    image[0, 0] ^= 1
    Image.fromarray(image).save("pairs/LR/b.png")
    assert run(*psnr) == 0
    assert restored == [(title, 24) for title in (BICUBIC, "one", "two")]
    assert "the images changed, computed again: 1 of one on mine\n" in capsys.readouterr().out


def test_changed_settings_are_computed_again(here, restored, capsys):
    psnr = ["--metrics", "psnr_y"]
    run("--data", "mine=pairs", *psnr)
    for change in ([*psnr, "--tile", "20"], ["--metrics", "ssim_y"], [*psnr, "--precision", "bfloat16"]):
        restored.clear()
        assert run("--data", "mine=pairs", *change) == 0
        assert len(restored) == 9
        assert "the settings changed, computed again: 3 of two on mine\n" in capsys.readouterr().out
        assert run("--data", "mine=pairs", *psnr) == 0  # the earlier results are still there
        assert len(restored) == 9


def test_lr_images_alone_have_niqe(here, capsys):
    lr = photograph(5, 60)
    save_image(here / "phone" / "x.png", lr)
    assert run("--data", "phone=phone", "mine=pairs", "--json", "out.json", "--csv", "out.csv") == 0
    content = results()
    assert set(content["means"]["phone"]["one"]) == {"niqe"}
    sr = np.array(Image.fromarray(lr).resize((240, 240), Image.Resampling.BICUBIC))
    assert content["means"]["phone"][BICUBIC]["niqe"] == pytest.approx(niqe(to_tensor(sr)).item(), abs=1e-6)
    assert "phone: 1 LR images alone, x4" in capsys.readouterr().out
    assert next(csv.DictReader(Path("out.csv").read_text().splitlines()))["psnr_y"] == ""
    assert run("--data", "phone=phone", "--metrics", "psnr_y") == 2
    assert "phone has LR images alone, for which no metric is asked" in capsys.readouterr().err


def test_lr_images_can_be_made(here, capsys):
    for seed, name in enumerate("ab"):
        save_image(here / "photos" / f"{name}.png", photograph(seed, 203))
    how = ["--degrade", "blur=2,noise=10,jpeg=60", "--seed", "5", "--metrics", "psnr_y", "--json", "out.json"]
    assert run("--data", "photos=photos", *how) == 0
    content = results()
    hr = photograph(1, 203)[:200, :200].copy()
    lr = camera_like(hr, 4, name_seed("b 5"), 2, 10, 60)
    sr = np.array(Image.fromarray(lr).resize((200, 200), Image.Resampling.BICUBIC))
    a, b = (rgb2ycbcr(image)[4:-4, 4:-4, 0] for image in (sr, hr))
    expected = peak_signal_noise_ratio(a, b, data_range=255)
    assert by_image(content, BICUBIC)["b"]["psnr_y"] == pytest.approx(expected, abs=1e-6)
    assert content["data"]["photos"]["settings"]["degradation"]["noise_sigma"] == 10
    assert "photos: 2 originals made small, x4" in capsys.readouterr().out
    assert run("--data", "photos=pairs", *how) == 0  # the originals of pairs
    assert sorted(by_image(results(), BICUBIC)) == ["a", "b", "c"]
    assert run("--data", "photos=photos", "--degrade", "haze") == 2
    assert "--degrade haze:" in capsys.readouterr().err


def test_lpips_by_files(here, capsys):
    trunk, linear = lpips_files.write(here, "alex")
    lpips = ["--lpips_alex", str(trunk), str(linear), "--metrics", "psnr_y", "--json", "out.json"]
    assert run("--data", "mine=pairs", *lpips) == 0
    content = results()
    lr, hr = (np.array(Image.open(f"pairs/{kind}/a.png")) for kind in ("LR", "HR"))
    sr = np.array(Image.fromarray(lr).resize(hr.shape[1::-1], Image.Resampling.BICUBIC))
    a, b = (torch.from_numpy(image).permute(2, 0, 1)[None].float() for image in (sr, hr))
    expected = lpips_files.distance("alex", a, b).item()
    assert by_image(content, BICUBIC)["a"]["lpips_alex"] == pytest.approx(expected, rel=1e-4)
    assert content["data"]["mine"]["settings"]["metrics"]["lpips_alex"]["version"] == "0.1"
    assert "Of LPIPS alex lower is better." in capsys.readouterr().out
    assert run("--data", "mine=pairs", "--lpips_vgg", "none.pth", str(linear)) == 2
    assert "LPIPS (vgg): no file none.pth; wanted is torchvision's file of vgg16" in capsys.readouterr().err


def test_misaligned_pairs_are_named(here, capsys):
    hr = np.array(Image.open("pairs/HR/a.png"))
    save_image(here / "pairs" / "LR" / "a.png", camera_like(np.roll(hr, 5, axis=1), 4, 0))
    save_image(here / "pairs" / "LR" / "c.png", camera_like(original(9, *SIZES["c"]), 4, 0))
    assert run("--data", "mine=pairs", "--metrics", "psnr_y", "--json", "out.json") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("misaligned"))
    assert re.search(r"a \([+-]0\.\d down, \+[45]\.\d right\)", line)
    assert "c (not the same scene" in line
    assert "b (" not in line
    assert [text[0] for text in results()["data"]["mine"]["misaligned"]] == ["a", "c"]


def test_identical_images_are_left_out_of_the_mean(here, capsys):
    hr = np.full((192, 192, 3), 90, np.uint8)
    save_image(here / "pairs" / "HR" / "flat.png", hr)
    save_image(here / "pairs" / "LR" / "flat.png", hr[::4, ::4])
    assert run("--data", "mine=pairs", "--json", "out.json") == 0
    content = results()
    found = by_image(content, BICUBIC)
    assert (found["flat"]["psnr_y"], found["flat"]["niqe"]) == (None, None)
    mean = sum(found[name]["psnr_y"] for name in SIZES) / 3
    assert content["means"]["mine"][BICUBIC]["psnr_y"] == pytest.approx(mean, abs=1e-9)
    printed = capsys.readouterr().out
    assert f"left out of the mean, with no finite PSNR-Y: flat ({BICUBIC})\n" in printed


def test_what_cannot_be_measured_is_named_and_the_rest_is(here, capsys):
    path = here / "pairs" / "LR" / "b.png"
    path.write_bytes(path.read_bytes()[:-600])  # its header is whole
    bad = build_generator("compact", 4, features=8, convs=1)
    torch.nn.init.constant_(bad.body[0].weight, float("nan"))
    save_model(bad, here / "two.safetensors")
    assert run("--data", "mine=pairs", "--json", "out.json") == 1
    errors = capsys.readouterr().err.splitlines()
    assert any(line.startswith("failed: mine: ") and "b.png" in line for line in errors)
    assert "failed: mine: a: two: the model's output is not finite" in errors
    content = results()
    assert sorted(by_image(content, "one")) == ["a", "c"]
    assert by_image(content, "two") == {}
    assert len(content["failures"]) == 3


def test_the_sheet_shows_the_largest_differences(here):
    for seed in range(3, 9):
        hr = original(seed, 224, 224)
        save_image(here / "pairs" / "HR" / f"{seed}.png", hr)
        save_image(here / "pairs" / "LR" / f"{seed}.png", camera_like(hr, 4, seed))
    arguments = ["--data", "mine=pairs", "--metrics", "psnr_y", "--json", "out.json", "--sheet", "sheet.png"]
    assert run(*arguments) == 0
    content = results()
    one, two = (by_image(content, model) for model in ("one", "two"))
    first = max(one, key=lambda name: abs(one[name]["psnr_y"] - two[name]["psnr_y"]))
    sheet = np.array(Image.open("sheet.png"))
    assert sheet.shape[1] == 4 * (192 + 4) + 4
    assert sheet.shape[0] > 6 * 192
    # The original's crop stands in the last column of the first line, and in that image.
    crop = sheet[22:214, 3 * 196 + 4 : 3 * 196 + 196]
    hr = np.array(Image.open(f"pairs/HR/{first}.png"))
    places = [
        (top, left)
        for top in range(0, hr.shape[0] - 191, 4)
        for left in range(0, hr.shape[1] - 191, 4)
        if np.array_equal(hr[top : top + 192, left : left + 192], crop)
    ]
    assert len(places) == 1
    assert run(*arguments, "--between", "two", BICUBIC) == 0
    assert not np.array_equal(np.array(Image.open("sheet.png")), sheet)


def test_titles_can_be_given(here):
    Path("run").mkdir()
    Path("one.safetensors").rename("run/model.safetensors")
    models = ["--model", "run/model.safetensors", "mine=two.safetensors"]
    assert evaluate.main(["--device", "cpu", *models, "--data", "x=pairs", "--json", "out.json"]) == 0
    assert list(results()["models"]) == [BICUBIC, "run", "mine"]


def test_pairs_of_rounded_sizes_are_cut_and_that_is_said(here, capsys):
    for name, size in (("exact", (192, 196)), ("rounded", (194, 199))):
        for scene in ("a", "b"):
            lr = camera_like(original(0, 192, 196), 4, 0)
            save_image(here / name / "HR" / f"{scene}.png", original(0, *(size if scene == "a" else (192, 196))))
            save_image(here / name / "LR" / f"{scene}.png", lr)
    assert run("--data", "exact=exact", "rounded=rounded", "--json", "out.json") == 0
    said = capsys.readouterr().out.split("rounded: 2 pairs")
    assert "1 of 2 pairs cut at the bottom and right, so that HR is 4 times LR" in said[1]
    assert "are cut" not in said[0]
    content = results()
    assert content["means"]["exact"] == content["means"]["rounded"]
    assert [content["data"][name]["cut"] for name in ("exact", "rounded")] == [0, 1]


def test_hr_images_are_not_enlarged_as_if_they_were_lr(here, restored, capsys):
    save_image(here / "DIV2K_valid_HR" / "1.png", original(0, 192, 192))
    assert run("--data", "x=DIV2K_valid_HR") == 2
    assert "HR images, as the folder's name says, which are not to be enlarged" in capsys.readouterr().err
    assert run("--data", "x=.", "--metrics", "psnr_y") == 2
    assert "DIV2K_valid_HR/1.png does not lie in pairs; give that folder" in capsys.readouterr().err
    assert restored == []
    assert run("--data", "x=DIV2K_valid_HR", "--degrade", "bicubic", "--metrics", "psnr_y") == 0


def test_files_that_are_not_read_are_named(here, capsys):
    (here / "pairs" / "HR" / "i.gif").write_bytes(b"")
    assert run("--data", "x=pairs", "--metrics", "psnr_y") == 0
    assert capsys.readouterr().err.endswith("x: passed over: 1 of a format that is not read (i.gif)\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "pairs"], "--data pairs: give NAME=DIR"),
        (["--data", "x=none"], "none: no such folder"),
        (["--data", "x=pairs", "x=pairs"], "x is another data set's name"),
        (["--data", "x=."], ".: holds several data sets; give one of broken, pairs, small"),
        (["--data", "x=pairs", "--model", "none.pth"], "none.pth: no such file"),
        (["--data", "x=pairs", "--model", "one.safetensors", "./one.safetensors"], "two models have the title one"),
        (["--data", "x=pairs", "--model", "one.safetensors", "x2.safetensors"], "models of one scale are compared"),
        (["--data", "x=pairs", "--json", "out.txt"], "--json out.txt: give a .json file"),
        (["--data", "x=pairs", "--sheet", "out.jpg"], "--sheet out.jpg: give a .png file"),
        (
            ["--data", "x=pairs", "--between", "one", "three"],
            "no model 'three'; there are bicubic interpolation, one, two",
        ),
        (["--data", "x=pairs", "--between", "one", "one"], "give two different ones"),
        (["--data", "x=pairs", "--tile", "-1"], "must not be negative"),
        (["--data", "x=pairs", "--niqe_model", "none.npz"], "none.npz: no such file"),
        (["--data", "x=small"], "x: too small for niqe: s (96 x 96); leave them or the metric out"),
        (["--data", "x=broken"], "without a partner: LR/lonely"),
    ],
)
def test_nothing_is_begun(here, restored, capsys, arguments, message):
    save_model(build_generator("compact", 2, features=8, convs=1), here / "x2.safetensors")
    save_image(here / "small" / "HR" / "s.png", photograph(0, 96))
    save_image(here / "small" / "LR" / "s.png", photograph(0, 24))
    save_image(here / "broken" / "HR" / "s.png", photograph(0, 96))
    save_image(here / "broken" / "LR" / "s.png", photograph(0, 24))
    save_image(here / "broken" / "LR" / "lonely.png", photograph(0, 24))
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not restored
    assert not Path("runs").exists()


def test_a_damaged_record_is_named(here, restored, capsys):
    Path("kept").mkdir()
    Path("kept/images.jsonl").write_text("{}\n")
    assert run("--data", "mine=pairs", "--run_dir", "kept") == 2
    assert "images.jsonl: line 1 is damaged" in capsys.readouterr().err
    assert not restored
