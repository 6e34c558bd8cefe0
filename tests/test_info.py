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


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """Importing all of them takes seconds."""
    monkeypatch.setattr(info, "OPTIONAL", ("tensorboard", "wandb"))


def test_json(capsys):
    info.main(["--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["versions"]["torch"] == torch.__version__
    assert shown["devices"]["cpu"]["threads"] == torch.get_num_threads()
    assert len(shown["devices"]) == 1 + torch.cuda.device_count()
    assert shown["pretrained"] == pretrained_names()
    assert shown["operations"] == dispatch.status()
    assert shown["kernels"]["cpu"] == kernel_table.table(torch.device("cpu")).summary()
    assert set(shown["optional"]) == {"tensorboard", "wandb"}


def test_text_gives_the_reason(capsys, monkeypatch):
    monkeypatch.setitem(dispatch.unavailable, "cpu", "it is not built")
    info.main([])
    shown = capsys.readouterr().out
    assert "projected_step" in shown
    assert "it is not built" in shown
    assert "ready" in shown


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
