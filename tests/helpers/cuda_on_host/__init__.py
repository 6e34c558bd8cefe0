"""Builds csrc/cuda and csrc/bindings_cuda.cpp for the host, with the stand-ins for CUDA beside this file."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc"

#: What setup.py defines for the C++ files of a build with CUDA.
DEFINES = ("TORCH_STABLE_ONLY", "TORCH_TARGET_VERSION=0x020b000000000000", "USE_CUDA", 'ANDFAST_CUDA_ARCHS="8.0"')

SCHEMAS = (
    "projected_step(Tensor delta, Tensor grad, Tensor inv_scale, float step_size, float epsilon) -> Tensor",
    "block_epilogue(Tensor a, Tensor? b, Tensor slope_minus_one, Tensor noise, Tensor? seed, int layer, int border)"
    " -> (Tensor, Tensor)",
    "block_epilogue_grad(Tensor dy, Tensor y, Tensor sign_mask, Tensor slope_minus_one, Tensor noise, Tensor? seed,"
    " int layer, int border) -> (Tensor, Tensor, Tensor)",
    "block_epilogue_pool(Tensor a, Tensor? b, Tensor slope_minus_one, Tensor noise, Tensor? seed, int layer, int scale,"
    " int border) -> (Tensor, Tensor, Tensor)",
    "block_epilogue_pool_grad(Tensor dpooled, Tensor sign_mask, Tensor slope_minus_one, int scale) -> Tensor",
    "blur_pool(Tensor image, int scale) -> Tensor",
    "blur_pool_grad(Tensor grad, int scale) -> Tensor",
    "gaussian_field(Tensor seed, int layer, int images, int height, int width) -> Tensor",
    "identity_last(Tensor[] centres) -> Tensor",
)

_library: torch.library.Library | None = None


def compiler() -> str | None:
    """The C++ compiler, None if there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def compile_flags() -> list[str]:
    """Flags for C++ files that include torch's headers."""
    return ["-std=c++17", *(f"-D{define}" for define in DEFINES), *(f"-isystem{path}" for path in include_paths())]


def load(folder: Path) -> None:
    """Compile the operators in `folder` and register them as `torch.ops.andfast_on_host`; once per process."""
    global _library
    if _library is not None:
        return
    # -fno-strict-aliasing: nvcc does not assume strict aliasing either.
    flags = [*compile_flags(), "-O1", "-fPIC", "-fno-strict-aliasing", "-Wno-unknown-pragmas", f"-I{HERE}", f"-I{CSRC}"]

    def build(source: Path) -> Path:
        result = folder / f"{source.name}.o"
        subprocess.run([compiler(), *flags, "-xc++", "-c", source, "-o", result], check=True)
        return result

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(build, [*sorted((CSRC / "cuda").glob("*.cu")), HERE / "operators.cpp"]))
    library = folder / "andfast_on_host.so"
    # -Bsymbolic: the stand-ins take precedence over torch's functions of the same names.
    link = ["-shared", "-Wl,-Bsymbolic", *(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10"]
    subprocess.run([compiler(), *objects, *link, "-o", library], check=True)
    _library = torch.library.Library("andfast_on_host", "DEF")
    for schema in SCHEMAS:
        _library.define(schema)
    torch.ops.load_library(library)
