"""Side-by-side crops."""

import numpy as np
import pytest
from PIL import Image
from study_images import photograph

from andfast.data.tensors import to_array, to_tensor
from andfast.models import build_generator, save_model
from andfast.training.validation import upsample_by_pillow
from studies.crops import busiest, crops, main
from studies.testsets import photograph_sets


def test_a_crop_is_that_of_the_whole_image():
    image, model = photograph(0, size=96), build_generator("compact", 4, features=8, convs=2).eval()
    bicubic, restored = crops(image, (40, 8), 24, {"ours": model})
    rows, columns = slice(160, 256), slice(32, 128)
    assert np.array_equal(bicubic, upsample_by_pillow(image, 4)[rows, columns])
    whole = to_array(model(to_tensor(image)))[rows, columns]
    assert np.abs(restored.astype(int) - whole).max() <= 1


def test_the_busiest_part_is_where_the_detail_is():
    image = np.full((80, 100, 3), 128, np.uint8)
    image[48:80, 60:92] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    assert busiest(image, 32) == (48, 56) or busiest(image, 32) == (48, 64)


def test_the_command_writes_a_sheet(tmp_path, capsys):
    for name in ("a", "b"):
        Image.fromarray(photograph(1, size=48)).save(tmp_path / f"{name}.png")
        save_model(build_generator("compact", 4, features=8, convs=1), tmp_path / f"{name}.pth")
    models = ["--model", f"classical={tmp_path / 'a.pth'}", "--model", f"ours={tmp_path / 'b.pth'}"]
    sheet, size = tmp_path / "sheet.png", ["--size", "32"]
    images = [str(tmp_path / "a.png"), f"{tmp_path / 'b.png'}@16,0"]
    assert main([*images, *models, *size, "--output", str(sheet)]) == 0
    with Image.open(sheet) as image:
        assert image.width > 3 * 4 * 32
        assert image.height > 2 * 4 * 32
    for wrong, message in (("b.png@40,0", "leaves the image of 48 x 48"), ("b.png@4", "LEFT,TOP"), ("c.png", "c.png")):
        assert main([str(tmp_path / wrong), *models, *size, "--output", str(sheet)]) == 2
        assert message in capsys.readouterr().err
    assert main([images[0], "--model", "a.pth", "--output", str(sheet)]) == 2
    assert "NAME=FILE" in capsys.readouterr().err


def test_photographs_are_made_small_as_in_the_studies_tests(tmp_path):
    hr = photograph(2, size=130)
    Image.fromarray(hr).save(tmp_path / "a.png")
    save_model(build_generator("compact", 4, features=8, convs=1), tmp_path / "a.pth")
    sheet = tmp_path / "sheet.png"
    options = ["--model", f"ours={tmp_path / 'a.pth'}", "--size", "16", "--strength", "strong", "--output", str(sheet)]
    assert main([f"{tmp_path / 'a.png'}@8,4", *options]) == 0
    (case,) = photograph_sets([("a.png", hr[:128, :128])], 4)["strong"]
    cells = np.array(Image.open(sheet))[22:86]
    assert np.array_equal(cells[:, 4:68], upsample_by_pillow(case.lr, 4)[16:80, 32:96])
    assert np.array_equal(cells[:, 140:204], hr[16:80, 32:96])


@pytest.mark.parametrize("size", [0, 100])
def test_a_crop_larger_than_the_image_is_refused(tmp_path, capsys, size):
    Image.fromarray(photograph(1)).save(tmp_path / "a.png")
    save_model(build_generator("compact", 4, features=8, convs=1), tmp_path / "a.pth")
    model = ["--model", f"a={tmp_path / 'a.pth'}", "--output", str(tmp_path / "sheet.png")]
    assert main([str(tmp_path / "a.png"), *model, "--size", str(size)]) == 2
    assert "64 x 64 pixels hold no crop" in capsys.readouterr().err
