"""The command `andfast.upscale` and the function `andfast.upscale_image`."""

import functools
import re
import subprocess
import sys
import threading
import time
import types
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from image_files import SRGB, chunk, png, profile
from PIL import Image
from upscaling_models import compact, nearest, noise, picture

import andfast
from andfast import upscale
from andfast.data.heif import avif_problem
from andfast.inference import formats
from andfast.inference.formats import Picture, read_picture, write_picture
from andfast.inference.output_paths import FORMATS, plan_outputs
from andfast.inference.pipeline import pipeline
from andfast.inference.tiles import NonFiniteError
from andfast.inference.upscale_image import upscale_image
from andfast.inference.upscaler import Upscaler
from andfast.models import RRDBNet, save_model
from andfast.ops.precision import choose_precision
from andfast.pretrained import load_pretrained
from andfast.utils.command_line import UsageError
from andfast.utils.devices import AUTOMATIC


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(compact(), path)
    return path


def run(*arguments):
    return upscale.main([str(argument) for argument in arguments])


def test_automatic_precision(monkeypatch):
    """Half types where they are faster and the result can hold no more than they do."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_precision("auto", cuda) == torch.float16
    assert choose_precision("auto", cuda, "degradation") == torch.float16
    assert choose_precision("auto", cuda, "deep upscaling") == torch.float32
    assert choose_precision("float32", cuda) == torch.float32
    assert choose_precision("float16", cpu, "deep upscaling") == torch.float16
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda native=native, **_: native)
        assert choose_precision("auto", cuda, "training") == (torch.bfloat16 if native else torch.float32)
    for capability in ("amx_bf16", "avx512_bf16", "avx2", "bf16"):  # the last one is ARM's
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=capability: {name: True})
        trained = torch.bfloat16 if capability == "amx_bf16" else torch.float32
        assert choose_precision("auto", cpu, "training") == choose_precision("auto", cpu, "degradation") == trained
        assert choose_precision("auto", cpu) == choose_precision("auto", cpu, "deep upscaling") == torch.float32


def repeating() -> RRDBNet:
    """An RRDBNet that repeats each pixel, so that results show what its arithmetic keeps of it."""
    model = RRDBNet(4, features=4, blocks=1, growth=4).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        for layer in (model.conv_first, model.conv_up1, model.conv_up2, model.conv_hr, model.conv_last):
            for channel in range(3):
                layer.weight[channel, channel, 1, 1] = 1
    return model


@pytest.mark.parametrize("automatic", [torch.float32, torch.float16, torch.bfloat16])
def test_16_bits_come_out_as_they_went_in(tmp_path, monkeypatch, capsys, automatic):
    """Whatever images of 8 bits are computed in."""
    monkeypatch.setitem(AUTOMATIC["upscaling"], "cpu", automatic)
    monkeypatch.setattr("andfast.utils.devices._multiplies_bfloat16", lambda device: True)
    save_model(repeating(), tmp_path / "repeat.safetensors")
    sky = np.linspace(40000, 46000, 240).round().astype(np.uint16).reshape(1, 80, 3).repeat(6, 0)
    (tmp_path / "in").mkdir()
    write_picture(tmp_path / "in" / "deep.png", Picture(sky))
    write_picture(tmp_path / "in" / "shallow.png", Picture((sky // 257).astype(np.uint8)))
    arguments = [tmp_path / "in", "--output", tmp_path / "out", "--model", tmp_path / "repeat.safetensors"]
    assert run(*arguments, "--tile", 32) == 0
    kind = str(automatic).removeprefix("torch.")
    told = kind if automatic == torch.float32 else f"{kind} (float32 for images of more than 8 bits)"
    assert capsys.readouterr().out.splitlines()[0].endswith(f": x4, on cpu in {told}")
    for name, image in (("deep", sky), ("shallow", sky // 257)):
        result = read_picture(tmp_path / "out" / f"{name}.png").pixels.astype(int)
        assert np.abs(result - image.repeat(4, 0).repeat(4, 1)).max() <= 1
    in_floats = andfast.upscale_image(sky / np.float32(65535), repeating(), precision="auto")
    assert np.abs(in_floats * 65535 - sky.repeat(4, 0).repeat(4, 1)).max() < 1


def test_a_large_image_has_a_bar_from_the_start(tmp_path, monkeypatch, capsys):
    """On a terminal, also where it is a single tile, and before what it needs is measured."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def fail(*arguments):
        raise ValueError("not computed")

    monkeypatch.setattr(Upscaler, "pixels", fail)
    picture(tmp_path / "large.png", 200, 100)
    picture(tmp_path / "small.png", 100, 100)
    for name, shown in (("large", True), ("small", False)):
        assert run(tmp_path / f"{name}.png", "--output", tmp_path / "out") == 1
        assert (f"{name}.png:   0%" in capsys.readouterr().err) == shown


