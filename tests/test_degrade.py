"""The command that makes LR images of HR images, for other trainers."""

import re
import runpy
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from study_images import photograph

from andfast import degrade
from andfast.data.images import read_image
from andfast.data.pairs import find_pairs
from andfast.data.tensors import to_tensor
from andfast.models import build_generator, save_model
from andfast.ops.blur_pool import blur_pool
from andfast.pretrained import FOLDER
from andfast.training import memory_check

SMALL = ["--degradation.channels", "8", "--degradation.blocks", "2", "--attack.steps", "1", "--device", "cpu"]
LENS = ["--attack.lens.blur", "[2, 3]", "--attack.lens.sharpen", "[1, 1]"]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(build_generator("compact", 4, features=8, convs=1), path)
    return path


@pytest.fixture
def hr(tmp_path):
    """Two images whose sizes are multiples of 4, and one, in a sub-folder, whose size is not."""
    folder = tmp_path / "hr"
    for name, seed, (height, width) in (("a", 0, (32, 48)), ("b", 1, (40, 40)), ("sub/c", 2, (39, 47))):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(seed, size=48)[:height, :width]).save(path)
    return folder


@pytest.fixture
def run(tmp_path, model_file):
    def run(*arguments, output="out", model=model_file):
        given = [str(argument) for argument in arguments]
        return degrade.main([*given, "--output", str(tmp_path / output), "--model", str(model), *SMALL])

    return run


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def images(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def distance(folder, pair):
    hr, lr = to_tensor(read_image(pair.hr)).double(), to_tensor(read_image(pair.lr)).double()
    return -10 * (lr - blur_pool(hr, hr.shape[2] // lr.shape[2])).square().mean().log10().item()


def test_pairs_of_a_folder(tmp_path, hr, run, capsys):
    assert run(hr, "--attack.psnr_range", "[28, 28]") == 0
    out = tmp_path / "out"
    names = ["a.png", "b.png", "sub/c.png"]
    assert files(out) == sorted(
        ["degrade.yaml", "lock", *(f"{half}/{name}" for half in ("HR", "LR") for name in names)]
    )
    pairs = find_pairs(out, 4)  # refuses what does not fit
    assert [pair.name for pair in pairs] == ["a", "b", "sub/c"]
    for pair in pairs:
        source = read_image(hr / f"{pair.name}.png")
        height, width = source.shape[0] // 4 * 4, source.shape[1] // 4 * 4
        assert np.array_equal(read_image(pair.hr), source[:height, :width])
        # Rounding to 8 bits is 58.9 dB, so next to nothing beside the budget.
        assert 27.9 < distance(out, pair) < 29.1
    told = capsys.readouterr().out
    assert "3 of 3 images degraded" in told
    assert "cropped: 1 HR image to multiples of 4" in told


def test_lr_images_beside_hr_images_are_passed_over(tmp_path, hr, run, capsys):
    root = tmp_path / "set"
    for folder in ("S_HR", "S_LR_bicubic/X4"):
        (root / folder).mkdir(parents=True)
        (root / folder / "a.png").write_bytes((hr / "a.png").read_bytes())
    assert run(root, "--identity", model="none") == 0
    assert [path.name for path in (tmp_path / "out" / "HR").iterdir()] == ["S_HR"]
    assert "passed over: 1 of LR images, beside S_HR (a.png)" in "".join(capsys.readouterr())
    assert run(root / "S_LR_bicubic", "--identity", output="other", model="none") == 0


@pytest.mark.parametrize("options", [[], LENS])
def test_the_identity_pools_behind_the_lens(tmp_path, hr, run, options):
    assert run(hr, "--identity", *options, model="none") == 0
    for pair in find_pairs(tmp_path / "out", 4):
        assert distance(tmp_path / "out", pair) < 40 if options else distance(tmp_path / "out", pair) > 58


@pytest.mark.parametrize(
    "method", ["random", "noise", "none", "bsrgan", "real_esrgan", "style", "yopo", "free", "subset"]
)
def test_all_methods(tmp_path, hr, run, method):
    assert run(hr / "a.png", "--attack.method", method, "--degradation.num_networks", 1) == 0
    (pair,) = find_pairs(tmp_path / "out", 4)
    assert 3 < distance(tmp_path / "out", pair) < 60


def test_random_deviations_need_no_model(tmp_path, hr, run):
    """And so have all scales."""
    assert run(hr / "b.png", "--attack.method", "random", "--scale", 3, model="none") == 0
    assert read_image(tmp_path / "out" / "LR" / "b.png").shape == (13, 13, 3)
    assert read_image(tmp_path / "out" / "HR" / "b.png").shape == (39, 39, 3)


def test_the_adversary_is_worse_than_a_random_deviation(tmp_path, hr, run, model_file):
    """Of the same strength, by the loss of the model that it attacks, on the files."""
    from andfast.models import load_model

    model, losses = load_model(model_file), {}
    for method in ("pgd", "random"):
        budget = ["--attack.psnr_range", "[26, 26]", "--attack.epsilon", 5, "--attack.step_ratio", 1]
        assert run(hr, "--attack.method", method, *budget, output=method) == 0
        pairs = find_pairs(tmp_path / method, 4)
        with torch.no_grad():
            losses[method] = [
                (model(to_tensor(read_image(pair.lr))) - to_tensor(read_image(pair.hr))).abs().mean().item()
                for pair in pairs
            ]
    assert sum(losses["pgd"]) > 1.02 * sum(losses["random"])


def test_the_seed_and_the_name_decide_and_nothing_else(tmp_path, hr, run):
    assert run(hr) == 0
    assert run(hr, output="again") == 0
    assert images(tmp_path / "again") == images(tmp_path / "out")
    assert run(hr / "b.png", output="one") == 0
    assert images(tmp_path / "one" / "LR")["b.png"] == images(tmp_path / "out" / "LR")["b.png"]
    assert run(hr, "--seed", 1, output="other") == 0
    other, first = images(tmp_path / "other" / "LR"), images(tmp_path / "out" / "LR")
    assert all(other[name] != first[name] for name in first)


def test_a_run_s_configuration(tmp_path, hr, run):
    """All that is in it is known, and its attack taken."""
    assert run(hr / "a.png", "--config", FOLDER / "andnet_compact_x4.yaml") == 0
    record = yaml.safe_load((tmp_path / "out" / "degrade.yaml").read_text())
    assert record["attack"]["lens"]["blur"] == [2.0, 4.0]
    assert record["attack"]["psnr_range"] == [24.0, 46.0]
    assert record["attack"]["steps"] == 1


def test_settings_that_do_not_count_cannot_be_wrong(tmp_path, hr, run):
    """As they are in the file of a run that had another scale, or batches that mix and share."""
    (tmp_path / "c.yaml").write_text(
        "scale: 4\ntrain: {patch_size: 66, batch_size: 6, micro_batch: 4}\n"
        "attack: {mix: {share: 0.9}}\ndegradation: {num_networks: 5}\n"
    )
    assert run(hr / "a.png", "--config", tmp_path / "c.yaml") == 0


@pytest.mark.parametrize("output", ["hr", "hr/pairs"])
def test_it_goes_on_in_a_folder_of_the_inputs(tmp_path, hr, run, output, capsys):
    sheet = ["--sheet", hr / "pairs" / "sheet.png"] if output == "hr/pairs" else []
    (hr / "pairs").mkdir()
    (hr / "i.gif").write_bytes(b"")
    before = files(hr)
    for said in ("3 of 3 images degraded", "3 of 3 images degraded"):
        assert run(hr, "--identity", *sheet, model="none", output=output) == 0
        message = capsys.readouterr()
        assert said in message.out
        assert message.err.splitlines()[-1] == "passed over: 1 of a format that is not read (i.gif)"
    assert "3 of them before" in message.out
    made = {f"{half}/{name}" for half in ("HR", "LR") for name in ("a.png", "b.png", "sub/c.png")}
    made |= {"degrade.yaml", "lock"}
    assert set(files(tmp_path / output)) - set(before) - {"sheet.png"} == made


def test_it_goes_on_where_it_was_interrupted(tmp_path, hr, run, capsys, monkeypatch):
    assert run(hr, output="whole") == 0
    write, written = degrade.write_png, []

    def interrupted(path, image):
        if len(written) == 3:  # the second image's LR
            raise KeyboardInterrupt
        written.append(path)
        write(path, image)

    monkeypatch.setattr(degrade, "write_png", interrupted)
    assert run(hr) == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(degrade, "write_png", write)
    left = tmp_path / "out" / "LR" / ".b-unfinished-abcdefgh.png"
    left.write_bytes(b"x")
    first = (tmp_path / "out" / "LR" / "a.png").stat().st_mtime_ns
    assert run(hr) == 0
    assert "3 of 3 images degraded" in (told := capsys.readouterr().out)
    assert "1 of them before" in told
    assert (tmp_path / "out" / "LR" / "a.png").stat().st_mtime_ns == first
    assert images(tmp_path / "out") == images(tmp_path / "whole")
    assert not left.exists()


def test_other_settings_want_another_folder(tmp_path, hr, run, capsys):
    assert run(hr / "a.png") == 0
    before = images(tmp_path / "out")
    assert run(hr, "--attack.psnr_range", "[30, 40]", "--seed", 3) == 2
    told = capsys.readouterr().err
    assert "seed: 3, then 0" in told
    assert "attack.psnr_range: [30.0, 40.0], then [22.0, 36.0]" in told
    assert images(tmp_path / "out") == before
    (tmp_path / "out" / "degrade.yaml").write_text("- 1")
    assert run(hr) == 2
    assert "not a record" in capsys.readouterr().err


def test_a_folder_from_before_a_setting_existed(tmp_path, hr, run):
    assert run(hr) == 0
    record = tmp_path / "out" / "degrade.yaml"
    settings = yaml.safe_load(record.read_text())
    del settings["attack"]["noise_every"], settings["attack"]["baseline"]
    record.write_text(yaml.safe_dump(settings))
    assert run(hr) == 0


def test_one_bad_file_does_not_stop_the_others(tmp_path, hr, run, capsys):
    (hr / "b.png").write_bytes((hr / "b.png").read_bytes()[:80])
    Image.fromarray(photograph(3, size=48)[:7, :40]).save(hr / "flat.png")
    assert run(hr) == 1
    told = capsys.readouterr()
    assert "2 of 4 images degraded" in told.out
    assert "2 failed" in told.out
    assert len(told.err.splitlines()) == 2
    assert "b.png" in told.err
    assert re.search(r"flat\.png: smaller than 8 x 8", told.err)
    assert files(tmp_path / "out" / "LR") == files(tmp_path / "out" / "HR") == ["a.png", "sub/c.png"]


def test_what_does_not_fit_into_memory_is_said_and_can_be_cropped(tmp_path, hr, run, capsys, monkeypatch):
    monkeypatch.setattr(memory_check, "free_memory", lambda device: 3 * 2**20)
    Image.fromarray(np.tile(photograph(3, size=48), (8, 8, 1))).save(hr / "large.png")
    assert run(hr) == 1
    told = capsys.readouterr()
    assert re.search(r"large\.png: out of memory \(needs about \S+ GiB of 0.0 GiB free\); try --crop", told.err)
    assert "3 of 4" in told.out
    assert run(hr, "--crop", 34, output="cropped") == 0
    assert "cropped: 4 HR images to their middle, 34 at most" in capsys.readouterr().out
    assert read_image(tmp_path / "cropped" / "HR" / "large.png").shape == (32, 32, 3)
    whole = read_image(hr / "b.png")
    assert np.array_equal(read_image(tmp_path / "cropped" / "HR" / "b.png"), whole[3:35, 3:35])


def test_the_sheet(tmp_path, hr, run, capsys):
    sheet = tmp_path / "sheets" / "s.png"
    assert run(hr, "--sheet", sheet, *LENS) == 0
    # The smallest image has 32 x 48 pixels; HR, clean, lens, attacked, three parts, two restorations.
    assert read_image(sheet).shape == (3 * 36 + 22, 9 * 36 + 4, 3)
    first = sheet.read_bytes()
    sheet.unlink()
    assert run(hr, "--sheet", sheet, *LENS) == 0  # though all pairs are there already
    assert sheet.read_bytes() == first
    cell = read_image(sheet)[22 : 22 + 32, 4 : 4 + 32]
    assert np.array_equal(cell, read_image(hr / "a.png")[:, 8:40])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{hr}/none.png"], "none.png: no such file or folder"),
        (["{hr}", "--output", "{hr}/a.png"], "not a folder"),
        (["{tmp}/pairs/HR", "--output", "{tmp}/pairs"], "lies in --output"),
        (["{hr}", "--model", "nothing.pth"], "nothing.pth: no such file"),
        (["{hr}", "--scale", "2"], "has the scale 4; give --scale 4"),
        (["{hr}", "--attack.method", "pairs", "--attack.mix.pairs", "x"], "degrades no images"),
        (["{hr}", "--attack.method", "bsrgan", "--identity"], "has no networks for --identity"),
        (["{hr}", "--crop", "7"], "--crop is 7; it must be at least 8"),
        (["{hr}", "--sheet", "s.jpg"], "a sheet is a .png file"),
        (["{hr}", "--device", "cuda"], "no CUDA device"),
    ],
)
def test_nothing_is_begun(tmp_path, hr, model_file, capsys, monkeypatch, arguments, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "pairs" / "HR").mkdir(parents=True)
    Image.fromarray(photograph(0, size=48)).save(tmp_path / "pairs" / "HR" / "x.png")
    before = sorted(tmp_path.rglob("*"))
    given = [argument.format(tmp=tmp_path, hr=hr) for argument in arguments]
    first, more = given[:1], given[1:]
    assert degrade.main([*first, "--output", str(tmp_path / "out"), "--model", str(model_file), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("wrong", [["--attack.stps", "3"], ["--attack.psnr_range", "[40, 30]"], ["--crop", "0"]])
def test_wrong_settings(tmp_path, hr, capsys, wrong):
    code = None
    try:
        code = degrade.main([str(hr), "--output", str(tmp_path / "out"), *wrong])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert wrong[0].removeprefix("--").split(".")[-1] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_as_a_script(tmp_path, hr, model_file, capfd, monkeypatch):
    command = [degrade.__file__, str(hr / "a.png"), "--output", str(tmp_path / "out"), "--model", str(model_file)]
    monkeypatch.setattr(sys, "argv", [*command, *SMALL])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(degrade.__file__, run_name="__main__")
    printed = capfd.readouterr()
    assert (end.value.code, printed.err) == (0, "")
    assert "1 of 1 image degraded" in printed.out
