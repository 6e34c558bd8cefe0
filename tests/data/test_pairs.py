"""Pairs of HR and LR files: found by name, and refused by name."""

import numpy as np
import pytest
from PIL import Image

from andfast.data.pairs import find_pairs


def save(path, height, width):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "HR" / "b.png", 12, 16)
    save(tmp_path / "LR" / "b.jpg", 3, 4)
    save(tmp_path / "HR" / "a" / "x.png", 8, 8)
    save(tmp_path / "LR" / "a" / "x.png", 2, 2)
    return tmp_path


def test_pairs_are_found_by_name(folder):
    pairs = find_pairs(folder, 4)
    assert [pair.name for pair in pairs] == ["a/x", "b"]
    assert pairs[1].hr == folder / "HR" / "b.png"
    assert pairs[1].lr == folder / "LR" / "b.jpg"


def test_another_scale_is_refused(folder):
    with pytest.raises(ValueError, match=r"HR is not 2 times LR in: .*b \(HR 12 x 16, LR 3 x 4\)"):
        find_pairs(folder, 2)


def test_a_pair_of_wrong_size_is_named(folder):
    save(folder / "HR" / "b.png", 16, 16)
    with pytest.raises(ValueError, match=r"in: b \(HR 16 x 16, LR 3 x 4\)$"):
        find_pairs(folder, 4)


def test_images_without_a_partner_are_named(folder):
    save(folder / "HR" / "alone.png", 4, 4)
    save(folder / "LR" / "lonely.png", 1, 1)
    with pytest.raises(ValueError, match=r"without a partner: HR/alone, LR/lonely$"):
        find_pairs(folder, 4)


def test_two_files_of_one_name_are_refused(folder):
    save(folder / "LR" / "b.png", 3, 4)
    with pytest.raises(ValueError, match=r"b\.jpg and b\.png have the same name"):
        find_pairs(folder, 4)


def test_an_unreadable_image_is_named(folder):
    (folder / "LR" / "b.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.jpg: not an image"):
        find_pairs(folder, 4)


def test_folders_without_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds HR/ and LR/"):
        find_pairs(tmp_path, 4)
    (tmp_path / "HR").mkdir()
    (tmp_path / "LR").mkdir()
    with pytest.raises(ValueError, match="no images"):
        find_pairs(tmp_path, 4)