# Which file goes where


def test_folders_keep_their_structure(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/a.webp", "sub/v1.2.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    picture(tmp_path / "single.bmp")
    out = tmp_path / "out"
    given = [tmp_path / "in", tmp_path / "single.bmp", tmp_path / "in" / ".." / "single.bmp"]

    def names(kind):
        return [target.relative_to(out).as_posix() for _, target in plan_outputs(given, out, kind).pairs]

    assert names("png") == ["a.png", "b.png", "sub/a.png", "sub/v1.2.png", "single.png"]
    assert names("tiff") == ["a.tif", "b.tif", "sub/a.tif", "sub/v1.2.tif", "single.tif"]
    assert names("same") == ["a.PNG", "b.jpg", "sub/a.webp", "sub/v1.2.png", "single.png"]


def test_frames_keep_their_names(tmp_path, model_file):
    """Those of `ffmpeg -i film.mp4 frame_%06d.png`, and numbers without leading zeros: each result is of its frame."""
    names = [*(f"frame_{number:06d}.png" for number in (1, 2, 10)), *(f"{number}.png" for number in (1, 2, 10))]
    frames = {name: picture(tmp_path / "in" / name, 6, 5 + index) for index, name in enumerate(names)}
    assert run(tmp_path / "in", "--output", tmp_path / "out", "--model", model_file) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    for name, pixels in frames.items():
        np.testing.assert_array_equal(
            read_picture(tmp_path / "out" / name).pixels, andfast.upscale_image(pixels, model_file, device="cpu")
        )


def test_formats_that_are_read_only(tmp_path, model_file, capsys):
    """HEIC becomes PNG, upright, with its date and camera; AVIF stays AVIF; raw files are named."""
    pillow_heif = pytest.importorskip("pillow_heif")
    folder, exif = tmp_path / "in", Image.Exif()
    exif[0x010F], exif[0x0112] = "Camera", 6
    photo = Image.fromarray(picture(folder / "a.png", 16, 24))
    pillow_heif.from_pillow(photo).save(folder / "b.HEIC", exif=exif.tobytes())
    names = ["a.png", "b.png"]
    if avif_problem() is None:
        photo.save(folder / "c.avif")
        names.append("c.avif")
    (folder / "d.dng").write_bytes(b"II*\0")
    assert run(folder, "--output", tmp_path / "out", "--model", model_file, "--format", "same") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    found = read_picture(tmp_path / "out" / "b.png")
    assert found.pixels.shape == (48, 32, 3)
    assert b"Camera" in found.exif
    told = capsys.readouterr().err
    assert "1 of a camera's raw format, which is not read: develop to TIFF or PNG first (d.dng)" in told


def test_two_images_for_one_file(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "a.jpg")
    with pytest.raises(UsageError, match=r"a\.jpg and .*a\.png would both be written to .*a\.png"):
        plan_outputs([tmp_path], tmp_path / "out")
    assert len(plan_outputs([tmp_path], tmp_path / "out", "same").pairs) == 2


def test_inputs_are_never_overwritten(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match="would be overwritten"):
        plan_outputs([tmp_path / "a.png"], tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="would be overwritten"):
        plan_outputs([tmp_path / "a.png"], tmp_path / "link")


def test_earlier_results_are_no_inputs(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "out" / "a.png")
    assert plan_outputs([tmp_path], tmp_path / "out").pairs == [(tmp_path / "a.png", tmp_path / "out" / "a.png")]


# Many images


def reciprocals(workers, numbers, stored, store=None):
    done = pipeline(numbers, lambda n: n, lambda n, _: 1 / n, store or (lambda n, made: stored.append(made)), workers)
    return [(number, type(error)) for number, error in done]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_one_that_fails_stops_no_other(workers):
    stored = []
    assert reciprocals(workers, [1, 2, 0, 4], stored) == [
        (1, type(None)), (2, type(None)), (0, ZeroDivisionError), (4, type(None)),
    ]  # fmt: skip
    assert sorted(stored) == [0.25, 0.5, 1]

    def fail(number, made):
        if number == 2:
            raise OSError("disk")
        stored.append(made)

    assert reciprocals(workers, [1, 2, 0, 4], stored, fail)[1:3] == [(2, OSError), (0, ZeroDivisionError)]


def test_loading_and_storing_go_on_meanwhile():
    """Each step waits for another one that only goes on if they run at the same time."""
    loaded, made = threading.Event(), threading.Event()

    def load(number):
        if number == 2:
            loaded.set()
        return number

    def make(number, _):
        if number == 1:
            assert loaded.wait(10)  # 2 is loaded while 1 is made
        else:
            made.set()

    def store(number, _):
        if number == 1:
            assert made.wait(10)  # 2 is made while 1 is stored

    assert [error for _, error in pipeline([1, 2], load, make, store, 2)] == [None, None]


def test_memory_is_waited_for():
    """An image that finds too little is made once the earlier ones are stored."""
    stored, before = [], []

    def make(number, _):
        before.append(len(stored))
        return number

    def store(number, _):
        time.sleep(0.05)
        stored.append(number)

    done = pipeline([1, 2, 3], lambda n: n, make, store, 2, lambda number, loaded: False)
    assert [number for number, error in done if error is None] == [1, 2, 3]
    assert before == [0, 1, 2]


def test_what_waits_is_bounded():
    held, most = set(), 0

    def load(number):
        nonlocal most
        held.add(number)
        most = max(most, len(held))
        return number

    for number, _ in pipeline(range(40), load, lambda n, _: n, lambda n, _: None, 2):
        held.discard(number)
    assert most <= 2 * 2 + 2


def test_stopping_early_begins_nothing_more():
    begun = []
    done = pipeline(range(100), begun.append, lambda n, _: n, lambda n, _: None, 2)
    next(done)
    done.close()
    assert len(begun) < 10


# The command


@pytest.mark.parametrize("workers", [0, 2])
def test_file(tmp_path, model_file, capsys, workers):
    pixels = picture(tmp_path / "a.png", 21, 34)
    assert run(tmp_path / "a.png", "--output", tmp_path / "new" / "out", "--model", model_file, "--workers", workers,
               "--precision", "float32", "--tile", 16, "--overlap", 5, "--device", "cpu") == 0  # fmt: skip
    result = np.asarray(Image.open(tmp_path / "new" / "out" / "a.png"))
    # The library may add up in another order for another size of tile: a value on the edge between two levels can go
    # either way.
    difference = np.abs(result.astype(int) - Upscaler(compact(), tile=0).pixels(pixels).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001
    assert "1 of 1 image upscaled" in capsys.readouterr().out


def test_a_model_of_scale_1_restores_at_the_same_size(tmp_path, capsys):
    pixels, model = picture(tmp_path / "a.png", 21, 34), compact(1)
    save_model(model, tmp_path / "m.safetensors")
    command = [tmp_path / "a.png", "--output", tmp_path / "out", "--model", tmp_path / "m.safetensors"]
    assert run(*command, "--precision", "float32", "--device", "cpu") == 0
    result = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    assert result.shape == pixels.shape
    assert np.abs(result.astype(int) - Upscaler(model).pixels(pixels).astype(int)).max() <= 1
    assert (result != pixels).any()
    assert "1 of 1 image restored" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_one_image_and_its_file(tmp_path, model_file, suffix, capsys):
    Image.fromarray(noise(8, 9, 3)).save(tmp_path / "a.png")
    target = tmp_path / "new" / f"large{suffix}"
    command = [tmp_path / "a.png", "--output", target, "--model", model_file]
    assert run(*command) == 0
    first = read_picture(target)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert "1 of 1 image upscaled" in capsys.readouterr().out
    target.write_bytes(b"mine")
    assert run(*command) == 2
    assert target.read_bytes() == b"mine"
    assert f"{target}: there already; --overwrite replaces it" in capsys.readouterr().err
    assert run(*command, "--overwrite") == 0
    assert np.array_equal(read_picture(target).pixels, first.pixels)


@pytest.mark.parametrize("named", [[], ["--model", "andnet_compact_x4"]])
def test_the_pretrained_model(tmp_path, capsys, named):
    pixels = picture(tmp_path / "a.png", 21, 34)
    plain = ["--precision", "float32", "--device", "cpu"]
    assert run(tmp_path / "a.png", "--output", tmp_path / "out", *named, *plain) == 0
    assert "model andnet_compact_x4: x4, on cpu in float32" in capsys.readouterr().out
    result = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    expected = Upscaler(load_pretrained("andnet_compact_x4")).pixels(pixels)
    assert np.abs(result.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("kind", [*FORMATS, "same"])
def test_all_that_a_file_holds_is_kept(tmp_path, kind):
    """16 bits, transparency and the colour profile, through a network that repeats pixels."""
    save_model(nearest(2), tmp_path / "m.pth")
    pixels = noise(8, 9, 4, np.uint16)
    pixels[..., 3] |= 0x100
    write_picture(tmp_path / "in" / "a.tif", Picture(pixels, SRGB))
    out = tmp_path / "out"
    assert run(tmp_path / "in", "--output", out, "--model", tmp_path / "m.pth", "--format", kind) == 0
    (path,) = out.iterdir()
    assert path.suffix == FORMATS.get(kind, ".tif")
    found = read_picture(path)
    assert found.icc == SRGB
    if path.suffix in (".png", ".tif"):
        np.testing.assert_array_equal(found.pixels, pixels.repeat(2, 0).repeat(2, 1))
    else:
        assert found.pixels.shape == (16, 18, 3 if kind == "jpeg" else 4)


def test_what_is_lost_of_colours_is_told(tmp_path, model_file, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(noise(8, 9, 3), before=[chunk(b"cICP", bytes([9, 16, 0, 1]))]))
    icc = chunk(b"iCCP", b"name\0\0" + zlib.compress(profile(b"GRAY")))
    (tmp_path / "in" / "b.png").write_bytes(png(noise(8, 9, 3), before=[icc]))
    command = [tmp_path / "in", "--model", model_file]
    assert run(*command, "--output", tmp_path / "kept") == 0
    (told,) = capsys.readouterr().err.splitlines()
    assert re.match(r"warning: .*b\.png: its colour profile is one of GRAY, its pixels are RGB: not used", told)
    assert b"cICP\x09\x10\0\1" in (tmp_path / "kept" / "a.png").read_bytes()
    assert run(*command, "--output", tmp_path / "lost", "--format", "jpeg") == 0
    first, second = sorted(capsys.readouterr().err.splitlines())
    assert re.match(r"warning: .*a\.png: cICP, which tell of its colours, are left out", first)
    assert "b.png" in second


def test_another_factor(tmp_path, model_file):
    pixels = picture(tmp_path / "a.png", 20, 30)
    assert run(tmp_path / "a.png", "--output", tmp_path / "out", "--model", model_file, "--output-scale", 1.5,
               "--precision", "float32") == 0  # fmt: skip
    result = np.asarray(Image.open(tmp_path / "out" / "a.png")).astype(int)
    assert result.shape == (30, 45, 3)
    assert np.abs(result - Upscaler(compact()).pixels(pixels, 1.5)).max() <= 1


def test_results_that_are_there_are_not_made_again(tmp_path, model_file, capsys):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "in" / name)
    command = [tmp_path / "in", "--output", tmp_path / "out", "--model", model_file]
    assert run(*command) == 0
    capsys.readouterr()
    (tmp_path / "out" / "b.png").unlink()
    (tmp_path / "out" / "a.png").write_text("mine")
    assert run(*command) == 0
    assert "1 of 3 images upscaled" in (said := capsys.readouterr().out)
    assert "2 there already" in said
    assert (tmp_path / "out" / "a.png").read_text() == "mine"
    assert run(*command, "--overwrite") == 0
    assert "3 of 3 images upscaled" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "a.png").size == (28, 18)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_named_and_skipped(tmp_path, model_file, capsys, workers):
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:60])
    (tmp_path / "in" / "c.jpg").write_text("no image")
    picture(tmp_path / "in" / "sub" / "d.png", 1, 1)
    picture(tmp_path / "in" / "sub" / "e.png", 10, 20)
    command = [tmp_path / "in", "--output", tmp_path / "out", "--model", model_file, "--max-pixels", 199]
    assert run(*command, "--device", "cpu", "--workers", workers) == 1
    told = capsys.readouterr()
    assert "2 of 5 images upscaled" in told.out
    assert "3 failed" in told.out
    failures = told.err.splitlines()
    assert len(failures) == 3
    assert "b.png" in failures[0]
    assert "c.jpg" in failures[1]
    assert "e.png: 20 x 10 pixels; more than 199 are refused" in failures[2]
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["a.png", "sub/d.png"]
    assert Image.open(tmp_path / "out" / "sub" / "d.png").size == (2, 2)


