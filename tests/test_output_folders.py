"""Folders that results cannot be written to: every command says so before it does any work."""

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from andfast import degrade, evaluate, plot, robustness, train, upscale
from andfast.pretrained import DEFAULT, FOLDER
from andfast.utils.files import make_folder
from bench import attack_quality

MODEL = str(FOLDER / f"{DEFAULT}.safetensors")
COMMANDS = {
    "upscale": lambda images, to: upscale.main([images, "--output", to]),
    "degrade": lambda images, to: degrade.main([images, "--identity", "--output", to]),
    "degrade, sheet": lambda images, to: degrade.main(
        [images, "--identity", "--output", f"{images}/../pairs", "--sheet", f"{to}/a.png"]
    ),
    "evaluate": lambda images, to: evaluate.main(["--data", f"a={images}", "--metrics", "niqe", "--run_dir", to]),
    "evaluate, csv": lambda images, to: evaluate.main(
        ["--data", f"a={images}", "--metrics", "niqe", "--run_dir", f"{images}/../kept", "--csv", f"{to}/a.csv"]
    ),
    "robustness": lambda images, to: robustness.main(["--data.hr", images, "--output", to]),
    "train": lambda images, to: train.main(
        [f"--run_dir={to}", f"--data.hr={images}", "--device=cpu", "--train.patch_size=32", "--generator.features=8"]
    ),
    "attack_quality": lambda images, to: attack_quality.main(
        ["--model", MODEL, f"--data.hr={images}", "--output", to, "--device=cpu", "--patch_size=32"]
    ),
}


@pytest.fixture
def images(tmp_path: Path) -> str:
    (tmp_path / "in").mkdir()
    for name in "abcd":
        Image.effect_noise((96, 96), 60).convert("RGB").save(tmp_path / "in" / f"{name}.png")
    return str(tmp_path / "in")


@pytest.fixture
def wrong(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wrong"
    if request.param == "refused":
        folder.mkdir()
        opened = os.open

        def refuse(path: str | Path, flags: int, *rest: int, **named: int) -> int:
            if flags & os.O_CREAT and Path(path).parent == folder:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return opened(path, flags, *rest, **named)

        monkeypatch.setattr(os, "open", refuse)
    elif request.param == "dangling link":
        folder.symlink_to(tmp_path / "nowhere")
    else:
        folder.touch()
        folder = folder / "below" if request.param == "below a file" else folder
    return folder


@pytest.mark.parametrize("wrong", ["file", "dangling link", "refused", "below a file"], indirect=True)
def test_such_a_folder_is_named(wrong: Path) -> None:
    with pytest.raises(OSError, match=r"Not a directory|a link that leads nowhere|Permission denied") as error:
        make_folder(wrong)
    assert error.value.filename == str(wrong)


@pytest.mark.parametrize("wrong", ["refused", "below a file"], indirect=True)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_nothing_is_begun(command, images: str, wrong: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(images, str(wrong)) == 2
    said = capsys.readouterr().err
    assert "error: " in said
    assert str(wrong) in said


def test_a_link_to_a_folder_is_one(images: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make_folder(tmp_path / "link")
    assert not list((tmp_path / "real").iterdir())
    assert upscale.main([images, "--output", str(tmp_path / "link")]) == 0
    assert len(list((tmp_path / "real").iterdir())) == 4


def test_results_that_are_all_there_need_no_room(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert upscale.main([images, "--output", str(tmp_path / "out")]) == 0
    monkeypatch.setattr("andfast.utils.files._new_file", lambda path: 1 / 0)
    assert upscale.main([images, "--output", str(tmp_path / "out")]) == 0


def test_plots_say_where_they_could_not_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "gain": 1.0}\n')
    (tmp_path / "file").touch()
    assert plot.main([str(tmp_path), "--output", str(tmp_path / "file" / "a.png")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
