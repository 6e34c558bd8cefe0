"""Builds the C++ extension andfast/_C; everything else about the package stands in pyproject.toml.

Its CUDA part is built where torch is a CUDA build and nvcc is found; ANDFAST_CUDA=0 leaves it out.
"""

import os
import runpy
import shutil
import sys
from pathlib import Path

import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

_hash = runpy.run_path("andfast/ops/_source_hash.py")
CSRC = Path("csrc")

# Data-centre Ampere and Hopper in machine code, their siblings of the same generation by the former, and what comes
# after them by way of PTX. Nothing here uses a feature that one chip alone has. torch reads the variable, too.
ARCHITECTURES = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")

DEFINES = {
    "TORCH_STABLE_ONLY": None,
    "TORCH_TARGET_VERSION": "0x020b000000000000",  # 2.11: the oldest torch in pyproject.toml
    "ANDFAST_SOURCE_HASH": f'"{_hash["source_hash"](CSRC)}"',
}
CUDA_DEFINES = {
    "USE_CUDA": None,  # opens the CUDA entries of torch's stable interface
    "ANDFAST_CUDA_ARCHS": f'"{ARCHITECTURES}"',  # opens csrc/bindings_cuda.cpp
}
# No -march: wheels travel. The kernels choose their instruction set when they load (csrc/cpu/kernels.h).
FLAGS = ["-std=c++17", "-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]
CUDA_FLAGS = ["-std=c++17", "-O3"]


def as_flags(defines: dict[str, str | None]) -> list[str]:
    """The defines as flags for the C++ compiler alone: nvcc's files need none, nor a rebuild when one changes."""
    return [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in defines.items()]


def extension(cuda: bool) -> Extension:
    """The extension with or without its CUDA part."""
    suffixes = {".cpp", ".cu"} if cuda else {".cpp"}
    flags = {"cxx": FLAGS + as_flags(DEFINES)}
    if cuda:
        flags = {"cxx": flags["cxx"] + as_flags(CUDA_DEFINES), "nvcc": CUDA_FLAGS}
    return (CUDAExtension if cuda else CppExtension)(
        "andfast._C",
        [path.as_posix() for path in _hash["source_files"](CSRC) if path.suffix in suffixes],
        depends=[path.as_posix() for path in _hash["source_files"](CSRC)],
        extra_compile_args=flags,
        py_limited_api=True,
        optional=True,  # setuptools, too, then goes on without the file
    )


def without_cuda(ext: Extension) -> None:
    """Take the CUDA part out of an extension that setuptools has already begun with."""
    plain = extension(cuda=False)
    for name in ("sources", "include_dirs", "library_dirs", "libraries", "extra_compile_args"):
        setattr(ext, name, getattr(plain, name))


def has_cuda(ext: Extension) -> bool:
    return any(source.endswith(".cu") for source in ext.sources)


def report(*lines: object) -> None:
    print(*(f"andfast: {line}" for line in lines), sep="\n", file=sys.stderr)


def report_failure(error: Exception) -> None:
    report(
        "the C++ extension was not built; the slower references will be used instead.",
        f"it needs a C++17 compiler (g++ or clang++). What failed: {error}",
    )


class OptionalBuild(BuildExtension):
    """Lets the installation succeed with what can be built: the CPU part alone, or nothing."""

    def run(self) -> None:
        compiler = os.environ.get("CXX", "")
        if " " in compiler and shutil.which(compiler) is None:
            self.use_ninja = False  # torch's file for it takes "ccache g++" for one word
        try:
            super().run()
        except Exception as error:  # what comes before the first file: CC or CXX that cannot be read, for one
            report_failure(error)

    def build_extensions(self) -> None:
        if any(map(has_cuda, self.extensions)):
            try:
                return super().build_extensions()
            except Exception as error:  # what torch checks before the first file: the versions of CUDA and the compiler
                self._leave_cuda_out(self.extensions[0], error)
        # Without CUDA torch only asks the compiler for its version, and fails where that is a wrapper (ccache g++) or
        # broken; the extension uses torch's stable interface, which any compiler of C++17 will do for.
        os.environ["TORCH_DONT_CHECK_COMPILER_ABI"] = "1"
        return super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        try:
            try:
                super().build_extension(ext)
            except Exception as error:
                if not has_cuda(ext):
                    raise
                self._leave_cuda_out(ext, error)
                super().build_extension(ext)
        except Exception as error:
            report_failure(error)

    def _leave_cuda_out(self, ext: Extension, error: Exception) -> None:
        report(f"the CUDA kernels were not built, only those for the CPU. What failed: {error}")
        without_cuda(ext)


def wants_cuda() -> bool:
    """Whether the CUDA part can and shall be built; says why not where one may wonder."""
    if os.environ.get("ANDFAST_CUDA") == "0":
        report("the CUDA kernels are left out: ANDFAST_CUDA is 0")
        return False
    if torch.version.cuda is None:
        return False  # a CPU or ROCm build of torch
    if CUDA_HOME is None or not (Path(CUDA_HOME) / "bin" / "nvcc").is_file():
        report(f"the CUDA kernels are left out: nvcc (CUDA {torch.version.cuda}) was not found; CUDA_HOME can name it")
        return False
    if not (Path(CUDA_HOME) / "include" / "cuda_runtime.h").is_file():  # an nvcc on the PATH can be a mere wrapper
        report(f"the CUDA kernels are left out: {CUDA_HOME} has nvcc, but no headers; let CUDA_HOME name CUDA's folder")
        return False
    return True


def extensions() -> list[Extension]:
    if sys.platform == "win32":  # its compiler knows none of the flags
        report("the C++ extension is not made for Windows; the references in plain PyTorch are used there")
        return []
    return [extension(wants_cuda())]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": OptionalBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