def test_results_too_large_for_their_format_or_the_memory(tmp_path, model_file, capsys, monkeypatch):
    Image.new("L", (9000, 1)).save(tmp_path / "a.png")
    command = [tmp_path / "a.png", "--output", tmp_path / "out", "--model", model_file]
    assert run(*command, "--format", "webp") == 1
    assert "a.png: 18000 x 2 pixels are too many for .webp: 16383 a side" in capsys.readouterr().err
    monkeypatch.setattr(formats, "free_memory", lambda device: 30_000)
    assert run(*command) == 1
    assert "a.png: the result, 18000 x 2 pixels, needs 0.0 GiB of 0.0 GiB free" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--format", "avif", "--output", "out"], ["--output", "new.avif"]])
def test_where_pillow_writes_no_avif(tmp_path, model_file, capsys, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("andfast.inference.output_paths.avif_problem", lambda: "of a format that Pillow 11.3")
    picture(tmp_path / "a.png")
    assert run("a.png", *arguments, "--model", model_file) == 2
    said = "--format avif" if "out" in arguments else "--output new.avif"
    assert capsys.readouterr().err == f"error: {said}: of a format that Pillow 11.3\n"


def test_what_is_computed_is_stored_when_the_caller_stops(monkeypatch):
    """Also if the thread that stores it has not begun."""
    slow_start = functools.partial(ThreadPoolExecutor, initializer=lambda: time.sleep(0.1))
    monkeypatch.setattr("andfast.inference.pipeline.ThreadPoolExecutor", slow_start)
    stored = []

    def make(item, loaded):
        if item == 1:
            raise KeyboardInterrupt
        return loaded

    with pytest.raises(KeyboardInterrupt):
        list(pipeline(range(4), lambda item: item, make, lambda item, made: stored.append(item), 2))
    assert stored == [0]


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted(tmp_path, model_file, capsys, monkeypatch, workers):
    """What was begun is finished, nothing is half written, and the same command makes the rest."""
    for number in range(9):
        picture(tmp_path / "in" / f"{number}.png")
    calls, real = [], Upscaler.pixels

    def pixels(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(Upscaler, "pixels", pixels)
    command = [tmp_path / "in", "--output", tmp_path / "out", "--model", model_file, "--workers", workers]
    assert run(*command) == 130
    assert "interrupted: the same command goes on from here" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "2.png"]
    assert run(*command) == 0
    assert "6 of 9 images upscaled" in capsys.readouterr().out


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
    monkeypatch.setattr(Upscaler, "pixels", fail)
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
        (
            ["{tmp}/a.png", "--model", "andnet_compact_x4.pth"],
            "nor a pretrained model; those are andnet",
        ),
        (["{tmp}/a.png", "--model", "{tmp}/a.png"], "not a model file"),
        (["{tmp}/a.png", "--model", "{tmp}/broken.pth"], "broken.pth"),
        (["{tmp}/none.png", "--model", "{model}"], "none.png: no such file or folder"),
        (["{tmp}/empty", "--model", "{model}"], "empty: no images"),
        (["{tmp}/a.png", "--model", "{model}", "--output", "{tmp}"], "would be overwritten"),
        (["{tmp}/a.png", "--model", "{model}", "--output", "{tmp}/a.png"], "is an input and would be overwritten"),
        (["{tmp}/a.png", "--model", "{model}", "--output", "{model}"], "not a folder"),
        (["{tmp}", "--model", "{model}", "--output", "{tmp}/new.png"], "is a folder; give a folder"),
        (["{tmp}/a.png", "{tmp}/a.png", "--model", "{model}", "--output", "{tmp}/new.png"], "there are 2 inputs; give"),
        (
            ["{tmp}/a.png", "--model", "{model}", "--output", "{tmp}/new.heic"],
            ".heic is not written; give a",
        ),
        (["{tmp}/none.png", "--model", "{model}", "--output", "{tmp}/new.png"], "none.png: no such file or folder"),
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


@pytest.mark.parametrize(
    "wrong",
    [
        ["--tile", "-1"],
        ["--overlap", "-2"],
        ["--precision", "int8"],
        ["--tile", "x"],
        ["--output-scale", "0"],
        ["--output-scale", "nan"],
        ["--quality", "101"],
        ["--format", "gif"],
        ["--compile", "auto"],
        ["--workers", "-1"],
        ["--max-pixels", "0"],
    ],
)
def test_wrong_options(tmp_path, model_file, capsys, wrong):
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, "--output", tmp_path, "--model", model_file, *wrong)
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_as_a_command(tmp_path, model_file):
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    command = [sys.executable, "-m", "andfast.upscale", tmp_path, "--output", tmp_path / "out", "--model", model_file]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()  # nothing else, as a warning of Python's about how it was started
    assert line.startswith(f"failed: {tmp_path / 'b.png'}: ")
    assert (tmp_path / "out" / "a.png").is_file()


