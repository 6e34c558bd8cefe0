"""The kernels fit the shared memory and registers of GPUs that need not be there; and the grids their limits.

`python -m bench.triton_resources` compiles all launches; here are those that take most.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from andfast.ops.backends.triton import configs, conv
from andfast.ops.backends.triton import pool as triton_pool
from andfast.ops.blur_pool import blur_pool_reference, in_channels_last
from bench import triton_resources

ROOT = Path(__file__).parents[3]
ARCHITECTURES = ("80", "89", "90", "120")
NO_TRAFFIC = triton_resources.Traffic(0, 0, 0)
LARGEST = (
    r"weight_grad_kernel bf16 C_IN=64 C_OUT=64",
    r"weight_grad_kernel bf16 C_IN=64 C_OUT=3",
    r"dense_kernel bf16 .*PART=3 .*BACKWARD=True",
)


def table(*options: str) -> str:
    """What the script prints in bfloat16, where it finds nothing wrong."""
    command = [sys.executable, "-m", "bench.triton_resources", "--type", "bfloat16", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_largest_kernels_fit_and_do_not_spill():
    lines = table("--arch", *ARCHITECTURES, "--workload", "F", "RRDBNet", "--match", "|".join(LARGEST))
    for arch in ARCHITECTURES:
        for kernel in LARGEST:
            assert re.search(rf"^sm_{arch} .*{kernel}", lines, re.MULTILINE), (arch, kernel, lines)


def test_rolling_down_rows_at_least_doubles_the_flop_a_byte():
    """A convolution of 64 -> 64 channels at the paper's size, 48 images of 256 x 256."""
    kernel = r"conv_\w*kernel bf16 C_IN=64 C_OUT=64 .*EPILOGUE=2"
    lines = table("--arch", "80", "90", "100", "--workload", "F", "--match", kernel)
    found = re.findall(r"^sm_(\d+) +(?:[\d.]+ +){4}([\d.]+) +([\d.]+)  (conv\w+)", lines, re.MULTILINE)
    (old, by_patches, _, patches), *new = found
    assert (old, patches) == ("80", "conv_kernel")
    assert float(by_patches) == pytest.approx(43, rel=0.02)
    row = 10 * 2 * 64**3  # FLOP of 64 pixels
    band = conv.band_of(256, 48 * 256 // 64)
    assert [(arch, rows) for arch, _, _, rows in new] == [(arch, "conv_rows_kernel") for arch in ("90", "100")]
    for _, in_loop, once, _ in new:
        loaded = (band + 2) * row / float(in_loop) + 1024 * float(once)
        assert band * row / loaded >= 2 * float(by_patches), lines


@pytest.mark.parametrize(
    ("arch", "shared", "spilled", "fault"),
    [
        (86, 99 * 1024, 0, None),
        (86, 99 * 1024 + 1, 0, "exceeds shared memory"),
        (80, 99 * 1024 + 1, 0, None),
        (120, 0, 8, "spills"),
    ],
)
def test_the_script_fails_where_a_launch_does(arch, shared, spilled, fault, monkeypatch, capsys, tmp_path):
    launch, usage = SimpleNamespace(described="a_kernel"), triton_resources.Usage(64, spilled, shared, {}, NO_TRAFFIC)
    monkeypatch.setattr(triton_resources, "launches_of", lambda *_: [launch])
    monkeypatch.setattr(triton_resources, "usage_of", lambda jobs: [usage] * len(jobs))
    assert triton_resources.main(["--arch", str(arch), "--output", str(tmp_path / "table.json")]) == (fault is not None)
    result = json.loads((tmp_path / "table.json").read_text())
    (line,) = result["launches"]
    assert line in capsys.readouterr().out
    assert line.endswith("a_kernel" if fault is None else f"a_kernel  <- {fault}")
    assert result["command"] == f"python -m bench.triton_resources --arch {arch} --output table.json"
    assert "triton" in result["machine"]["versions"]


@pytest.mark.parametrize("arch", triton_resources.SHARED_KIB)
def test_a_device_is_asked_once_which_launches_fit(arch, monkeypatch):
    asked = []

    def properties(device):
        asked.append(device)
        return SimpleNamespace(shared_memory_per_block_optin=triton_resources.SHARED_KIB[arch] * 1024)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    configs.shared_memory.cache_clear()
    first, second = (SimpleNamespace(dtype=torch.float16, device=torch.device("cuda", i)) for i in range(2))
    tiles = [configs.config("weight_grad", like, 64, 64).tile for like in (first, second, first, second)]
    configs.shared_memory.cache_clear()
    assert tiles == [(4, 16) if arch in (90, 100) else (2, 16)] * 4
    assert asked == [first.device, second.device]


@pytest.mark.parametrize("scale", [2, 3])
def test_planes_of_a_pooling_share_one_axis_of_the_grid(scale, device, monkeypatch):
    """Each channel of a contiguous image is an image of its own: several blocks of pixels each, the last in part."""
    monkeypatch.setattr(triton_pool, "_PIXELS", 4)
    image = torch.randn(2, 3, 2 * scale, 3 * scale, generator=torch.Generator().manual_seed(0)).to(device)
    torch.testing.assert_close(in_channels_last(triton_pool.blur_pool, image, scale), blur_pool_reference(image, scale))
    image.requires_grad_()
    grad = torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(1)).to(device)
    (expected,) = torch.autograd.grad(blur_pool_reference(image, scale), image, grad)
    torch.testing.assert_close(in_channels_last(triton_pool.blur_pool_grad, grad, scale), expected)


def test_more_planes_than_the_second_axis_of_a_grid_takes(monkeypatch):
    grids = []

    class Kernel:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **kwargs: None

    monkeypatch.setattr(triton_pool, "pool_kernel", Kernel())
    monkeypatch.setattr(triton_pool, "pool_grad_kernel", Kernel())
    planes = 70_000
    triton_pool.blur_pool(torch.empty(planes, 12, 12, 1, device="meta"), 2)
    triton_pool.blur_pool_grad(torch.empty(planes, 6, 6, 1, device="meta"), 2)
    assert grids == [(planes * 2, 1), (planes * 5, 1)]  # 36 and 144 pixels in blocks of 32
