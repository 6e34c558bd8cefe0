"""The list of failures that `bench/gpu.sh` ends with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench import failures

TESTS = """
import pytest

@pytest.mark.parametrize("size", [1, 2, 3])
def test_shapes(size):
    raise RuntimeError(f"kernel failed at 0x{size}f with {size} images\\nand more")

@pytest.fixture
def broken():
    raise OSError("no device")

def test_fixture(broken):
    pass

def test_passes():
    pass
"""


def test_equal_failures_are_one_kind_and_the_most_frequent_comes_first(tmp_path: Path, capsys) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    result, output = tmp_path / "result.xml", tmp_path / "failures.md"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={result}", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert done.returncode == 1
    failures.main([str(result), "--output", str(output)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "failures:"
    assert lines[1].startswith(
        "     3 x RuntimeError: kernel failed at 0x1f with 1 images (first: test_it::test_shapes[1]"
    )
    assert lines[2].startswith("     1 x ")
    assert "no device" in lines[2]
    assert len(lines) == 3
    written = output.read_text()
    assert "- test_it::test_shapes[3]" in written
    assert 'raise RuntimeError(f"kernel failed' in written  # the traceback
    assert written.index("kernel failed") < written.index("no device")
    assert "test_passes" not in written


def test_no_failures(tmp_path: Path, capsys) -> None:
    failures.main(["--output", str(tmp_path / "failures.md")])
    assert capsys.readouterr().out == "no test failed\n"
    assert (tmp_path / "failures.md").read_text() == "# Failures\n\nNone.\n"


def test_kernels_are_listed_with_times_and_problems() -> None:
    found = {"device": "a GPU", "kernels": {"blur_pool float32": "cuda 1 ms"}, "problems": {"conv triton": "NaN" * 99}}
    lines = failures.kernels({"kernels": {"cuda:0": found}})
    assert lines[0] == "  cuda:0: blur_pool float32: cuda 1 ms"
    assert lines[1] == f"  cuda:0: not used: conv triton: {('NaN' * 99)[:200]}"
