import json
import shutil
import subprocess
import sys

import pytest
import torch

from andfast import info
from andfast.evaluation import environment
from andfast.ops import dispatch, kernel_table
from andfast.pretrained import pretrained_names
from andfast.utils import optional


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """Importing all of them takes seconds."""
    monkeypatch.setattr(info, "EXTRAS", {name: optional.EXTRAS[name] for name in ("tensorboard", "wandb", "export")})


def test_json(capsys):
    info.main(["--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["versions"]["torch"] == torch.__version__
    assert shown["devices"]["cpu"]["threads"] == torch.get_num_threads()
    assert len(shown["devices"]) == 1 + torch.cuda.device_count()
    assert shown["pretrained"] == pretrained_names()
    assert shown["operations"] == dispatch.status()
    assert shown["kernels"]["cpu"] == kernel_table.table(torch.device("cpu")).summary()
    assert set(shown["optional"]) == {"tensorboard", "wandb", "onnx", "onnxruntime"}
    assert shown["verdict"].startswith("Ready: ")


def test_text_gives_the_reason_and_each_repair_once(capsys, monkeypatch):
    for backend in ("cpu", "cuda"):
        monkeypatch.setitem(dispatch.unavailable, backend, "it is not built. To fix it: run `pip install -e .`")
    info.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.endswith("built")] == [
        [backend, "it", "is", "not", "built"] for backend in ("cuda", "cpu")
    ]
    assert "  reference           ready" in lines
    assert sum("To fix it" in line for line in lines) == 1
    assert "plain PyTorch on the CPU" in lines[-1]
    assert "but it is not built. To fix it: run `pip install -e .`. No GPU" in lines[-1]


def test_operations_that_differ_are_named(capsys, monkeypatch):
    operations = {"a": dict.fromkeys(dispatch.BACKENDS), "b": dict.fromkeys(dispatch.BACKENDS, "not implemented")}
    monkeypatch.setattr(info, "collect", lambda: environment.collect() | {"operations": operations})
    info.main([])
    assert "  triton              ready: a\n  triton              not implemented: b\n" in capsys.readouterr().out


def test_extras_that_are_not_whole_are_named_with_the_command(capsys, monkeypatch):
    monkeypatch.setattr(info, "problem_of", lambda name: info.NOT_INSTALLED if name == "onnx" else None)
    info.main([])
    lines = [line for line in capsys.readouterr().out.splitlines() if "pip install" in line]
    assert lines == ["  export              not installed: pip install 'onnx>=1.16' 'onnxruntime>=1.18'"]


@pytest.mark.parametrize(
    ("gpus", "unusable", "said"),
    [
        ({}, (), "No GPU."),
        ({"cuda:0": {"name": "H"}}, (), "cuda:0: Triton kernels on H."),
        ({"cuda:0": {"name": "H"}, "cuda:1": {"name": "V"}}, ("triton", "cuda"), "cuda:1: plain PyTorch on V."),
        ({"cuda": {"problem": "the driver is too old"}}, (), "No GPU can be used: the driver is too old."),
    ],
)
def test_the_verdict_on_gpus(gpus, unusable, said, monkeypatch):
    monkeypatch.setattr(info.shutil, "which", lambda name: None)
    monkeypatch.setattr(dispatch, "problem_on", lambda device, name: "" if name in unusable else None)
    assert info.verdict({"devices": {"cpu": {"capability": "AVX2"}} | gpus}).endswith(said)


def test_the_verdict_on_a_torch_for_cpus_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(info.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "install a torch for CUDA" in info.verdict({"devices": {"cpu": {"capability": "AVX2"}}})


def test_broken_packages_are_named_with_the_cause(capsys, monkeypatch, tmp_path):
    (tmp_path / "wandb.py").write_text("raise RuntimeError('made for another Python')")
    monkeypatch.setitem(sys.modules, "wandb", None)
    del sys.modules["wandb"]
    monkeypatch.syspath_prepend(tmp_path)
    info.main([])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  wandb "))
    assert line.endswith(", but it cannot be imported (RuntimeError: made for another Python)")


def test_a_driver_that_fails(monkeypatch, capsys):
    def fail():
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(torch.cuda, "device_count", fail)
    info.main(["--json"])
    assert json.loads(capsys.readouterr().out)["devices"]["cuda"] == {"problem": "CUDA driver initialization failed"}


def test_a_measurement_s_machine():
    machine = environment.machine()
    assert machine["versions"]["torch"] == torch.__version__
    assert machine["devices"]["cpu"]["threads"] == torch.get_num_threads()
    json.dumps(machine)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_checkout_the_package_is_part_of(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    package = tmp_path / "environment" / "andfast" / "info.py"
    package.parent.mkdir(parents=True)
    package.write_text("first\n")
    (tmp_path / "other.py").write_text("of another project\n")
    git("init")
    git("add", "other.py")
    git("commit", "-m", "another project")
    monkeypatch.setattr(environment, "__file__", str(package))
    assert environment.commit() is None
    git("add", ".")
    git("commit", "-m", "with the package")
    assert environment.commit() == git("describe", "--always")
    package.write_text("changed\n")
    assert environment.commit() == git("describe", "--always") + "-dirty"
