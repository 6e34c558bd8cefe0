"""Upscaling with the same weights: by spandrel in float32, as its users call it, by ncnn, and by andfast.

ncnn, which upscayl and Real-ESRGAN's portable programs use, takes part with Compact on CPUs where its packages are
installed (`pip install ncnn pnnx`); its converter ends without a result for RRDBNet of 23 blocks. Peak memory is the
process's by the system's count, which includes the libraries' own, minus that before the call. spandrel runs first; the
others' results are compared with its result.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from andfast.inference.upscaler import Upscaler
from andfast.models import Compact, RRDBNet
from andfast.ops.precision import choose_precision
from andfast.utils.devices import TYPES
from andfast.utils.formatting import dtype_name
from andfast.utils.torchvision_operators import declare_missing
from bench.timing import DEVICE, SMALL, clock

declare_missing()
spandrel = pytest.importorskip("spandrel")

pytestmark = pytest.mark.benchmark(timer=clock, warmup=False)

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "RRDBNet-23 x4": lambda: RRDBNet(4, blocks=1 if SMALL else 23),
    "Compact-16 x4": lambda: Compact(4),
}
# Network, height and width of the image, rounds.
CASES = (
    [(name, 16, 1) for name in NETWORKS]
    if SMALL
    else [("RRDBNet-23 x4", 128, 2), ("RRDBNet-23 x4", 512, 1), ("Compact-16 x4", 512, 3)]
)
# The half type that the device is fast with, if any.
HALF = dtype_name(choose_precision("auto", DEVICE, "degradation"))
NCNN = DEVICE.type == "cpu" and all(importlib.util.find_spec(name) for name in ("ncnn", "pnnx"))
VARIANTS = tuple(
    dict.fromkeys(["spandrel float32", *(["ncnn float32"] if NCNN else []), "andfast float32", f"andfast {HALF}"])
)
# The least PSNR to spandrel's result, in dB; for half types with random weights.
LEAST_PSNR = {"float32": 90, "bfloat16": 40, "float16": 50}

# By network and size: spandrel's results, median times and processor times.
seen: dict[tuple[str, int], tuple[Tensor, float | None, float]] = {}


@lru_cache(maxsize=1)
def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval().to(DEVICE)


@lru_cache(maxsize=1)
def image(size: int) -> Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def memory(name: str) -> int:
    """A count of this process's memory in /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def peak_of(function: Callable[[], Tensor]) -> int:
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts anew
    before = memory("VmRSS:")
    function()
    return memory("VmHWM:") - before


def ncnn_model(model: nn.Module, folder: Path) -> Callable[[Tensor], Tensor]:
    """`model` converted by ncnn's own tool, to compute in float32 with as many threads as PyTorch."""
    import ncnn
    import pnnx

    pnnx.export(model, str(folder / "model.pt"), torch.rand(1, 3, 64, 64), fp16=False)
    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    if net.load_param(str(folder / "model.ncnn.param")) or net.load_model(str(folder / "model.ncnn.bin")):
        raise RuntimeError(f"ncnn cannot read the model in {folder}")

    def run(lr: Tensor) -> Tensor:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(lr[0].numpy()).clone())
        status, restored = extractor.extract("out0")
        assert status == 0
        return torch.from_numpy(restored.numpy().copy())[None]

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted as Linux does")
@pytest.mark.parametrize(("name", "size", "rounds"), CASES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_upscale(benchmark, tmp_path, name, size, rounds, variant):
    if variant.startswith("ncnn") and name.startswith("RRDBNet"):
        pytest.skip("ncnn's converter ends without a result")
    model, lr = network(name), image(size)
    kind = variant.split()[1]
    if variant.startswith("andfast"):
        run = partial(Upscaler(model, TYPES[kind]).tensor, lr)
    else:
        state = {key: value.clone() for key, value in model.state_dict().items()}
        descriptor = spandrel.ModelLoader(DEVICE).load_from_state_dict(state).eval()
        run = partial(descriptor if variant.startswith("spandrel") else ncnn_model(descriptor.model, tmp_path), lr)
    results: list[Tensor] = []
    peaks: list[int] = []
    busy: list[float] = []  # processor time, which depends less on the machine's other work

    def once() -> None:
        begin = time.process_time()
        results[:] = [run()]
        busy.append(time.process_time() - begin)

    benchmark.group = f"upscale {size}x{size} {name}"
    benchmark.extra_info |= {
        "variant": variant,
        "device": torch.cuda.get_device_name(DEVICE) if DEVICE.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }
    benchmark.pedantic(lambda: peaks.append(peak_of(once)), rounds=rounds)  # no warm-up: a pass takes minutes
    benchmark.extra_info |= {"peak_memory": max(peaks), "processor_seconds": min(busy)}
    median = None if benchmark.stats is None else benchmark.stats.stats.median  # None under --benchmark-disable
    if variant.startswith("spandrel"):
        seen[name, size] = results[0], median, min(busy)
        return
    expected, other, other_busy = seen[name, size]
    error = (results[0].clamp(0, 1) - expected).square().mean()
    psnr = float(-10 * error.log10())
    assert psnr > LEAST_PSNR[kind]
    benchmark.extra_info |= {"psnr_to_spandrel": psnr, "times_spandrel_by_processor": other_busy / min(busy)}
    if median is not None:
        benchmark.extra_info["times_spandrel"] = other / median
