"""The CUDA sources compile for the GPUs they are meant for, without spills, and their index arithmetic is right."""

import ctypes
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import cuda_on_host
import numpy as np
import pytest
import torch

from andfast.ops.blur_pool import pooling_taps

CSRC = cuda_on_host.CSRC
NVCC = shutil.which("nvcc")
ARCHITECTURES = ("80", "90a")

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
needs_compiler = pytest.mark.skipif(cuda_on_host.compiler() is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[tuple[str, str], str]:
    """(file, architecture) -> what ptxas says about it."""
    folder = tmp_path_factory.mktemp("cubins")

    def build(job: tuple[str, str]) -> str:
        name, architecture = job
        source, cubin = CSRC / "cuda" / name, folder / f"{name}.{architecture}.cubin"
        command = [
            NVCC,
            "-std=c++17",
            "-O3",
            f"-arch=sm_{architecture}",
            "-Xptxas",
            "-v",
            "-cubin",
            source,
            "-o",
            cubin,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    jobs = [(path.name, name) for path in sorted((CSRC / "cuda").glob("*.cu")) for name in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(jobs, pool.map(build, jobs), strict=True))


@needs_nvcc
def test_kernels_keep_their_registers(reports):
    pattern = re.compile(
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    )
    for job, report in reports.items():
        found = pattern.findall(report)
        assert found, job
        for kernel, frame, *spills in found:
            assert spills == ["0", "0"], (job, kernel)
            assert frame == "0", (job, kernel)
        assert "warning" not in report, report


@needs_compiler
@pytest.mark.parametrize("with_cuda", [False, True])
def test_bindings_compile(with_cuda):
    command = [cuda_on_host.compiler(), "-std=c++17", "-Wall", "-Werror", "-fsyntax-only", CSRC / "bindings_cuda.cpp"]
    if with_cuda:
        if NVCC is None:
            pytest.skip("there is no nvcc, and so none of CUDA's headers")
        # nvcc may be a script that calls another: ask it for its folder.
        dry = subprocess.run([NVCC, "--dryrun", "-c", "-x", "cu", "/dev/null"], capture_output=True, text=True)
        includes = re.search(r'INCLUDES="-I([^"]+)"', dry.stderr).group(1).strip()
        command += [*cuda_on_host.compile_flags(), f"-isystem{includes}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_the_bindings_know_torch():
    for path in CSRC.rglob("*"):
        if path.is_file() and not path.name.startswith("bindings"):
            assert not re.search(r"#\s*include\s*[<\"](torch|ATen|c10)", path.read_text()), path


INDEX = """
#include "cuda/index.h"
extern "C" void copies(int p, int size, int border, int* range) {
  const auto found = andfast::cuda::copies(p, size, border);
  range[0] = found.first, range[1] = found.last;
}
extern "C" int readers(int p, int size, int scale, float* weight) {
  const auto found = andfast::readers(p, size, scale);
  weight[0] = found.weight[0], weight[1] = found.weight[1];
  return found.first;
}
extern "C" void invert(double* matrix, int size) { andfast::invert(matrix, size); }
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> ctypes.CDLL:
    if cuda_on_host.compiler() is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("index")
    (folder / "index.cpp").write_text(INDEX)
    command = [cuda_on_host.compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas", f"-I{CSRC}"]
    subprocess.run([*command, folder / "index.cpp", "-o", folder / "index.so"], check=True)
    return ctypes.CDLL(str(folder / "index.so"))


@pytest.mark.parametrize("border", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_copies(index, size, border):
    owners = np.pad(np.arange(size), border, mode="edge")
    found = np.empty(2, np.int32)
    for p in range(size):
        index.copies(p, size, border, found.ctypes.data_as(ctypes.c_void_p))
        assert list(range(found[0], found[1] + 1)) == list(np.flatnonzero(owners == p))


@pytest.mark.parametrize("scale", [2, 3, 4, 7])
@pytest.mark.parametrize("outputs", [1, 2, 3, 6])
def test_readers(index, outputs, scale):
    size = outputs * scale
    weights = np.zeros((outputs, size))
    padded = np.pad(np.arange(size), 1, mode="reflect")
    for j in range(outputs):
        for i, tap in enumerate(pooling_taps(scale)):
            weights[j, padded[scale * j + i]] += tap
    found = np.empty(2, np.float32)
    for p in range(size):
        first = index.readers(p, size, scale, found.ctypes.data_as(ctypes.c_void_p))
        column = np.zeros(outputs)
        for k in np.flatnonzero(found):
            column[first + k] = found[k]
        np.testing.assert_allclose(column, weights[:, p], rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_invert(index, size):
    tall = torch.randn(64, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size)).numpy()
    gram = tall.T @ tall
    inverse = gram.copy()
    index.invert(inverse.ctypes.data_as(ctypes.c_void_p), size)
    np.testing.assert_allclose(inverse, np.linalg.inv(gram), rtol=1e-12, atol=1e-14)
