"""The upscaling command, and the tiles under it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from andfast import upscale
from andfast.models import Compact, RRDBNet, save_model
from andfast.pretrained import load_pretrained
from andfast.upscale import NonFiniteError, UsageError, find_work, upscale_array, upscale_tensor


def compact(scale=2, convs=3):
    """Receptive field: convs + 2 pixels to each side, and far enough from its start to use all of it."""
    torch.manual_seed(0)
    model = Compact(scale, features=8, convs=convs).eval()
    with torch.no_grad():
        model.body[-1].weight.mul_(30)
    return model


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(compact(), path)
    return path


def picture(path, height=9, width=14, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def run(*arguments):
    return upscale.main([str(argument) for argument in arguments])


# Tiles


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(40, 61), (33, 32), (7, 50)])
@pytest.mark.parametrize("tile", [13, 32])
def test_tiles_equal_the_whole(scale, size, tile):
    model = compact(scale)
    image = torch.rand(1, 3, *size)
    whole = model(image).detach()
    assert (whole - F.interpolate(image, scale_factor=scale)).std() > 0.02  # it does something
    tiled = upscale_tensor(model, image, tile, overlap=5)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


def test_context_is_what_makes_them_equal():
    model, image = compact(), torch.rand(1, 3, 40, 61)
    tiled = upscale_tensor(model, image, 16, overlap=0)
    assert (tiled - model(image)).abs().max() > 1e-2


@pytest.mark.parametrize("scale", [1, 2])
def test_tiles_keep_the_grouping_of_pixels(scale):
    """Moving 2x2 or 4x4 pixels into channels works on the same groups in a tile as in the whole image."""
    torch.manual_seed(0)
    model = RRDBNet(scale, features=8, blocks=1, growth=4).eval()
    image = torch.rand(1, 3, 150, 70)
    tiled = upscale_tensor(model, image, tile=61, overlap=24 * 4 // scale)
    torch.testing.assert_close(tiled, model(image).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (16, 16), (17, 15)])
@pytest.mark.parametrize("tile", [0, 5, 16])
def test_small_images(size, tile):
    for model in (compact(), RRDBNet(1, features=4, blocks=1, growth=2)):
        image = torch.rand(2, 3, *size)
        result = upscale_tensor(model, image, tile, overlap=16)
        torch.testing.assert_close(result, model(image).detach(), rtol=0, atol=1e-5)


def test_memory_is_bounded_by_the_tile():
    model, seen = compact(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2:]))
    upscale_tensor(model, torch.rand(1, 3, 101, 99), tile=30, overlap=7)
    assert len(seen) == 16
    assert max(max(size) for size in seen) <= 30 + 2 * 7 + 6


def test_result_needs_no_gradient_and_is_an_ordinary_tensor():
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    result = upscale_tensor(compact(), image)
    assert not result.requires_grad
    assert not result.is_inference()


@pytest.mark.parametrize(
    ("shape", "tile", "overlap"),
    [((1, 3, 4, 4), -1, 0), ((1, 3, 4, 4), 8, -1), ((3, 4, 4), 8, 0), ((1, 3, 0, 4), 8, 0)],
)
def test_tensor_arguments(shape, tile, overlap):
    with pytest.raises(ValueError, match="not"):
        upscale_tensor(compact(), torch.rand(shape), tile, overlap)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_array_is_the_rounded_and_clipped_tensor(precision):
    model = compact()
    image = np.random.default_rng(1).integers(0, 256, (20, 23, 3), dtype=np.uint8)
    result = upscale_array(model, image, 8, 5, precision)
    expected = model(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0).detach().numpy() * 255
    assert expected.min() < 0  # else clipping is not tested
    assert expected.max() > 255
    error = np.abs(result - expected.clip(0, 255)).max()
    assert error < (0.51 if precision == torch.float32 else 4)


def test_output_that_is_not_finite():
    model = compact()
    with torch.no_grad():
        model.body[0].weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="not finite"):
        upscale_tensor(model, torch.rand(1, 3, 4, 4))


def test_automatic_precision(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert upscale.choose_precision("auto", cuda) == torch.float16
    assert upscale.choose_precision("float32", cuda) == torch.float32
    for capability, expected in (
        ("amx_bf16", torch.bfloat16),
        ("avx512_bf16", torch.bfloat16),
        ("avx2", torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=capability: {name: True})
        assert upscale.choose_precision("auto", cpu) == expected


# Which file goes where


def test_folders_keep_their_structure(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/a.webp", "sub/v1.2.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    picture(tmp_path / "single.bmp")
    out = tmp_path / "out"
    work = find_work([tmp_path / "in", tmp_path / "single.bmp", tmp_path / "in" / ".." / "single.bmp"], out)
    assert [target.relative_to(out).as_posix() for _, target in work] == [
        "a.png", "b.png", "sub/a.png", "sub/v1.2.png", "single.png",
    ]  # fmt: skip


def test_two_images_for_one_file(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "a.jpg")
    with pytest.raises(UsageError, match=r"a\.jpg and .*a\.png would both be written to .*a\.png"):
        find_work([tmp_path], tmp_path / "out")


def test_inputs_are_never_overwritten(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match="would be overwritten"):
        find_work([tmp_path / "a.png"], tmp_path)


def test_earlier_results_are_no_inputs(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "out" / "a.png")
    assert find_work([tmp_path], tmp_path / "out") == [(tmp_path / "a.png", tmp_path / "out" / "a.png")]


# The command


def test_file(tmp_path, model_file, capsys):
    pixels = picture(tmp_path / "a.png", 21, 34)
    assert run(tmp_path / "a.png", "--output", tmp_path / "new" / "out", "--model", model_file,
               "--precision", "float32", "--tile", 16, "--overlap", 5, "--device", "cpu") == 0  # fmt: skip
    result = np.asarray(Image.open(tmp_path / "new" / "out" / "a.png"))
    # The library may add up in another order for another size of tile: a value on the edge between two levels can go
    # either way.
    difference = np.abs(result.astype(int) - upscale_array(compact(), pixels, tile=0).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001
    assert "1 of 1 images upscaled" in capsys.readouterr().out


@pytest.mark.parametrize("named", [[], ["--model", "andnet_compact_x4"]])
def test_the_pretrained_model(tmp_path, capsys, named):
    pixels = picture(tmp_path / "a.png", 21, 34)
    plain = ["--precision", "float32", "--device", "cpu"]
    assert run(tmp_path / "a.png", "--output", tmp_path / "out", *named, *plain) == 0
    assert "model andnet_compact_x4: x4, on cpu in float32" in capsys.readouterr().out
    result = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    expected = upscale_array(load_pretrained("andnet_compact_x4"), pixels)
    assert np.abs(result.astype(int) - expected.astype(int)).max() <= 1


def test_bad_files_are_named_and_skipped(tmp_path, model_file, capsys):
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:60])
    (tmp_path / "in" / "c.jpg").write_text("no image")
    picture(tmp_path / "in" / "sub" / "d.png", 1, 1)
    assert run(tmp_path / "in", "--output", tmp_path / "out", "--model", model_file, "--device", "cpu") == 1
    told = capsys.readouterr()
    assert "2 of 4 images upscaled" in told.out
    assert "2 failed" in told.out
    failures = told.err.splitlines()
    assert len(failures) == 2
    assert "b.png" in failures[0]
    assert "c.jpg" in failures[1]
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["a.png", "sub/d.png"]
    assert Image.open(tmp_path / "out" / "sub" / "d.png").size == (2, 2)


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (MemoryError(), "smaller --tile"),
        (torch.OutOfMemoryError("CUDA out of memory"), "smaller --tile"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "smaller --tile"),
        (NonFiniteError("the model's output is not finite"), "--precision float32"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_failures_say_what_would_help(tmp_path, model_file, capsys, monkeypatch, cause, said):
    def fail(*_):
        raise cause

    picture(tmp_path / "a.png")
    monkeypatch.setattr(upscale, "upscale_array", fail)
    assert run(tmp_path / "a.png", "--output", tmp_path / "out", "--model", model_file, "--precision", "bfloat16") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.png" in line
    assert said in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}/a.png", "--model", "{tmp}/none.pth"], "none.pth: no such file"),
        (
            ["{tmp}/a.png", "--model", "andnet_compact_x5"],
            "andnet_compact_x5: no such file (.safetensors,",
        ),
        (["{tmp}/a.png", "--model", "andnet_compact_x4.pth"], "nor a pretrained model; those are andnet_compact_x4"),
        (["{tmp}/a.png", "--model", "{tmp}/a.png"], "not a model file"),
        (["{tmp}/a.png", "--model", "{tmp}/broken.pth"], "broken.pth"),
        (["{tmp}/none.png", "--model", "{model}"], "none.png: no such file or folder"),
        (["{tmp}/empty", "--model", "{model}"], "empty: no images"),
        (["{tmp}/a.png", "--model", "{model}", "--output", "{tmp}"], "would be overwritten"),
        (["{tmp}/a.png", "--model", "{model}", "--output", "{tmp}/a.png"], "not a folder"),
        (["{tmp}/a.png", "--model", "{model}", "--output", "{tmp}/a.png/b"], "a.png"),
        (["{tmp}/a.png", "--model", "{model}", "--device", "cuda"], "no CUDA device"),
    ],
)
def test_nothing_is_begun(tmp_path, model_file, capsys, monkeypatch, arguments, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    picture(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.pth").write_bytes(b"x")
    before = sorted(tmp_path.rglob("*"))
    arguments = [argument.format(tmp=tmp_path, model=model_file) for argument in arguments]
    assert run("--output", tmp_path / "out", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("wrong", [["--tile", "-1"], ["--overlap", "-2"], ["--precision", "int8"], ["--tile", "x"]])
def test_wrong_options(tmp_path, model_file, capsys, wrong):
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, "--output", tmp_path, "--model", model_file, *wrong)
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_as_a_command(tmp_path, model_file):
    picture(tmp_path / "a.png")
    command = [
        sys.executable,
        "-m",
        "andfast.upscale",
        "--output",
        str(tmp_path / "out"),
        "--model",
        str(model_file),
    ]
    good = subprocess.run([*command, str(tmp_path / "a.png")], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    bad = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr
