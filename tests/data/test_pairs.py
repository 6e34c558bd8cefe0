"""Pairs of HR and LR files: found by name, and refused by name."""

import numpy as np
import pytest
from PIL import Image

from andfast.data.paired_folders import scene_name
from andfast.data.pairs import common_size, find_pairs, fitted, read_pair


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


def test_a_folder_around_them_may_be_given(folder):
    (folder / "HR").rename(folder / "GTmod12")
    (folder / "LR").rename(folder / "LRbicx4")
    around = folder.parent / "benchmark"
    around.mkdir()
    folder.rename(around / "Set5")
    assert [pair.name for pair in find_pairs(around, 4)] == ["a/x", "b"]


def test_another_scale_is_refused(folder):
    with pytest.raises(ValueError, match=r"HR is not 2 times LR in: .*b \(HR 12 x 16, LR 3 x 4\)"):
        find_pairs(folder, 2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"HR/b.png": (16, 16)}, r"in: b \(HR 16 x 16, LR 3 x 4\)$"),
        ({"HR/alone.png": (4, 4), "LR/lonely.png": (1, 1)}, "without a partner: HR/alone, LR/lonely$"),
        ({"LR/b.png": (3, 4)}, r"b\.jpg and b\.png have the same name"),
    ],
)
def test_what_is_no_pair_is_named(folder, sizes, message):
    for name, size in sizes.items():
        save(folder / name, *size)
    with pytest.raises(ValueError, match=message):
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


@pytest.mark.parametrize(
    ("hr", "lr", "size"),
    [
        ((66, 65), (16, 16), (16, 16)),  # rounded down
        ((66, 65), (17, 17), (16, 16)),  # rounded up
        ((67, 64), (17, 16), (16, 16)),
        ((64, 64), (16, 16), (16, 16)),
        ((68, 64), (16, 16), None),
        ((60, 64), (16, 16), None),
        ((3, 64), (1, 16), None),
    ],
)
def test_what_both_images_of_a_pair_show(hr, lr, size):
    assert common_size(hr, lr, 4) == size
    images = [np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in (hr, lr)]
    if size is None:
        with pytest.raises(ValueError, match="is not 4 times LR"):
            fitted(*images, 4)
        return
    cut = fitted(*images, 4)
    assert [image.shape[:2] for image in cut] == [(4 * size[0], 4 * size[1]), size]
    for image, whole in zip(cut, images, strict=True):
        assert (image == whole[: len(image), : image.shape[1]]).all()


def test_rounded_sizes_are_a_pair_that_is_cut(folder):
    save(folder / "HR" / "b.png", 13, 19)
    assert [(pair.name, pair.cut) for pair in find_pairs(folder, 4)] == [("a/x", False), ("b", True)]
    hr, lr = read_pair(folder / "HR" / "b.png", folder / "LR" / "b.jpg", 4)
    assert (hr.shape, lr.shape) == ((12, 16, 3), (3, 4, 3))


@pytest.mark.parametrize(
    ("name", "scene"),
    [
        ("0801x4", "0801"),
        ("0801x4m", "0801"),
        ("0801x4w2", "0801"),
        ("a/baby_LRBI_x4", "a/baby"),
        ("img_001_SRF_4_HR", "img_001"),
        ("Baby-x2", "baby"),
        ("comic_LR4", "comic"),
        ("x4", "x4"),
        ("img_001", "img_001"),
        ("1x10", "1x10"),
    ],
)
def test_names_of_scenes(name, scene):
    assert scene_name(name) == scene
