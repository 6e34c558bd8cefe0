"""The split of real pairs, and folders of one part."""

import pytest
from study_images import write_pairs

from andfast.data.images import DataError
from andfast.data.pairs import find_pairs
from studies.testsets import camera_of, link_pairs, split_pairs


@pytest.mark.parametrize(
    ("name", "camera"),
    [
        ("realsr_Canon_001", "realsr_Canon"),
        ("ntire19_cam1_010", "ntire19_cam1"),
        ("city100_iPhoneX_015", "city100_iPhoneX"),
        ("Nikon/007", "Nikon"),
        ("postcard", "postcard"),
        ("0042", ""),
    ],
)
def test_a_camera_is_what_stands_before_the_number(name, camera):
    assert camera_of(name) == camera


def test_every_second_pair_is_for_reporting():
    tuning, reporting = split_pairs(list("abcde"))
    assert (tuning, reporting) == (["a", "c", "e"], ["b", "d"])


def test_linked_pairs_are_found_again(tmp_path):
    source = write_pairs(tmp_path / "source", [f"cam_{index}" for index in range(4)])
    tuning, reporting = split_pairs(find_pairs(source, 4))
    for _ in range(2):  # the second time all is there
        link_pairs(tuning, tmp_path / "tuning")
    found = find_pairs(tmp_path / "tuning", 4)
    assert [pair.name for pair in found] == ["cam_0", "cam_2"]
    assert all(
        one.lr.read_bytes() == other.lr.read_bytes() and one.hr.samefile(other.hr)
        for one, other in zip(found, tuning, strict=True)
    )
    with pytest.raises(DataError, match="holds others"):
        link_pairs(reporting, tmp_path / "tuning")
    with pytest.raises(DataError, match="same name"):
        link_pairs([*tuning, tuning[0]], tmp_path / "other")
    replaced = tmp_path / "tuning" / "LR" / "cam_0.png"
    replaced.unlink()
    replaced.write_bytes(tuning[1].lr.read_bytes())
    with pytest.raises(DataError, match="not a link"):
        link_pairs(tuning, tmp_path / "tuning")
