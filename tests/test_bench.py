"""What stands around the benches: the network that they compare with, the report of their results, the GPU's script."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from andfast.degradation import DegradationNetwork
from andfast.ops.degradation_forward import degradation_forward_reference

ROOT = Path(__file__).parents[1]


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def benchmark(group: str, variant: str, median: float, **extra: object) -> dict:
    """One entry of a result file, as far as the report reads it."""
    return {
        "group": group,
        "name": f"test_this[{variant}]",
        "param": variant,
        "extra_info": {"variant": variant, **extra},
        "stats": {"median": median, "min": 0.9 * median},
    }


@pytest.fixture
def result_file(tmp_path):
    benchmarks = [
        benchmark("first", "reference float32", 0.2, peak_memory=3 * 2**20),
        benchmark("first", "eager float32", 0.1, peak_memory=2 * 2**20),
        benchmark("first", "cuda float32", 0.0025, peak_memory=2**20, percent_of_limit=61.6),
        benchmark("second", "plain", 0.004),
        benchmark("second", "fused", 0.001),
    ]
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"machine_info": {"cpu": {"brand_raw": "A Processor"}}, "benchmarks": benchmarks}))
    return path


def test_report(result_file, tmp_path):
    done = report(result_file, "--output", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    for line in (
        "## first",
        "On A Processor; speed and memory as multiples of those of eager float32.",
        "| reference float32 | 200.0 | 180.0 | 0.50x | 3.0 | 1.50 |  |",
        "| eager float32 | 100.0 | 90.0 | 1.00x | 2.0 | 1.00 |  |",
        "| cuda float32 | 2.500 | 2.250 | 40.00x | 1.0 | 0.50 | 62 |",
        "## second",
        "On A Processor; speed and memory as multiples of those of plain.",
        "| fused | 1.000 | 0.900 | 4.00x |  |  |  |",
    ):
        assert line in done.stdout.splitlines()
    assert (tmp_path / "report" / "report.md").read_text() == done.stdout
    with Image.open(tmp_path / "report" / "report.png") as image:
        assert image.format == "PNG"
        colours = image.convert("RGB").getcolors(2**24)
    assert len(colours) > 4  # paper, ink, and bars of three kinds


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("# text", "is not a result of pytest-benchmark: it is not JSON"),
        ("[]", "is not a result of pytest-benchmark"),
        ('{"runs": {}}', "is not a result of pytest-benchmark: no 'machine_info'"),
        ('{"machine_info": {}, "benchmarks": [{}]}', "is not a result of pytest-benchmark: no 'extra_info'"),
        ('{"machine_info": {}, "benchmarks": []}', "holds no benchmark"),
    ],
)
def test_what_is_no_result_is_named(tmp_path, content, message):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    done = report(path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {path}")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["projected_step_cpu.json"])
def test_recorded_results_can_be_reported(name):
    done = report(ROOT / "bench" / "results" / name)
    assert done.returncode == 0, done.stderr
    assert "| 1.00x |" in done.stdout


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("networks", "images"), [(1, 3), (2, 4), (3, 3)])
def test_eager_network_is_the_reference(monkeypatch, networks, images, memory_format):
    monkeypatch.syspath_prepend(ROOT)
    from bench.eager import EagerNetwork

    generator = torch.Generator().manual_seed(networks)
    network = DegradationNetwork(scale=2, num_networks=networks, channels=5, blocks=2)
    network.reset_identity((8, 12), generator)
    theta_id, layout = network.theta_id.double(), network.layout
    delta = torch.randn(theta_id.shape, generator=generator, dtype=torch.float64) * 0.05
    delta.requires_grad_()
    hr = torch.rand(images, 3, 8, 12, generator=generator, dtype=torch.float64)
    expected = degradation_forward_reference(hr, theta_id, delta, network.noise_seed, layout, torch.float64)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (expected_grad,) = torch.autograd.grad(expected, delta, upstream)

    eager = EagerNetwork(layout, (theta_id + layout.to_taps(delta)).detach(), torch.float64, memory_format)
    lr = eager(hr)
    torch.testing.assert_close(lr, expected, rtol=1e-10, atol=1e-12)
    grads = torch.autograd.grad(lr, list(eager.parameters()), upstream)
    torch.testing.assert_close(eager.as_delta(grads), expected_grad, rtol=1e-9, atol=1e-10)


def test_eager_network_has_no_gaussian_noise(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from bench.eager import EagerNetwork

    network = DegradationNetwork(noise="gaussian", channels=4, blocks=1)
    network.reset_identity((4, 4))
    with pytest.raises(ValueError, match="noise is 'gaussian'"):
        EagerNetwork(network.layout, network.theta, torch.float32)


def test_gpu_script_is_well_formed():
    subprocess.run(["bash", "-n", ROOT / "bench" / "gpu.sh"], check=True)
    done = subprocess.run(["bash", ROOT / "bench" / "gpu.sh", "--wrong"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "usage: bench/gpu.sh [--dry-run]\n"