# The call


def test_the_command_is_an_ordinary_module():
    assert isinstance(upscale, types.ModuleType)
    assert not callable(upscale)
    assert andfast.upscale_image is upscale_image


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 2), (5, 6, 3), (5, 6, 4)])
def test_arrays(shape, dtype):
    image = noise(5, 6, int(np.prod(shape[2:])), np.uint16).reshape(shape)
    image = (image / 65535).astype(dtype) if dtype.startswith("f") else image.astype(dtype)
    large = andfast.upscale_image(image, compact())
    assert isinstance(large, np.ndarray)
    assert (large.dtype, large.shape) == (image.dtype, (10, 12, *shape[2:]))
    if shape[2:] in ((), (3,)):
        levels = np.iinfo(dtype).max if image.dtype.kind == "u" else 1
        given = torch.from_numpy((image / levels).astype(np.float32).reshape(5, 6, -1)).permute(2, 0, 1)[None]
        expected = compact()(given.expand(1, 3, -1, -1)).detach()[0].permute(1, 2, 0)
        expected = expected if shape[2:] else expected.mean(2)  # gray, as the network sees it
        error = np.abs(large / levels - expected.clamp(0, 1).numpy())
        assert error.max() < (0.51 / levels if levels > 1 else 0) + 1e-5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5, 6), (1, 5, 6), (2, 3, 5, 6), (2, 4, 5, 6)])
