import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy.random.bit_generator
import pytest
import torch

from andfast.evaluation.environment import unused_backends
from andfast.ops import _extension, dispatch, projected_step, use_backend

ARGUMENTS = (torch.ones(1, 3), torch.ones(1, 3), torch.ones(3), 0.5, 1.0)

needs_cpu = pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))
needs_checkout = pytest.mark.skipif(_extension.CHECKOUT is None, reason="needs a checkout")


def test_status_names_every_backend():
    assert set(dispatch.status()["projected_step"]) == set(dispatch.BACKENDS)
    assert dispatch.status()["projected_step"]["reference"] is None


def test_unknown_backend():
    with (
        pytest.raises(ValueError, match="one of triton, cuda, cpu, library, reference; got 'fpga'"),
        use_backend("fpga"),
    ):
        pass
    with pytest.raises(ValueError, match="one of"):
        dispatch.register("projected_step", "fpga", projected_step)


def test_use_backend_nests_and_is_undone_by_an_error(monkeypatch):
    calls = []
    step = {name: dispatch.Implementation(lambda *_, name=name: calls.append(name)) for name in dispatch.BACKENDS}
    monkeypatch.setitem(dispatch.operations, "projected_step", step)
    monkeypatch.setattr(dispatch, "unavailable", {})
    with use_backend("reference"):
        projected_step(*ARGUMENTS)
        with pytest.raises(ValueError, match="delta"), use_backend("cpu"):
            projected_step(torch.ones(3), *ARGUMENTS[1:])
        with use_backend("cpu"):
            projected_step(*ARGUMENTS)
        projected_step(*ARGUMENTS)
    projected_step(*ARGUMENTS)
    assert calls == ["reference", "cpu", "reference", dispatch.BACKENDS[0]]


@needs_cpu
def test_forced_backend_that_does_not_fit():
    tensors = [tensor.double() for tensor in ARGUMENTS[:3]]
    with (
        use_backend("cpu"),
        pytest.raises(ValueError, match=r"takes torch.float32 tensors on cpu, not torch.float64"),
    ):
        projected_step(*tensors, *ARGUMENTS[3:])


def test_forced_backend_that_is_not_there(monkeypatch):
    monkeypatch.setitem(dispatch.unavailable, "cpu", "it is not built")
    projected_step(*ARGUMENTS)
    with (
        use_backend("cpu"),
        pytest.raises(RuntimeError, match="'cpu' is forced, but cannot be used: it is not"),
    ):
        projected_step(*ARGUMENTS)


def test_forced_backend_that_does_not_implement(monkeypatch):
    reference = dispatch.operations["projected_step"]["reference"]
    monkeypatch.setitem(dispatch.operations, "projected_step", {"reference": reference})
    with use_backend("cpu"), pytest.raises(RuntimeError, match="projected_step has only: reference"):
        projected_step(*ARGUMENTS)
    assert dispatch.status()["projected_step"]["cpu"] == "not implemented"


@needs_cpu
def test_the_candidates_take_the_tensors_and_end_in_the_reference():
    cpu = torch.device("cpu")
    assert dispatch.candidates("conv_act", cpu, torch.float32) == ("winograd", "reference")
    assert dispatch.candidates("degradation_forward", cpu, torch.bfloat16) == ("onednn", "reference")
    assert dispatch.candidates("projected_step", cpu, torch.float32) == ("cpu", "reference")
    assert dispatch.candidates("conv_act", cpu, torch.float64) == ("reference",)
    with use_backend("reference"):
        assert dispatch.candidates("conv_act", cpu, torch.float32) == ("reference",)


