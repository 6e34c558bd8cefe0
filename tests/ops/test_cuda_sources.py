"""The CUDA sources compile without spills, and their index arithmetic is right."""

import ctypes
import re
import shutil
import subprocess

import cuda_on_host
import numpy as np
import pytest
import torch

from andfast.ops.blur_pool import pooling_taps

CSRC = cuda_on_host.CSRC
NVCC = shutil.which("nvcc")
ARCHITECTURE = "sm_80"  # the oldest that setup.py builds for: what compiles for it compiles for later ones

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
needs_compiler = pytest.mark.skipif(cuda_on_host.compiler() is None, reason="there is no C++ compiler")


@needs_nvcc
@pytest.mark.parametrize("source", sorted((CSRC / "cuda").glob("*.cu")), ids=lambda path: path.name)
def test_kernels_do_not_spill(source, tmp_path):
    command = [NVCC, "-std=c++17", "-O3", f"-arch={ARCHITECTURE}", "-Xptxas", "-v", "-cubin", source]
    done = subprocess.run([*command, "-o", tmp_path / "kernels.cubin"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    kernels = re.findall(
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        done.stderr,
    )
    assert kernels
    for kernel, *counts in kernels:
        assert counts == ["0", "0", "0"], kernel


@needs_compiler
@pytest.mark.parametrize("with_cuda", [False, True])
def test_bindings_compile(with_cuda):
    command = [cuda_on_host.compiler(), "-std=c++17", "-Wall", "-Werror", "-fsyntax-only", CSRC / "bindings_cuda.cpp"]
    if with_cuda:
        if NVCC is None:
            pytest.skip("there is no nvcc, so CUDA's headers are missing")
        # nvcc may be a wrapper script, so ask it where CUDA's headers are.
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
