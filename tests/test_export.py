"""The export command: its files are run by the programs they are for, or by what these load them with."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from andfast import export
from andfast.inference.upscaler import upscale_tensor
from andfast.models import Compact, RRDBNet, load_model, save_model
from andfast.models.onnx_files import load_onnx
from andfast.pretrained import DEFAULT, FOLDER
from andfast.utils.torchvision_operators import declare_missing

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

RRDB = {"features": 8, "blocks": 1}  # spandrel takes a growth of 32 for granted
MODELS = {
    "rrdbnet-x8": lambda: RRDBNet(8, **RRDB),
    "rrdbnet-x4": lambda: RRDBNet(4, **RRDB),
    "rrdbnet-x2": lambda: RRDBNet(2, **RRDB),
    "rrdbnet-x1": lambda: RRDBNet(1, **RRDB),
    "compact-x4": lambda: Compact(4, features=8, convs=2),
    "compact-x2": lambda: Compact(2, features=8, convs=2),
    "compact-x1": lambda: Compact(1, features=8, convs=2),
    "compact-leakyrelu": lambda: Compact(2, features=8, convs=2, activation="leakyrelu"),
}


def make(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():  # as if trained: slopes, biases and the last convolution away from where they start
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "in" / "m.safetensors"
    save_model(make("compact-x2"), path, {"updates": 7})
    return path


def run(*arguments):
    return export.main([str(argument) for argument in arguments])


def onnx_session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "compact-x2"])  # which the command exports, below
def test_onnx_takes_any_size(tmp_path, name):
    model = make(name)
    assert export.export(model, tmp_path / "m.onnx", {"updates": "7"}) < 1e-5
    session = onnx_session(tmp_path / "m.onnx")
    (entry,), (exit_,) = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.type, entry.shape) == ("input", "tensor(float)", ["batch", 3, "height", "width"])
    assert exit_.name == "output"
    for size in ((1, 3, 16, 16), (2, 3, 19, 33), (1, 3, 4, 5), (3, 3, 5, 6), (1, 3, 6, 7), (1, 3, 40, 4)):
        image = torch.rand(size)
        with torch.no_grad():
            expected = model(image)
        (found,) = session.run(None, {"input": image.numpy()})
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-5)
    assert expected.std() > 0.01
    told = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert told.items() >= {"scale": str(model.scale), "architecture": name.split("-")[0], "updates": "7"}.items()


@pytest.mark.parametrize("name", ["rrdbnet-x2", "compact-x4"])
def test_half_onnx_takes_and_makes_half(tmp_path, name):
    model = make(name)
    told = export.export(model, tmp_path / "m.onnx", {}, torch.float16)
    assert 0 < told < 0.02
    session = onnx_session(tmp_path / "m.onnx")
    assert [port.type for port in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float16)"] * 2
    image = torch.rand(1, 3, 9, 15)
    (found,) = session.run(None, {"input": image.half().numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(image).numpy(), rtol=0, atol=0.02)
    weights = onnx.load(tmp_path / "m.onnx").graph.initializer
    assert {weight.data_type for weight in weights if len(weight.dims) == 4} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("name", ["rrdbnet-x8", "rrdbnet-x2", "rrdbnet-x1", "compact-x4", "compact-x1"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_spandrel_runs_the_files(tmp_path, name, suffix, dtype):
    declare_missing()
    import spandrel

    model = make(name)
    told = export.export(model, tmp_path / f"m{suffix}", {}, dtype)
    assert told == 0 if dtype == torch.float32 else 0 < told < 0.01
    theirs = spandrel.ModelLoader().load_from_file(tmp_path / f"m{suffix}").eval()
    assert theirs.scale == model.scale
    image = torch.rand(1, 3, 13, 10)
    with torch.no_grad():
        found, expected = theirs.model(image), model(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.01)


@pytest.mark.parametrize("half", [False, True])
def test_the_command_writes_all_formats(tmp_path, model_file, capsys, half):
    names = ("m.safetensors", "m.pth", "M.ONNX")
    outputs = [tmp_path / "out" / name for name in names]
    assert run(model_file, "--output", *outputs, *["--half"] * half) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{path}: float{16 if half else 32}") for line, path in zip(lines, outputs, strict=True))
    weights = torch.load(outputs[1], weights_only=True)
    assert list(weights) == ["params_ema", "metadata"]
    assert weights["metadata"]["updates"] == "7"  # what was recorded stays
    wanted = torch.float16 if half else torch.float32
    assert {value.dtype for value in weights["params_ema"].values()} == {wanted}
    image = torch.rand(1, 3, 8, 11)
    expected = upscale_tensor(load_model(model_file), image)
    for reloaded in (load_model(outputs[0]), load_model(outputs[1]), load_onnx(outputs[2])):
        with torch.no_grad():
            torch.testing.assert_close(reloaded(image), expected, rtol=0, atol=0.01 if half else 1e-5)


def test_the_pretrained_model(tmp_path, capsys):
    assert run(DEFAULT, "--output", tmp_path / "m.onnx") == 0
    assert "differ by at most" in capsys.readouterr().out
    image = torch.rand(1, 3, 21, 30)
    expected = upscale_tensor(load_model(FOLDER / f"{DEFAULT}.safetensors"), image)
    torch.testing.assert_close(load_onnx(tmp_path / "m.onnx")(image), expected, rtol=0, atol=1e-5)


def test_a_file_that_differs_is_not_left(tmp_path, model_file, capsys, monkeypatch):
    """A reader that makes something else of it: the file that was there stays."""
    target = tmp_path / "m.safetensors"
    target.write_text("before")
    monkeypatch.setattr(export, "find_model", lambda path: lambda image: make("compact-x2")(image) + 0.01)
    with pytest.raises(export.ExportError, match=r"differ from the model's by 0\.01"):
        export.export(make("compact-x2"), target, {})
    assert target.read_text() == "before"
    monkeypatch.setattr(export, "find_model", lambda path: make("compact-x4"))
    with pytest.raises(export.ExportError, match=r"it makes \(1, 3, 96, 96\) where the model makes \(1, 3, 48, 48\)"):
        export.export(make("compact-x2"), target, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "m.safetensors"]


def test_weights_beyond_float16(tmp_path, capsys):
    model = make("compact-x2")
    with torch.no_grad():
        model.body[0].weight[0] = 1e5
    save_model(model, tmp_path / "m.pth")
    assert run(tmp_path / "m.pth", "--half", "--output", tmp_path / "h.pth") == 1
    assert "no finite numbers in float16" in capsys.readouterr().err
    assert not (tmp_path / "h.pth").exists()


def test_one_file_that_fails_does_not_stop_the_others(tmp_path, model_file, capsys):
    (tmp_path / "file").write_text("no folder")
    assert run(model_file, "--output", tmp_path / "file" / "a.pth", tmp_path / "b.pth") == 1
    told = capsys.readouterr()
    assert "a.pth" in told.err
    assert len(told.err.splitlines()) == 1
    assert str(tmp_path / "b.pth") in told.out
    assert load_model(tmp_path / "b.pth").scale == 2


@pytest.mark.parametrize("missing", [["onnx"], ["onnxruntime"], ["onnx", "onnxruntime"]])
def test_missing_packages_are_said_before_anything_is_written(tmp_path, model_file, capsys, monkeypatch, missing):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in missing else object())
    assert run(model_file, "--output", tmp_path / "a.pth", tmp_path / "a.onnx") == 2
    told = capsys.readouterr().err
    assert f"ONNX files need {' and '.join(missing)}: run `pip install 'onnx>=1.16' 'onnxruntime>=1.18'`" in told
    assert not (tmp_path / "a.pth").exists()


def test_packages_that_cannot_be_imported_are_said_with_the_cause(tmp_path, model_file, capsys, monkeypatch):
    (tmp_path / "onnx.py").write_text("raise AttributeError('module ml_dtypes has no attribute float4_e2m1fn')")
    monkeypatch.delitem(sys.modules, "onnx", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert run(model_file, "--output", tmp_path / "a.onnx") == 2
    told = capsys.readouterr().err
    assert "ONNX files need onnx: run `pip install" in told
    assert "onnx: it cannot be imported (AttributeError: module ml_dtypes has no attribute" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["{tmp}/none.pth", "--output", "{tmp}/a.pth"],
            "none.pth: no such file (.safetensors, .pth, .pt, .ckpt, .bin), nor a pretrained model; those are",
        ),
        (["{tmp}/broken.pth", "--output", "{tmp}/a.pth"], "broken.pth: not a file of PyTorch weights"),
        (["{model}", "--output", "{tmp}/a.pth", "{tmp}/a.ncnn"], "a.ncnn: a file ends in .safetensors, .pth, .pt or"),
        (["{model}", "--output", "{tmp}/a.pth", "{tmp}/in/../a.pth"], "names a file twice"),
        (["{model}", "--output", "{model}", "--half"], "would be overwritten"),
        (["{model}", "--output", "{tmp}/folder.onnx"], "a folder"),
    ],
)
def test_nothing_is_begun(tmp_path, model_file, capsys, arguments, said):
    (tmp_path / "broken.pth").write_bytes(b"x")
    (tmp_path / "folder.onnx").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert run(*[argument.format(tmp=tmp_path, model=model_file) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert sorted(tmp_path.rglob("*")) == before


def test_as_a_command(tmp_path, model_file):
    """Without a word of PyTorch's exporter about itself."""
    command = [sys.executable, "-m", "andfast.export", str(model_file), "--output", str(tmp_path / "m.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "m.onnx: float32" in done.stdout
