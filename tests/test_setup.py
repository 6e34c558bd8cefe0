"""Installing where the compiler is missing or broken."""

import shutil
import sys

import pytest
from setuptools import distutils  # Python has none of its own from 3.12 on

from andfast.ops import _extension

pytestmark = pytest.mark.skipif(_extension.CHECKOUT is None, reason="needs a checkout")


def build(folder, monkeypatch, **environment):
    """Run setup.py's build_ext in a process that is this one; what it leaves goes to `folder`."""
    monkeypatch.chdir(_extension.CHECKOUT)
    # Both are set by setup.py for torch; so they are forgotten after the test.
    for name, value in {"TORCH_CUDA_ARCH_LIST": "8.0", "TORCH_DONT_CHECK_COMPILER_ABI": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    places = ["--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
    return distutils.core.run_setup("setup.py", ["--quiet", "build_ext", *places])


@pytest.mark.parametrize("compiler", ["false", "/no/such/c++", "no such c++", '"c++'])
def test_compilers_that_do_not_work(tmp_path, monkeypatch, capfd, compiler):
    build(tmp_path, monkeypatch, CC=compiler, CXX=compiler, ANDFAST_CUDA="0")
    told = capfd.readouterr().err
    assert "andfast: the C++ extension was not built; the slower references will be used instead." in told
    assert "andfast: it needs a C++17 compiler (g++ or clang++). What failed: " in told
    assert not list(tmp_path.rglob("_C*.so"))


@pytest.mark.skipif(shutil.which("env") is None, reason="needs env")
def test_compilers_behind_a_wrapper_are_asked_to_compile(tmp_path, monkeypatch, capfd):
    """As ccache: torch would ask `env` itself which version of g++ it is."""
    seen = tmp_path / "seen"
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {seen}\nexit 1\n')
    compiler.chmod(0o755)
    build(tmp_path, monkeypatch, CC=f"env {compiler}", CXX=f"env {compiler}", ANDFAST_CUDA="0")
    assert "bindings.cpp" in seen.read_text()
    assert "the C++ extension was not built" in capfd.readouterr().err


def test_nothing_is_compiled_for_windows(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "platform", "win32")
    assert not build(tmp_path, monkeypatch).has_ext_modules()
    assert "the C++ extension is not made for Windows; the references in plain PyTorch" in capfd.readouterr().err