def test_triton_is_left_out_on_gpus_that_its_releases_do_not_support(monkeypatch):
    asked = []

    def capability(device):
        asked.append(device)
        return (7, 5) if device.index == 0 else (8, 6)

    operation = {
        "triton": dispatch.Implementation(devices=("cuda",)),
        "library": dispatch.Implementation(devices=("cuda",)),
        "reference": dispatch.Implementation(),
    }
    monkeypatch.setitem(dispatch.operations, "conv_act", operation)
    monkeypatch.setattr(dispatch, "unavailable", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    dispatch._problem_of_triton.cache_clear()
    old, new = torch.device("cuda", 0), torch.device("cuda", 1)
    for _ in range(2):
        assert dispatch.candidates("conv_act", old, torch.float16) == ("library", "reference")
        assert dispatch.candidates("conv_act", new, torch.float16) == ("triton", "library", "reference")
    assert asked == [old, new]
    reason = "Triton needs compute capability 8.0, and Tesla T4 has 7.5"
    with use_backend("triton"):
        assert dispatch.candidates("conv_act", new, torch.float16) == ("triton",)
        with pytest.raises(RuntimeError, match=f"'triton' is forced, but cannot be used: {reason}"):
            dispatch.candidates("conv_act", old, torch.float16)
    assert unused_backends(old) == {"triton": reason}
    assert unused_backends(new) == {}
    monkeypatch.setitem(dispatch.unavailable, "triton", "triton is not installed")
    assert dispatch.problem_on(old, "triton") == dispatch.problem_on(new, "triton") == "triton is not installed"
    dispatch._problem_of_triton.cache_clear()


@needs_cpu
def test_what_was_decided_is_kept(monkeypatch):
    collected = []
    collect = dispatch._candidates
    monkeypatch.setitem(dispatch.unavailable, "triton", "it is not installed")
    monkeypatch.setattr(dispatch, "_candidates", lambda *given: collected.append(given[-1]) or collect(*given))

    def resolve(height: int = 8) -> str:
        return dispatch.resolve("conv_act", torch.device("cpu"), torch.float32, (3, 5, 0, 1, height, 8))

    for _ in range(3):
        assert resolve() == "winograd"
        with use_backend("reference"):
            assert resolve() == "reference"
        with use_backend("triton"), pytest.raises(RuntimeError, match="it is not installed"):
            projected_step(*ARGUMENTS)
        with dispatch.use_implementation("conv_act", "library"):
            assert resolve() == "library"
    assert collected == [None, "reference", "triton", "triton", "triton"]  # errors are not kept
    resolve(9)
    dispatch.measure_anew(torch.device("cpu"))
    resolve(9)
    assert collected[5:] == [None, None]


@needs_cpu
def test_large_tiles_replace_winograd_in_inference_alone():
    plain = dispatch.load("winograd")
    with dispatch.allow_large_tiles():
        assert dispatch.load("winograd") is plain
        assert dispatch.load("winograd", inference=True) is not plain
        assert dispatch.load("onednn", inference=True) is dispatch.load("onednn")
    assert dispatch.load("winograd", inference=True) is plain


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("true", True), ("0", False), ("", False), (None, False)])
def test_triton_s_interpreter_is_asked_for_as_triton_reads_it(monkeypatch, value, expected):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if value is not None:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    assert dispatch.interpreting() == expected


def test_environment_variable_with_an_unknown_name(monkeypatch):
    monkeypatch.setenv("ANDFAST_BACKEND", "fpga")
    with pytest.raises(
        ValueError, match="ANDFAST_BACKEND must be one of triton, cuda, cpu, library, reference; got 'fpga'"
    ):
        runpy.run_path(dispatch.__file__)


# Broken extensions


