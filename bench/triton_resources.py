"""What every Triton kernel of a training step takes of a GPU's shared memory and registers; no GPU is needed.

    python -m bench.triton_resources [--arch 80 90] [--output FILE]

Compiles the kernels ahead of time, as the degradation network at the paper's size, RRDBNet and Compact launch them
forward and backward, in each type and for each architecture from Ampere on. Prints a table, and exits
with 1 if a launch takes more shared memory than its architecture has, or spills registers. For convolutions the table
also has how much a program computes with what it loads: FLOP a byte in the loop of its products, and the KiB that it
loads once, outside of loops.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from andfast.models.compact import Compact
from andfast.models.rrdbnet import RRDBNet
from andfast.ops import blur_pool, dispatch, projected_step
from andfast.ops.backends.triton import configs
from andfast.ops.theta_layout import ThetaLayout
from andfast.utils.files import write_text
from bench.record import origin

#: Architecture -> the shared memory of a program, at most, in KiB (CUDA programming guide, "Compute Capabilities").
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.uint8: "u8",
}
_OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")


@dataclass(frozen=True)
class Launch:
    """A kernel as it is launched: everything that its machine code depends on but the architecture."""

    kernel: JITFunction
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[tuple[int], object], ...]
    aligned: tuple[tuple[int], ...]  # the arguments divisible by 16
    options: tuple[tuple[str, object], ...]

    @property
    def source(self) -> ASTSource:
        """What Triton compiles."""
        attributes = {index: [["tt.divisibility", 16]] for index in self.aligned}
        return ASTSource(self.kernel, dict(self.signature), dict(self.constants), attributes)

    @property
    def dtype(self) -> str:
        """The type of the first pointer."""
        return next(kind for _, kind in self.signature if kind.startswith("*"))[1:]

    @property
    def described(self) -> str:
        """The kernel, its type, the constants in the order of its parameters, warps and stages."""
        names = self.kernel.arg_names
        settings = [f"{names[i]}={value}" for (i,), value in self.constants if names[i].isupper()]
        options = [f"{name.removeprefix('num_')}={value}" for name, value in self.options if name.startswith("num_")]
        return " ".join([self.kernel.__name__, self.dtype, *settings, *options])


@dataclass(frozen=True)
class Usage:
    """What a compiled launch takes; `spilled` in bytes a thread, `shared` in bytes, `counts` by instruction."""

    registers: int
    spilled: int
    shared: int
    counts: dict[str, int]
    traffic: Traffic


@dataclass(frozen=True)
class Traffic:
    """What a program loads from memory, as the compiler's last form for whole programs (TTGIR) has it.

    Loads go to the L2 cache; where they find something in L1 (not the asynchronous copies, which pass it by), this
    counts too much.

    Attributes:
        flop, read: an iteration of the first loop that multiplies matrices: FLOP, and bytes loaded.
        once: bytes loaded outside of all loops.
    """

    flop: int
    read: int
    once: int


_PRODUCT = re.compile(r"= tt\.dot |ttng\.warp_group_dot |ttng\.tc_gen5_mma ")
_LOAD = re.compile(r"= (?:tt\.load|ttg\.async_copy_global_to_local) .*?: tensor<((?:\d+x)+)!tt\.ptr<[a-z]+(\d+)>")


def traffic_of(ttgir: str) -> Traffic:
    """Count the products and loads of a kernel."""
    loops: list[list[int]] = [[0, 0]]  # FLOP and bytes: outside of all loops, then of each outermost loop
    depth, opened = 0, None
    for line in ttgir.splitlines():
        if opened is None and "scf.for " in line:
            opened = depth
            loops.append([0, 0])
        counts = loops[0] if opened is None else loops[-1]
        if _PRODUCT.search(line):
            (rows, inner), (_, columns) = (map(int, shape) for shape in re.findall(r"<(\d+)x(\d+)x[bf]+\d", line)[:2])
            counts[0] += 2 * rows * inner * columns
        elif load := _LOAD.search(line):
            counts[1] += math.prod(map(int, load[1].split("x")[:-1])) * int(load[2]) // 8
        depth += line.count("{") - line.count("}")
        if opened is not None and depth <= opened and "scf.for " not in line:
            opened = None
    flop, read = next((counts for counts in loops[1:] if counts[0]), (0, 0))
    return Traffic(flop, read, loops[0][1])


def as_launched(kernel: JITFunction, arguments: dict[str, object]) -> Launch:
    """The specialisation that Triton's launcher would compile for these arguments."""
    signature, constants, aligned = [], [], []
    for parameter in kernel.params:
        value, index = arguments[parameter.name], (parameter.num,)
        if isinstance(value, Tensor):
            kind = "*" + _NAMES[value.dtype]
            aligned.append(index)
        elif parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
            kind = "constexpr"
            constants.append((index, value))
        elif isinstance(value, int):
            kind = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                aligned.append(index)
        else:
            kind = parameter.annotation_type or "fp32"
        signature.append((parameter.name, kind))
    options = tuple((name, arguments[name]) for name in _OPTIONS if name in arguments)
    return Launch(kernel, tuple(signature), tuple(constants), tuple(aligned), options)


