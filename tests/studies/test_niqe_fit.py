"""Fitting NIQE's model against NumPy, and the command."""

import numpy as np
import plain_niqe
import pytest
import skimage.data
from PIL import Image

from andfast.data.tensors import to_tensor
from andfast.metrics import load_pristine
from studies import niqe


@pytest.fixture(scope="module")
def photographs():
    """Crops of two photographs, with sharp parts and others."""
    whole = [skimage.data.astronaut(), skimage.data.coffee()]
    at = [(top, left) for top in range(0, 201, 60) for left in range(0, 151, 60)]
    return [np.ascontiguousarray(image[top : top + 200, left : left + 200]) for image in whole for top, left in at]


@pytest.fixture(scope="module")
def fitted(photographs):
    return niqe.fit_pristine([to_tensor(image) for image in photographs])


def test_fit_is_that_of_numpy(photographs, fitted):
    model, blocks = fitted
    mean, covariance, count = plain_niqe.fit(photographs)
    assert blocks == count
    assert blocks < 4 * len(photographs)  # the sharper ones were chosen
    np.testing.assert_allclose(model.mean.numpy(), mean, atol=1e-9)
    np.testing.assert_allclose(model.covariance.numpy(), covariance, atol=1e-9)


def test_command_writes_a_model_that_names_its_sources(tmp_path, photographs, fitted, capsys):
    (tmp_path / "images").mkdir()
    for number, image in enumerate(photographs):
        Image.fromarray(image).save(tmp_path / "images" / f"gb82_{number:02}.png")
    arguments = ["--images", str(tmp_path / "images"), "--output", str(tmp_path / "own.npz")]
    assert niqe.main(arguments) == 0
    model = load_pristine(tmp_path / "own.npz")
    expected, blocks = fitted
    assert model.mean.equal(expected.mean)
    assert (model.about["images"], model.about["blocks"]) == (len(photographs), blocks)
    assert [source["licence"] for source in model.about["sources"]] == ["CC0 1.0"]
    assert f"{blocks} blocks of {len(photographs)} images" in capsys.readouterr().out
    first = (tmp_path / "own.npz").read_bytes()
    assert niqe.main(arguments) == 0
    assert (tmp_path / "own.npz").read_bytes() == first


@pytest.mark.parametrize(
    ("size", "name", "output", "message"),
    [
        (95, "gb82_1.png", "own.npz", "smaller than 96 x 96 pixels"),
        (96, "gb82_1.png", "own.npz", "2 sharp blocks; more than 36 are needed"),
        (96, "holiday.png", "own.npz", "unknown licence"),
        (96, "gb82_1.png", "own.mat", "own.mat: give an .npz file"),
        (96, "notes.txt", "own.npz", "no images there"),
    ],
)
def test_bad_input_is_refused(tmp_path, capsys, size, name, output, message):
    (tmp_path / "images").mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, 200, 3), dtype=np.uint8))
    image.save(tmp_path / "images" / name, format="PNG")
    assert niqe.main(["--images", str(tmp_path / "images"), "--output", str(tmp_path / output)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / output).exists()
