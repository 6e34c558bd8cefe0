"""Benchmarks by their folders, as their authors arranged them: small ones are made here."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from andfast.data.benchmarks import find_benchmark, find_originals
from andfast.data.images import DataError


def save(folder: Path, **sizes: int) -> None:
    """Square images by their paths, in which two underscores stand for a slash and the suffix is left out."""
    for name, size in sizes.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(path)


def found(folder: Path, scale: int) -> tuple[str, dict[str, tuple[str, str]]]:
    """The layout, and by scene what stands where."""
    data = find_benchmark(folder, scale)
    assert [scene.name for scene in data.scenes] == sorted(scene.name for scene in data.scenes)
    return data.layout, {
        scene.name: tuple(path.relative_to(folder).as_posix() for path in (scene.hr, scene.lr)) for scene in data.scenes
    }


def realsr(folder: Path) -> Path:
    """RealSR (V3): HR beside LR, a folder each for camera, part and scale."""
    for camera in ("Canon", "Nikon"):
        for part in ("Train", "Test"):
            for scale in (2, 3, 4):
                place = folder / camera / part / str(scale)
                save(place, **{f"{camera}_{n:03}_HR": 24 for n in (1, 2)})
                save(place, **{f"{camera}_{n:03}_LR{scale}": 24 // scale for n in (1, 2)})
    return folder


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_realsr(tmp_path, scale):
    layout, scenes = found(realsr(tmp_path / "RealSR(V3)"), scale)
    assert layout == "RealSR"
    place = f"Canon/Test/{scale}/Canon_001"
    assert list(scenes) == [f"{camera}/Test/{scale}/{camera}_00{n}" for camera in ("Canon", "Nikon") for n in (1, 2)]
    assert scenes[place] == (f"{place}_HR.png", f"{place}_LR{scale}.png")
    _, around = found(tmp_path, scale)  # the folder around it does, too
    assert len(around) == 4
    _, inside = found(tmp_path / "RealSR(V3)" / "Nikon" / "Test" / str(scale), scale)
    assert list(inside) == ["Nikon_001", "Nikon_002"]


def test_drealsr(tmp_path):
    root = tmp_path / "DRealSR"
    for scale in (2, 3, 4):
        place = root / f"x{scale}" / f"Test_x{scale}" / f"Test_x{scale}"  # as the archives unpack
        save(place / "test_HR", **{f"Canon_10_x{scale}": 24, f"sony_7_x{scale}": 24})
        save(place / "test_LR", Canon_10_x1=24 // scale, sony_7_x1=24 // scale)
    layout, scenes = found(root, 4)
    assert layout == "DRealSR"
    place = "x4/Test_x4/Test_x4"
    assert scenes == {
        f"{place}/Canon_10": (f"{place}/test_HR/Canon_10_x4.png", f"{place}/test_LR/Canon_10_x1.png"),
        f"{place}/sony_7": (f"{place}/test_HR/sony_7_x4.png", f"{place}/test_LR/sony_7_x1.png"),
    }
    assert list(found(root / "x3" / "Test_x3" / "Test_x3", 3)[1]) == ["Canon_10", "sony_7"]
    save(tmp_path / "plain" / "test_HR", a=24)
    save(tmp_path / "plain" / "test_LR", a=6)
    assert found(tmp_path / "plain", 4) == ("DRealSR", {"a": ("test_HR/a.png", "test_LR/a.png")})


def test_super(tmp_path):
    root = tmp_path / "SupER"
    for scene in ("ball", "coffee"):
        place = root / scene / "global_translation_z_inlier"
        for binning in (1, 2, 3, 4):
            save(place / f"Bin{binning}", **{f"f{n:02}_bin{binning}": 24 // binning for n in (1, 2, 10)})
        save(place / "Bin4QP10", f01=6)  # compressed video
    layout, scenes = found(root, 4)
    assert layout == "SupER"
    place = "ball/global_translation_z_inlier"
    assert len(scenes) == 6
    assert scenes[f"{place}/f10_bin1"] == (f"{place}/Bin1/f10_bin1.png", f"{place}/Bin4/f10_bin4.png")
    (root / place / "Bin4" / "f02_bin4.png").unlink()
    with pytest.raises(DataError, match=r"ball/global_translation_z_inlier: 3 frames in Bin1/ and 2 in Bin4/"):
        find_benchmark(root, 4)


def test_pairs_of_one_size(tmp_path):
    save(tmp_path / "denoising", HR__a=24, LR__a=24)
    assert found(tmp_path / "denoising", 1) == ("pairs", {"a": ("HR/a.png", "LR/a.png")})
    save(tmp_path / "real", a_HR=24, a_LR=24)
    assert found(tmp_path / "real", 1) == ("RealSR", {"a": ("a_HR.png", "a_LR.png")})
    save(tmp_path / "lr", a=24, ax2=24, b=20)  # no one is the original of another
    assert len(find_benchmark(tmp_path / "lr", 1).scenes) == 3
    save(tmp_path / "SupER" / "scene" / "motion", Bin1__f=24, Bin2__f=12)
    with pytest.raises(DataError, match="as SupER it holds no images at scale 1"):
        find_benchmark(tmp_path / "SupER", 1)


def test_imagepairs(tmp_path):
    save(tmp_path / "ImagePairs_Test", **{"10": 12, "10_gt": 24, "9": 12, "9_gt": 24})
    save(tmp_path / "ImagePairs_Train", **{"1": 12, "1_gt": 24})
    layout, scenes = found(tmp_path, 2)
    assert layout == "ImagePairs"
    place = "ImagePairs_Test"
    assert list(scenes) == [f"{place}/10", f"{place}/9"]
    assert scenes[f"{place}/9"] == (f"{place}/9_gt.png", f"{place}/9.png")
    assert list(found(tmp_path / place, 2)[1]) == ["10", "9"]


def test_folders_of_pairs_and_of_lr_images(tmp_path):
    save(tmp_path / "pairs", HR__a=24, LR__a=6)
    assert found(tmp_path / "pairs", 4) == ("pairs", {"a": ("HR/a.png", "LR/a.png")})
    save(tmp_path / "alone", b=7, inside__a=6)
    data = find_benchmark(tmp_path / "alone", 4)
    assert data.layout == "LR"
    assert [(scene.name, scene.lr.name, scene.hr) for scene in data.scenes] == [
        ("b", "b.png", None),
        ("inside/a", "a.png", None),
    ]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"HR__a": 24, "LR__a": 6, "LR__b": 6}, "without a partner: LR/b$"),
        ({"HR__a": 24}, r"LR: no such folder"),
        ({"HR__a": 24, "LR__a": 12}, r"HR is not 4 times LR in: a \(HR 24 x 24, LR 12 x 12\)"),
        ({"test_HR__a_x4": 24, "test_LR__b_x1": 6}, "without a partner: test_HR/a_x4, test_LR/b_x1$"),
        ({"test_HR__a_x4": 24, "test_LR__a_x1": 7}, r"HR is not 4 times LR in: a \(HR 24 x 24, LR 7 x 7\)"),
        ({"Test__4__a_HR": 24, "Test__4__b_LR4": 6}, "without a partner: Test/4/a_HR, Test/4/b_LR4$"),
        ({"Test__2__a_HR": 24, "Test__2__a_LR2": 12}, "as RealSR it holds no images at scale 4"),
        ({"a_gt": 24, "b": 6}, "without a partner: a_gt, b$"),
        ({"a_hr__a": 24, "b_lr__a": 6}, "with a_hr of none of the known layouts .*pairs: HR/NAME"),
        ({"GT__a": 24}, "LR: no such folder, nor another of LR images beside GT; .* --degrade"),
        ({"DIV2K_valid_HR__a": 24}, "LR: no such folder, nor another of LR images beside DIV2K_valid_HR; .* --degrade"),
        ({"own__DIV2K_valid_HR__a": 24}, "with DIV2K_valid_HR of none of the known layouts .* --degrade"),
        ({"GTmod12__a": 24, "LRbicx2__a": 12}, "no LR images of scale 4 in LRbicx2 that belong to GTmod12"),
        ({"HR__a": 24, "LR_bicubic__a": 6, "LR_unknown__a": 6}, "could be meant, HR, LR_bicubic, LR_unknown; give the"),
        (
            {"Set5__HR__a": 24, "Set5__LR__a": 6, "b__HR__a": 24, "b__LR__a": 6},
            "several data sets; give one of Set5, b$",
        ),
        ({"a": 24, "ax4": 6}, r"a\.png and ax4\.png show one scene.* put pairs into HR/ and LR/"),
        ({"shard__1": 24, "X4__shard__1x4": 6}, r"shard/1\.png and X4/shard/1x4\.png show one scene"),
        ({"HR__a": 24, "HR__a_hr": 24, "LR__a_lr": 6}, "without a partner: HR/a, HR/a_hr, LR/a_lr$"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, sizes, message):
    save(tmp_path, **sizes)
    with pytest.raises(DataError, match=message):
        find_benchmark(tmp_path, 4)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="none: no such folder"):
        find_benchmark(tmp_path / "none", 4)
    with pytest.raises(DataError, match=r"no images .*or LR images alone"):
        find_benchmark(tmp_path, 4)
    with pytest.raises(DataError, match="no HR images"):
        find_originals(tmp_path, 4)


def test_originals_are_found_in_any_layout(tmp_path):
    save(tmp_path / "photographs", b=24, more__a=20)
    save(tmp_path / "hr only", HR__a=24)
    for folder, names in (
        (tmp_path / "photographs", ["b", "more/a"]),
        (tmp_path / "hr only", ["a"]),
        (realsr(tmp_path / "realsr") / "Canon", ["Test/4/Canon_001", "Test/4/Canon_002"]),
    ):
        data = find_originals(folder, 4)
        assert data.layout == "HR"
        assert [scene.name for scene in data.scenes] == names
        assert all(scene.lr is None and scene.hr.is_file() for scene in data.scenes)


PUBLISHED = {
    # (files, and by the name of a scene what stands where)
    "DIV2K": (
        {"DIV2K_valid_HR__0801": 24, "DIV2K_valid_LR_bicubic__X4__0801x4": 6, "DIV2K_valid_LR_bicubic__X2__0801x2": 12},
        {"0801": ("DIV2K_valid_HR/0801.png", "DIV2K_valid_LR_bicubic/X4/0801x4.png")},
    ),
    "mild": (
        {"DIV2K_valid_HR__0801": 24, "DIV2K_valid_LR_mild__0801x4m": 6},
        {"0801": ("DIV2K_valid_HR/0801.png", "DIV2K_valid_LR_mild/0801x4m.png")},
    ),
    "wild": (
        {"DIV2K_train_HR__1": 24, "DIV2K_train_LR_wild__1x4w1": 6, "DIV2K_train_LR_wild__1x4w2": 6},
        {f"1x4w{n}": ("DIV2K_train_HR/1.png", f"DIV2K_train_LR_wild/1x4w{n}.png") for n in (1, 2)},
    ),
    "Flickr2K": (
        {"Flickr2K_HR__000001": 24, "Flickr2K_LR_bicubic__X4__000001x4": 6},
        {"000001": ("Flickr2K_HR/000001.png", "Flickr2K_LR_bicubic/X4/000001x4.png")},
    ),
    "BasicSR": (
        {"GTmod12__a": 24, "GTmod4__a": 28, "original__a": 31, "LRbicx2__a": 12, "LRbicx4__a": 6, "LRbicx16__a": 1},
        {"a": ("GTmod12/a.png", "LRbicx4/a.png")},
    ),
    "sub-images": (
        {"DIV2K_train_HR_sub__1_s001": 24, "DIV2K_train_LR_bicubic__X4_sub__1_s001": 6},
        {"1_s001": ("DIV2K_train_HR_sub/1_s001.png", "DIV2K_train_LR_bicubic/X4_sub/1_s001.png")},
    ),
    "EDSR": (
        {"HR__baby": 24, "LR_bicubic__X2__babyx2": 12, "LR_bicubic__X4__babyx4": 6},
        {"baby": ("HR/baby.png", "LR_bicubic/X4/babyx4.png")},
    ),
    "original": (
        {"original__baby": 24, "LR_bicubic__X4__babyx4": 6},
        {"baby": ("original/baby.png", "LR_bicubic/X4/babyx4.png")},
    ),
    "RCAN": (
        {"HR__x4__baby_HR_x4": 24, "HR__x2__baby_HR_x2": 24, "LRBI__x4__baby_LRBI_x4": 6},
        {"baby_HR_x4": ("HR/x4/baby_HR_x4.png", "LRBI/x4/baby_LRBI_x4.png")},
    ),
    "lower case": ({"hr__A": 24, "lr__a": 6}, {"A": ("hr/A.png", "lr/a.png")}),
    "gt and lq": ({"gt__a_1": 24, "lq__a_1": 6}, {"a_1": ("gt/a_1.png", "lq/a_1.png")}),
    "SelfExSR": (
        {
            **{f"image_SRF_{s}__img_1_SRF_{s}_HR": 24 for s in (2, 4)},
            **{f"image_SRF_{s}__img_1_SRF_{s}_LR": 24 // s for s in (2, 4)},
            "image_SRF_4__img_1_SRF_4_bicubic": 24,
        },
        {"image_SRF_4/img_1": ("image_SRF_4/img_1_SRF_4_HR.png", "image_SRF_4/img_1_SRF_4_LR.png")},
    ),
    "capitals": ({"trainHR__a": 24, "trainLR__a": 6}, {"a": ("trainHR/a.png", "trainLR/a.png")}),
    "words": (
        {"high_resolution__a": 24, "low_resolution__a": 6},
        {"a": ("high_resolution/a.png", "low_resolution/a.png")},
    ),
    "short words": ({"High__a": 24, "Low__a": 6}, {"a": ("High/a.png", "Low/a.png")}),
    "beside in lower case": ({"a_hr": 24, "a_lr": 6}, {"a": ("a_hr.png", "a_lr.png")}),
    "beside": ({"a_HR": 24, "a_LR": 6}, {"a": ("a_HR.png", "a_LR.png")}),
    "unpacked": (
        {"S_HR__S_HR__a": 24, "S_LR_x4__S_LR_x4__ax4": 6},
        {"a": ("S_HR/S_HR/a.png", "S_LR_x4/S_LR_x4/ax4.png")},
    ),
    "further down, of another scale": (
        {"Set5__GTmod12__a": 24, "Set5__LRbicx2__a": 12, "Set5__LRbicx4__a": 6},
        {"a": ("Set5/GTmod12/a.png", "Set5/LRbicx4/a.png")},
    ),
    "further down": ({"Set5__HR__a": 24, "Set5__LR__a": 6}, {"a": ("Set5/HR/a.png", "Set5/LR/a.png")}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_pairs_as_data_sets_name_them(tmp_path, name):
    sizes, expected = PUBLISHED[name]
    save(tmp_path, **sizes)
    assert found(tmp_path, 4)[1] == expected
    originals = find_originals(tmp_path, 4)
    assert {scene.hr.relative_to(tmp_path).as_posix() for scene in originals.scenes} == {
        hr for hr, _ in expected.values()
    }


def test_of_several_folders_of_lr_images_one_is_given(tmp_path):
    save(tmp_path, DIV2K_valid_HR__0801=24, DIV2K_valid_LR_unknown__X4__0801x4=6, DIV2K_valid_LR_bicubic__X4__0801x4=6)
    save(tmp_path, DIV2K_train_HR__0001=24, DIV2K_train_LR_bicubic__X4__0001x4=6)
    with pytest.raises(DataError, match=r"DIV2K_valid_LR_bicubic/X4, .*DIV2K_valid_LR_unknown/X4; give the one of"):
        find_benchmark(tmp_path, 4)
    for given in ("DIV2K_valid_LR_unknown", "DIV2K_valid_LR_unknown/X4"):
        (scene,) = find_benchmark(tmp_path / given, 4).scenes
        assert scene.hr == tmp_path / "DIV2K_valid_HR" / "0801.png"
        assert scene.lr == tmp_path / "DIV2K_valid_LR_unknown" / "X4" / "0801x4.png"
    with pytest.raises(DataError, match="several folders hold HR images; give one of DIV2K_train_HR, DIV2K_valid_HR"):
        find_originals(tmp_path, 4)
    assert len(find_originals(tmp_path / "DIV2K_valid_HR", 4).scenes) == 1


def test_originals_beside_a_folder_of_some_are_not_left_out(tmp_path):
    save(tmp_path, holidays_hr__a=24, b=24)
    with pytest.raises(DataError, match=r"b\.png does not lie in .*holidays_hr; give that folder"):
        find_originals(tmp_path, 4)


def test_lr_images_alone_stay_alone_beside_another_set(tmp_path):
    save(tmp_path, DIV2K_valid_HR__0801=24, phone_lr__a=7)
    save(tmp_path / "more", a_hr=24, b=6, bx4=7, low_light__c=6, higher__c=24)
    assert find_benchmark(tmp_path / "more", 4).layout == "LR"
    assert find_benchmark(tmp_path / "phone_lr", 4).layout == "LR"


def test_pairs_of_rounded_sizes_are_counted(tmp_path):
    save(tmp_path, HR__down=27, LR__down=6, HR__up=25, LR__up=7, HR__fits=24, LR__fits=6)
    assert find_benchmark(tmp_path, 4).cut == 2


def test_what_is_passed_over_is_kept(tmp_path):
    save(tmp_path / "a", HR__a=24, LR__a=6)
    save(tmp_path / "b", a=24)
    for place in ("a/HR", "b"):
        (tmp_path / place / "i.gif").write_bytes(b"")
    for data in (
        find_benchmark(tmp_path / "a", 4),
        find_benchmark(tmp_path / "b", 4),
        find_originals(tmp_path / "b", 4),
    ):
        assert [path.name for path, _ in data.passed_over] == ["i.gif"]
