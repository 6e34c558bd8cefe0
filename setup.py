"""Builds the C++ extension andfast/_C; everything else about the package stands in pyproject.toml."""

import runpy
import sys
from pathlib import Path

from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

_hash = runpy.run_path("andfast/ops/_source_hash.py")
CSRC = Path("csrc")

DEFINES = {
    "TORCH_STABLE_ONLY": None,
    "TORCH_TARGET_VERSION": "0x020b000000000000",  # 2.11: the oldest torch in pyproject.toml
    "ANDFAST_SOURCE_HASH": f'"{_hash["source_hash"](CSRC)}"',
}
# No -march: wheels travel. The kernels choose their instruction set when they load (csrc/cpu/kernels.h).
FLAGS = ["-std=c++17", "-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]


class OptionalBuild(BuildExtension):
    """Lets the installation succeed where the extension cannot be built: the references work everywhere."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            print(
                "andfast: the C++ extension was not built; the slower references will be used instead.\n"
                f"andfast: it needs a C++17 compiler (g++ or clang++). What failed: {error}",
                file=sys.stderr,
            )


setup(
    ext_modules=[
        CppExtension(
            "andfast._C",
            [path.as_posix() for path in _hash["source_files"](CSRC) if path.suffix == ".cpp"],
            depends=[path.as_posix() for path in _hash["source_files"](CSRC)],
            define_macros=list(DEFINES.items()),
            extra_compile_args={"cxx": FLAGS},
            py_limited_api=True,
            optional=True,  # setuptools, too, then goes on without the file
        )
    ],
    cmdclass={"build_ext": OptionalBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