@contextmanager
def recorded(arch: int) -> Iterator[dict[Launch, None]]:
    """Run operations on CPU tensors by the Triton backend; launches are noted in order, not made.

    The results are uninitialised memory.
    """
    launches: dict[Launch, None] = {}

    def note(kernel: JITFunction, *args: object, grid: object, warmup: bool, **kwargs: object) -> None:
        arguments = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        launches[as_launched(kernel, arguments)] = None

    anywhere = {
        operation: found | {"triton": dispatch.Implementation(found["triton"].function)}
        for operation, found in dispatch.operations.items()
        if "triton" in found
    }
    usable = {name: reason for name, reason in dispatch.unavailable.items() if name != "triton"}
    with (
        patch.object(configs, "shared_memory", lambda device: SHARED_KIB[arch] * 1024),
        patch.object(JITFunction, "run", note),
        patch.dict(dispatch.operations, anywhere),
        patch.dict(dispatch.unavailable, usable, clear=True),
        dispatch.use_backend("triton"),
    ):
        yield launches


def degradation_network(dtype: torch.dtype, scale: int = 4, noise: str = "map", images: int = 1) -> None:
    """Forward and backward of two networks F of the paper, each for `images` images of 256 x 256."""
    layout = ThetaLayout((256, 256), scale, 64, 5, noise)
    hr = torch.zeros(2 * images, 3, 256, 256, requires_grad=True)
    theta, delta = torch.zeros(2, layout.size), torch.zeros(2, layout.size, requires_grad=True)
    seed = torch.zeros(2, dtype=torch.int64)
    settings = (scale, 64, 5, noise == "gaussian", dtype, "triton", True)
    torch.ops.andfast.degradation_forward(hr, theta, delta, seed, *settings)[0].sum().backward()


