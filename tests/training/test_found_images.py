"""Which images a run finds: few of them, pairs by other names, and what it says of the rest."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from andfast.data.images import DataError
from andfast.training.images import Images, Skipped, find_images
from andfast.training.options import parse_config


def save(path: Path, height: int = 64, width: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)


def found(**options: Any) -> Images:
    given = [text for key, value in options.items() for text in (f"--{key.replace('__', '.')}", str(value))]
    return find_images(parse_config(["--train.patch_size", "32", *given]), Skipped())


def test_a_single_image_says_what_to_validate_on(tmp_path: Path) -> None:
    save(tmp_path / "hr" / "a.png")
    for folder in (tmp_path / "hr", tmp_path / "hr" / "a.png"):
        with pytest.raises(DataError, match=r"one usable image, .* as data\.val_hr, or the same"):
            found(data__hr=folder)
        images = found(data__hr=folder, data__val_hr=tmp_path / "hr")
        assert (len(images.sources), len(images.held_out)) == (1, 1)


@pytest.mark.parametrize("count", [2, 3])
def test_of_few_images_one_is_held_out(tmp_path: Path, count: int) -> None:
    for index in range(count):
        save(tmp_path / f"{index}.png")
    (tmp_path / "again.png").symlink_to(tmp_path / "0.png")  # is not trained on and held out both
    images = found(data__hr=tmp_path)
    assert (len(images.sources), len(images.held_out)) == (count - 1, 1)


def test_images_that_are_all_too_small_are_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 31, 64)
    with pytest.raises(DataError, match=r"no usable image in: .*32 x 32 pixels or more.*a\.png: 31 x 64 pixels"):
        found(data__hr=tmp_path)


def test_what_is_passed_over_and_cut_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(2):
        save(tmp_path / "hr" / f"{index}.png")
        save(tmp_path / "set" / "GTmod12" / f"{index}.png", 64 + index)
        save(tmp_path / "set" / "LRbicx4" / f"{index}x4.png", 16, 16)
    for folder in ("hr", "set/GTmod12"):
        (tmp_path / folder / "i.gif").write_bytes(b"")
    images = found(data__hr=tmp_path / "hr", data__val_pairs=tmp_path / "set")
    assert [pair.name for pair in images.pairs] == ["0", "1"]
    assert capsys.readouterr().err.splitlines() == [
        "passed over: 1 of a format that is not read (i.gif)",
        f"{tmp_path / 'set'}: 1 of 2 pairs cut at the bottom and right, so that HR is 4 times LR",
        "passed over: 1 of a format that is not read (i.gif)",
    ]


def test_of_several_sets_of_pairs_one_is_given(tmp_path: Path) -> None:
    save(tmp_path / "hr" / "0.png")
    save(tmp_path / "hr" / "1.png")
    for kind in ("DIV2K_train", "DIV2K_valid"):
        save(tmp_path / f"{kind}_HR" / "1.png")
        save(tmp_path / f"{kind}_LR_bicubic" / "X4" / "1x4.png", 16, 16)
    with pytest.raises(DataError, match=r"DIV2K_train_HR, DIV2K_train_LR_bicubic.X4, DIV2K_valid_HR, .*; give the one"):
        found(data__hr=tmp_path / "hr", data__val_pairs=tmp_path)
    images = found(data__hr=tmp_path / "hr", data__val_pairs=tmp_path / "DIV2K_valid_LR_bicubic")
    assert images.pairs[0].hr == tmp_path / "DIV2K_valid_HR" / "1.png"


@pytest.mark.parametrize(
    ("hr", "lr", "told"),
    [
        ("DIV2K_train_HR", "DIV2K_train_LR_bicubic/X2", "2 of LR images, beside DIV2K_train_HR (0.png, 1.png)"),
        ("sets/a/GTmod12", "sets/a/LRbicx2", "2 of LR images, beside GTmod12 (0.png, 1.png)"),
        ("HR/Urban100", "LR/LRBI/Urban100", "2 of LR images, beside HR (0.png, 1.png)"),
        ("a_hr", "b_lr", None),  # which do not belong together
        ("more", "LR", None),
    ],
)
def test_lr_images_beside_hr_images_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hr: str, lr: str, told: str | None
) -> None:
    for index in range(2):
        save(tmp_path / hr / f"{index}.png", 128, 128)
        save(tmp_path / lr / f"{index}.png")
    images = found(data__hr=tmp_path, data__val_hr=tmp_path)
    assert len(images.sources) == len(images.held_out) == (4 if told is None else 2)
    assert capsys.readouterr().err.splitlines() == ([] if told is None else [f"passed over: {told}"] * 2)
    assert len(found(data__hr=tmp_path / lr, data__val_hr=tmp_path / hr).sources) == 2  # given by name


def test_each_image_belongs_to_the_first_folder_that_it_is_found_in(tmp_path: Path) -> None:
    for name in ("one/a.png", "one/b.png", "two/c.png", "two/d.png", "two/e.png"):
        save(tmp_path / name)
    (tmp_path / "two" / "again.png").symlink_to(tmp_path / "one" / "a.png")
    folders = f'["{tmp_path / "one"}", "{tmp_path / "two"}"]'
    images = found(data__hr=folders, data__weights="[1, 1]", data__val_hr=tmp_path / "one")
    by_name = {Path(source.name).name: folder for source, folder in zip(images.sources, images.folders, strict=True)}
    assert by_name == {"a.png": 0, "b.png": 0, "c.png": 1, "d.png": 1, "e.png": 1}


def test_a_weight_for_no_image_is_refused(tmp_path: Path) -> None:
    for name in ("one/a.png", "one/b.png", "two/note.txt"):
        save(tmp_path / name) if name.endswith("png") else (tmp_path / "two").mkdir()
    folders = f'["{tmp_path / "one"}", "{tmp_path / "two"}"]'
    with pytest.raises(DataError, match=r"two: no image to train on, and data\.weights has a weight for it"):
        found(data__hr=folders, data__weights="[1, 1]")
    assert len(found(data__hr=folders).sources) == 1
