"""The page's second tab without the page: what it finds is what `andfast.degrade` writes."""

import base64
import io
import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from study_images import photograph

from andfast import degrade
from andfast.data.images import DataError, read_image
from andfast.demo.adversary import FREE, Choice, attack, figures, numbers_table
from andfast.demo.errors import explain
from andfast.demo.models import load_offered
from andfast.models import build_generator, save_model
from andfast.ops.blur_pool import blur_pool
from andfast.training import memory_check
from andfast.utils.devices import AUTOMATIC

QUICK = {"crop": 32, "steps": 1}
MANY = 10**6


@pytest.fixture(scope="module")
def offered(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(build_generator("compact", 4, features=8, convs=1), path)
    return load_offered([str(path)], torch.device("cpu"), "float32")["m"]


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "a photo.png"
    Image.fromarray(photograph(0, size=48)[:44]).save(path)
    return path


@pytest.fixture(scope="module")
def found(photo, offered):
    # In float32 also where bfloat16 is fast, whose images, rounded to 8 bits, lie further from what was computed.
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(AUTOMATIC["degradation"], "cpu")
        return attack(photo, offered, Choice(**QUICK, lr_psnr=26), MANY)


def cells(found):
    return {cell.label: cell.image for cell in found.cells}


def rms(a, b):
    return np.sqrt(np.mean((a.astype(float) - b) ** 2))


def test_the_command_that_is_shown_makes_the_same(photo, offered, tmp_path, monkeypatch):
    choice = Choice(**QUICK, lr_psnr=26.5, seed=3, groups=("conv", "conv_dc"))
    found = attack(photo, offered, choice, MANY)
    monkeypatch.chdir(tmp_path)
    python, option, module, *arguments = shlex.split(choice.command(photo.name, offered))
    assert (python, option, module) == ("python", "-m", "andfast.degrade")
    (tmp_path / photo.name).write_bytes(photo.read_bytes())
    assert degrade.main(arguments) == 0
    shown = cells(found)
    (pairs,), (drawn,) = tmp_path.glob("pairs-*"), tmp_path.glob("found-*.png")
    assert np.array_equal(read_image(pairs / "LR" / photo.name), found.lr)
    assert np.array_equal(read_image(pairs / "HR" / photo.name), shown["HR"])
    sheet = read_image(drawn)
    assert list(shown) == [
        "HR", "clean LR", "attacked LR", "colour alone", "blur alone", "SR of clean LR", "SR of attacked LR",
    ]  # fmt: skip
    for column, image in enumerate(shown.values()):
        times = 32 // len(image)
        cell = sheet[22 : 22 + 32, 4 + 36 * column :][:, :32]
        # A note stands in the lower left corner.
        assert np.array_equal(cell[:10], image.repeat(times, 0).repeat(times, 1)[:10])


def test_one_command_after_the_other(photo, offered, tmp_path, monkeypatch):
    """Of other settings each has a folder of its own, and of the same ones the files share it."""
    monkeypatch.chdir(tmp_path)
    choices = [Choice(**QUICK), Choice(**QUICK, seed=1), Choice(**QUICK, groups=("conv",)), Choice(**QUICK)]
    names = [photo.name, photo.name, photo.name, "other.png"]
    for choice, name in zip(choices, names, strict=True):
        (tmp_path / name).write_bytes(photo.read_bytes())
        assert degrade.main(shlex.split(choice.command(name, offered))[3:]) == 0
    written = [sorted(path.name for path in pairs.glob("LR/*")) for pairs in tmp_path.glob("pairs-*")]
    assert sorted(written) == [[photo.name], [photo.name], [photo.name, "other.png"]]


def test_the_middle_is_taken(photo, found):
    hr = read_image(photo)[6:38, 8:40]
    assert np.array_equal(cells(found)["HR"], hr)
    pooled = blur_pool(torch.from_numpy(hr).permute(2, 0, 1)[None].double() / 255, 4)[0].permute(1, 2, 0) * 255
    assert np.abs(cells(found)["clean LR"] - pooled.numpy()).max() < 0.51


def test_the_numbers(found):
    shown = cells(found)
    # Images are rounded to 8 bits.
    distance = -20 * np.log10(rms(shown["attacked LR"], shown["clean LR"]) / 255)
    assert found.lr_psnr == pytest.approx(distance, abs=0.1)
    assert 25.9 < found.lr_psnr < 29
    for index, (label, restored) in enumerate((("clean", found.clean), ("attacked", found.attacked))):
        assert np.array_equal(shown[f"SR of {label} LR"], restored)
        difference = restored.astype(float) - shown["HR"]
        assert found.loss[index] == pytest.approx(np.abs(difference).mean() / 255, rel=0.01)
        luma = difference[4:-4, 4:-4] @ (np.array([65.481, 128.553, 24.966]) / 255)
        assert found.psnr_y[index] == pytest.approx(-20 * np.log10(np.sqrt(np.mean(luma**2)) / 255), abs=1e-6)
    assert found.loss[1] > found.loss[0]
    text = numbers_table(found)
    for number in (f"{found.lr_psnr:.2f}", *(f"{loss:.4f}" for loss in found.loss), f"{found.psnr_y[0]:.2f}"):
        assert f"| {number} |" in text


def test_the_figures(found):
    page = figures(found)
    assert re.findall(r"<figcaption><span>(.*?)</span>", page) == list(cells(found))
    for data, image in zip(re.findall('base64,([^"]+)', page), cells(found).values(), strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), image)
    assert f"<span>{found.lr_psnr:.1f} dB</span>" in page


def test_progress_is_told_step_by_step(photo, offered):
    told = []
    attack(photo, offered, Choice(crop=32, steps=3), MANY, told.append)
    assert told == [0.25, 0.5, 0.75, 1.0]


def test_what_may_move():
    assert FREE == ("conv", "noise", "slope")
    factors = Choice(groups=("conv_dc", "slope")).scale_factors()
    assert (factors.conv_dc, factors.slope) == (1, 50)
    assert factors.conv == factors.noise == factors.conv_shift == float("inf")
    with pytest.raises(ValueError, match="choose at least one"):
        Choice(groups=()).scale_factors()


def test_images_that_are_refused(tmp_path, photo, offered, monkeypatch):
    Image.new("RGB", (15, 400)).save(tmp_path / "flat.png")
    with pytest.raises(DataError, match=r"flat\.png: smaller than 16 x 16 pixels"):
        attack(tmp_path / "flat.png", offered, Choice(**QUICK), MANY)
    with pytest.raises(DataError, match="48 x 44 pixels; more than 2000 are refused"):
        attack(photo, offered, Choice(**QUICK), 2000)
    monkeypatch.setattr(memory_check, "free_memory", lambda device: 2**20)
    with pytest.raises(MemoryError) as error:
        attack(photo, offered, Choice(**QUICK), MANY)
    assert re.match(r"a photo\.png: out of memory \(needs about \S+ GiB of 0.0 GiB free\)", explain(error.value, photo))
