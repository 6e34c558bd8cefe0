"""The command that serves the page: options that are wrong, in one line, before anything is served."""

import importlib.util
import socket
import sys

import pytest

from andfast.demo.__main__ import main

gradio = pytest.importorskip("gradio")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "missing.pth"], "missing.pth: no such file"),
        (["--device", "cuda"], "PyTorch sees no CUDA device"),
        (["--host", "203.0.113.1"], "--host 203.0.113.1 --port 7860: "),
    ],
)
def test_nothing_is_begun(arguments, said, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 2
    assert f"--host 127.0.0.1 --port {port}: Address already in use" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--max-pixels", "0"], ["--tile", "x"], ["--share"]])
def test_options_that_are_none(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_without_gradio(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([]) == 2
    assert capsys.readouterr().err == "error: the page needs gradio: pip install 'gradio>=6.31,<7'\n"


def test_a_gradio_that_cannot_be_imported(capsys, monkeypatch, tmp_path):
    (tmp_path / "gradio.py").write_text("raise TypeError('pydantic wants another release')")
    monkeypatch.delitem(sys.modules, "gradio")
    monkeypatch.syspath_prepend(tmp_path)
    assert main([]) == 2
    wanted = "error: the page needs gradio: pip install 'gradio>=6.31,<7'; it cannot be imported (TypeError: pydantic"
    assert capsys.readouterr().err.startswith(wanted)