def test_tensors(shape, dtype):
    image = torch.rand(shape)
    image = (image * 255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    large = andfast.upscale_image(image, compact())
    assert (large.dtype, large.shape, large.device) == (dtype, (*shape[:-2], 10, 12), image.device)
    assert not large.requires_grad
    if dtype == torch.float32 and shape == (2, 3, 5, 6):
        torch.testing.assert_close(large, compact()(image).detach().clamp(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "after"),
    [("L", "L"), ("LA", "LA"), ("P", "RGB"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("1", "L"), ("I;16", "I;16")],
)
def test_images_of_pillow(mode, after):
    image = Image.fromarray(noise(5, 6, 3)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(noise(5, 6, 1, np.uint16)[..., 0])
    image.info["icc_profile"] = icc = profile(b"RGB " if after.startswith("RGB") else b"GRAY")
    large = andfast.upscale_image(image, nearest(2))
    assert (large.mode, large.size, large.info["icc_profile"]) == (after, (12, 10), icc)
    if mode in ("L", "RGB", "I;16"):
        np.testing.assert_array_equal(np.asarray(large), np.asarray(image).repeat(2, 0).repeat(2, 1))


def test_a_profile_of_other_pixels_is_not_put_on_the_result():
    image = Image.fromarray(noise(5, 6, 1)[..., 0])
    image.info["icc_profile"] = SRGB
    with pytest.warns(UserWarning, match="its colour profile is one of RGB, its pixels are GRAY: not used"):
        assert "icc_profile" not in andfast.upscale_image(image, nearest(2)).info


def test_models_by_name_and_file(model_file):
    image = noise(6, 7, 3)
    assert andfast.upscale_image(image).shape == (24, 28, 3)
    by_file = andfast.upscale_image(image, model_file, output_scale=3)
    assert by_file.shape == (18, 21, 3)
    np.testing.assert_array_equal(by_file, andfast.upscale_image(image, str(model_file), 3))
    np.testing.assert_array_equal(by_file, Upscaler(compact()).pixels(image, 3))


@pytest.mark.parametrize(
    ("image", "error", "said"),
    [
        ([[1]], TypeError, "not a list"),
        (np.zeros((3, 3, 3), np.int32), TypeError, "not of int32"),
        (np.zeros((3, 3, 5), np.uint8), ValueError, "not \\(3, 3, 5\\)"),
        (np.zeros((0, 3, 3), np.uint8), ValueError, "empty"),
        (torch.zeros(3, 3), ValueError, "not \\(3, 3\\)"),
        (torch.zeros(3, 3, 3, dtype=torch.bool), TypeError, "not of torch.bool"),
        (Image.new("F", (3, 3)), ValueError, "kind F"),
    ],
)
def test_what_is_no_image(image, error, said):
    with pytest.raises(error, match=said):
        andfast.upscale_image(image, compact())


def test_no_factor():
    for factor in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="output_scale must be above 0"):
            andfast.upscale_image(noise(3, 3, 3), compact(), factor)


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">u2", "<u2"])
def test_arrays_of_either_byte_order(dtype):
    image = (noise(6, 5, 3) / 255).astype(dtype) if "f" in dtype else noise(6, 5, 3, np.uint16).astype(dtype)
    native = image.astype(image.dtype.newbyteorder("="))
    np.testing.assert_array_equal(andfast.upscale_image(image, nearest(2)), andfast.upscale_image(native, nearest(2)))


@pytest.mark.parametrize("of", [np.asarray, lambda image: torch.from_numpy(image).permute(2, 0, 1)])
def test_floating_point_far_beyond_1_is_refused(of):
    with pytest.raises(ValueError, match="divide 0 to 255 by 255"):
        andfast.upscale_image(of(np.full((6, 5, 3), 200, np.float32)), nearest(2))