@pytest.fixture
def copy(tmp_path):
    """A checkout in miniature: the package with its extension, csrc/ and setup.py."""
    shutil.copytree(_extension.PACKAGE, tmp_path / "andfast", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(_extension.CHECKOUT / "csrc", tmp_path / "csrc")
    shutil.copy(_extension.CHECKOUT / "setup.py", tmp_path)
    return tmp_path


def run(script: str, *path: Path, **environment: str) -> list[str]:
    """The lines that a Python program prints which finds modules in the folders of `path`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **environment}
    done = subprocess.run([sys.executable, "-c", script], cwd=path[0], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


SCRIPT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import andfast, andfast.ops, torch
    from andfast.ops import ExtensionWarning, projected_step, use_backend
    arguments = torch.zeros(1, 3), torch.ones(1, 3), torch.ones(3), 0.3, 1.0
    step = projected_step(*arguments)
    assert abs(step.norm().item() - 0.3) < 1e-6
    assert issubclass(ExtensionWarning, RuntimeWarning)
for warning in caught:
    if warning.category is ExtensionWarning:
        print(warning.message)
try:
    with use_backend("cpu"):
        projected_step(*arguments)
except RuntimeError as error:
    print(error)
"""


@needs_cpu
def test_good_extension_says_nothing():
    assert run(SCRIPT, _extension.PACKAGE.parent, ANDFAST_BACKEND="cpu") == []


@needs_cpu
@needs_checkout
def test_stale_extension_warns_once_and_is_not_used(copy):
    with (copy / "csrc" / "math.h").open("a") as file:
        file.write("// edited\n")
    warning, error = run(SCRIPT, copy)
    assert "is stale: it was built from other sources" in warning
    assert f"run `pip install -e .` in {copy}" in warning
    assert error.startswith("backend 'cpu' is forced, but cannot be used")


def break_extension(folder: Path, how: str) -> None:
    (library,) = (folder / "andfast").glob("_C*.so")
    if how == "missing":
        library.unlink()
    elif how == "truncated":
        library.write_bytes(library.read_bytes()[:-1000])
    elif how == "garbled":
        library.write_bytes(b"?" * 1000)
    elif how == "foreign":  # a library, but one without our functions
        shutil.copy(numpy.random.bit_generator.__file__, library)


def warning_of(folder: Path) -> str:
    """What the copy's extension module says where it is imported."""
    with pytest.warns(RuntimeWarning) as caught:
        runpy.run_path(folder / "andfast" / "ops" / "_extension.py")
    (warning,) = caught
    return str(warning.message)


@needs_cpu
@needs_checkout
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "it is not built"),
        ("truncated", "is truncated"),
        ("garbled", "invalid ELF header"),
        ("foreign", "andfast_source_hash"),
    ],
)
def test_broken_extension_warns_with_the_remedy(copy, how, message):
    break_extension(copy, how)
    assert message in (warning := warning_of(copy))
    assert f"run `pip install -e .` in {copy}" in warning


@needs_cpu
@needs_checkout
def test_the_remedy_of_an_installed_package_and_without_a_compiler(copy, monkeypatch):
    break_extension(copy, "missing")
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    assert "install a C++ compiler (/nonexistent/c++ was not found), then run `pip" in warning_of(copy)
    monkeypatch.delenv("CXX")
    (copy / "setup.py").unlink()
    assert "run `pip install .` in a clone of andfast" in warning_of(copy)


@needs_cpu
@needs_checkout
def test_the_remedy_on_other_systems(copy, monkeypatch, recwarn):
    break_extension(copy, "missing")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "run `xcode-select --install`; then run `pip install -e .`" in warning_of(copy)
    recwarn.clear()
    monkeypatch.setattr(sys, "platform", "win32")
    module = runpy.run_path(copy / "andfast" / "ops" / "_extension.py")
    assert module["problem"] == "it is not made for Windows"
    assert not recwarn.list


def test_a_broken_triton_costs_a_warning(tmp_path):
    """Also where torch imports it: for its optimizers and operators, on CPUs, too."""
    error = "AttributeError"
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(f"raise {error}('made for another CUDA')")
    script = (
        "import warnings, torch\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    import andfast.ops\n"
        "torch.optim.Adam([torch.nn.Parameter(torch.ones(1))])\n"
        "andfast.ops.projected_step(torch.ones(1, 3), torch.ones(1, 3), torch.ones(3), 0.5, 1.0)\n"
        "print([str(warning.message) for warning in caught if 'triton' in str(warning.message)])\n"
        "print(andfast.ops.dispatch.unavailable['triton'])\n"
    )
    problem = f"it cannot be imported ({error}: made for another CUDA)"
    printed = run(script, tmp_path, _extension.PACKAGE.parent)
    assert printed == [str([f"triton will not be used by andfast and torch: {problem}"]), problem]
