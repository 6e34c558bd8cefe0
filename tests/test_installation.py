"""What a user gets from pip: the package as a wheel, with and without a compiler, in an environment of its own."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT
from PIL import Image
from study_images import photograph

from andfast.inference.upscale_image import upscale_image
from andfast.ops import _extension
from andfast.pretrained import load_pretrained, pretrained_names
from andfast.training.options import parse_config

pytestmark = pytest.mark.skipif(_extension.CHECKOUT is None, reason="needs a checkout")

# What stands in a compiler's place on a new Mac.
APPLES = "xcode-select: note: no developer tools were found at '/Applications/Xcode.app'"


class Environment:
    """A virtual environment with this one's packages but andfast."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        (self.packages,) = folder.glob("**/site-packages")
        # As plain folders, so that their own .pth files, an editable andfast's among them, are not read.
        shared = [path for path in sys.path if path.endswith("-packages")]
        (self.packages / "shared.pth").write_text("\n".join(shared))
        self.python = next(path for path in folder.glob("*/python*") if path.stem == "python")

    def run(self, *words: object, **variables: str) -> str:
        """Run its Python somewhere else than in the checkout, without a compiler on the PATH; returns all it prints."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC", "CXX")}
        kept |= {"PATH": str(self.python.parent), "ANDFAST_CUDA": "0", "ANDFAST_MEASURE": "0", **variables}
        done = subprocess.run(
            [self.python, *map(str, words)], cwd=self.packages, env=kept, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def pip(self, *words: object, **variables: str) -> str:
        """Run pip without asking an index; -v, since it shows what setup.py says only then."""
        offline = ("--no-index", "--no-deps", "--no-build-isolation")
        return self.run("-m", "pip", words[0], "-v", *offline, *words[1:], **variables)

    def check(self, tmp_path: Path) -> str:
        """Use the installed package; returns what it prints."""
        photo = photograph(0, 12)
        Image.fromarray(photo).save(tmp_path / "photo.png")
        printed = self.run("-m", "andfast.upscale", tmp_path / "photo.png", "--output", tmp_path / "large.png")
        expected = upscale_image(photo, load_pretrained()).astype(int)
        found = np.asarray(Image.open(tmp_path / "large.png")).astype(int)
        assert abs(found - expected).max() <= 1
        return printed


def copy_checkout(folder: Path) -> Path:
    """The checkout as a source distribution holds it, without what was built in it."""
    built = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("andfast", "csrc"):
        shutil.copytree(_extension.CHECKOUT / name, folder / name, ignore=built)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(_extension.CHECKOUT / name, folder)
    return folder


def build_wheel(environment: Environment, checkout: Path, folder: Path, **variables: str) -> tuple[list[str], str]:
    """Build the wheel of a checkout into a folder; returns the files in it, and what pip printed."""
    printed = environment.pip("wheel", "--wheel-dir", folder, checkout, **variables)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist(), printed


@pytest.mark.skipif(_extension.problem is not None, reason="needs the extension")
def test_a_wheel_works_where_there_is_no_compiler(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    checkout = copy_checkout(tmp_path / "checkout")
    # Compiling takes minutes: setuptools finds it done, by a library that is newer than its sources.
    (library,) = _extension.PACKAGE.glob("_C*.so")
    done = checkout / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "andfast"
    done.mkdir(parents=True)
    shutil.copy(library, done)
    files, _ = build_wheel(environment, checkout, tmp_path / "wheels")
    assert library.name in {Path(name).name for name in files}
    assert {name.partition("/")[0] for name in files} == {"andfast", "andfast-0.1.0.dist-info"}
    for kind in (".py", ".css", ".yaml", ".safetensors", ".npz", ".typed", ".png"):
        assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "andfast").rglob(f"*{kind}")} <= set(files), kind
    (wheel,) = (tmp_path / "wheels").glob("andfast-*-cp310-abi3-*.whl")  # for any Python from 3.10 on

    environment.pip("install", wheel)
    assert "cannot be used" not in environment.check(tmp_path)
    shown = json.loads(environment.run("-m", "andfast.info", "--json"))
    assert shown["pretrained"] == pretrained_names()
    assert shown["operations"]["projected_step"]["cpu"] is None
    by_name = "from andfast.training.options import parse_config as p; print(p(['--config', 'compact_x4']).to_dict())"
    assert environment.run("-c", by_name).strip() == str(parse_config(["--config", "compact_x4"]).to_dict())


@pytest.mark.skipif(shutil.which("false") is None, reason="needs the program false")
def test_a_wheel_is_made_without_a_compiler(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    checkout, compiler = copy_checkout(tmp_path / "checkout"), shutil.which("false")
    files, printed = build_wheel(environment, checkout, tmp_path / "wheels", CC=compiler, CXX=compiler)
    assert not [name for name in files if "_C" in name]
    assert "andfast: the C++ extension was not built; the slower references will be used instead." in printed


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script takes the compiler's place")
def test_an_editable_installation_without_a_compiler_works(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    checkout, compiler = copy_checkout(tmp_path / "checkout"), tmp_path / "c++"
    compiler.write_text(f'#!/bin/sh\necho "{APPLES}" >&2\nexit 1\n')
    compiler.chmod(0o755)
    printed = environment.pip("install", "--editable", checkout, CC=str(compiler), CXX=str(compiler))
    assert "andfast: the C++ extension was not built" in printed
    assert APPLES in printed
    printed = environment.check(tmp_path)
    assert "the slower reference implementation takes over: it is not built" in printed
    assert f"run `pip install -e .` in {checkout}" in printed