def generator(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Forward and backward of a generator; weight gradients, which are the library's, are left out."""
    network.to(dtype, memory_format=torch.channels_last).requires_grad_(False)
    network(torch.zeros(2, 3, 16, 16, dtype=dtype, requires_grad=True)).sum().backward()


def others(dtype: torch.dtype) -> None:
    """The operations without convolutions."""
    for channels in (3, 64):
        image = torch.zeros(2, channels, 64, 64, dtype=dtype, requires_grad=True)
        blur_pool.blur_pool(image.contiguous(memory_format=torch.channels_last), 4).sum().backward()
    rows = torch.zeros(2, 40_000)
    projected_step(rows, rows, rows[0], 0.3, 0.5)


WORKLOADS: dict[str, Callable[[torch.dtype], None]] = {
    "F": degradation_network,
    "F, scale 2": lambda dtype: degradation_network(dtype, scale=2),
    "F, Gaussian noise, shared networks": lambda dtype: degradation_network(dtype, noise="gaussian", images=2),
    "RRDBNet": lambda dtype: generator(RRDBNet(scale=4, blocks=1), dtype),
    "Compact": lambda dtype: generator(Compact(scale=4, convs=2), dtype),
    "others": others,
}


def launches_of(
    arch: int, types: Iterable[torch.dtype] = tuple(TYPES.values()), workloads: Iterable[str] = tuple(WORKLOADS)
) -> list[Launch]:
    """All launches of workloads on an architecture, each once."""
    with recorded(arch) as launches:
        for dtype in types:
            for name in workloads:
                WORKLOADS[name](dtype)
    return list(launches)


def compile_launch(launch: Launch, arch: int) -> Usage:
    """Compile for an architecture, and read what the machine code takes."""
    compiled = triton.compile(launch.source, target=GPUTarget("cuda", arch, 32), options=dict(launch.options))
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(program), "-sass", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)", text, re.MULTILINE)
    counts = {name: names.count(name) for name in sorted(set(names))}
    registers, stack = (int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK"))
    # Spills lie in the stack frame; none of the kernels has anything else there.
    return Usage(registers, stack, compiled.metadata.shared, counts, traffic_of(compiled.asm["ttgir"]))


def usage_of(jobs: list[tuple[Launch, int]]) -> Iterator[Usage]:
    """The resources of launches, each for an architecture, in order; compiled by two processes."""
    global _jobs
    _jobs = jobs  # a kernel cannot be pickled: processes inherit them
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        yield from pool.map(_compile_job, range(len(jobs)))


_jobs: list[tuple[Launch, int]] = []


def _compile_job(number: int) -> Usage:
    return compile_launch(*_jobs[number])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", choices=SHARED_KIB, default=list(SHARED_KIB), metavar="80")
    parser.add_argument("--type", nargs="+", choices=TYPES, default=list(TYPES), help=", ".join(TYPES))
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help=", ".join(WORKLOADS))
    parser.add_argument("--match", default="", help="only launches whose line in the table this expression matches")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table here, as JSON, too")
    options = parser.parse_args(arguments)
    jobs = [
        (launch, arch)
        for arch in options.arch
        for launch in launches_of(arch, [TYPES[name] for name in options.type], options.workload)
        if re.search(options.match, launch.described)
    ]
    columns = (
        "architecture, shared memory in KiB and its limit, registers and spilled bytes a thread, FLOP a byte loaded in "
        "the first loop of products and KiB loaded outside of loops, launch"
    )
    print(columns, flush=True)
    lines, bad = [], 0
    for (launch, arch), usage in zip(jobs, usage_of(jobs), strict=True):
        found = ["exceeds shared memory"] * (usage.shared > SHARED_KIB[arch] * 1024) + ["spills"] * (usage.spilled > 0)
        bad += bool(found)
        numbers = f"{usage.shared / 1024:6.1f} {SHARED_KIB[arch]:4} {usage.registers:4} {usage.spilled:5}"
        flop, read, once = usage.traffic.flop, usage.traffic.read, usage.traffic.once
        numbers += f" {flop / read:6.1f} {once / 1024:6.1f}" if flop else 14 * " "
        lines.append(f"sm_{arch:<4}{numbers}  {launch.described}{''.join(f'  <- {fault}' for fault in found)}")
        print(lines[-1], flush=True)
    if options.output:
        made_by = origin("bench.triton_resources", sys.argv[1:] if arguments is None else arguments)
        measured = "nothing: compiled ahead of time, for GPUs that were not there"
        result = {**made_by, "measured": measured, "columns": columns, "launches": lines}
        write_text(options.output, json.dumps(result, indent=1) + "\n")
    print(f"{bad} of {len(jobs)} launches exceed shared memory or spill")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
