"""What stands around the benches: what they compare with, their reports, the profile, the GPU's script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from andfast import PGD, Compact, RRDBNet, ScaleFactors, l1_objective
from andfast.degradation.network import DegradationNetwork
from andfast.ops.degradation_forward import degradation_forward_reference
from bench import paper, profile, report, shared_cores, steps
from bench.eager import EagerNetwork

ROOT = Path(__file__).parents[2]


@pytest.fixture
def printed_report(capsys):
    """Runs `python -m bench.report` and returns what it prints."""

    def run(*arguments: object) -> str:
        report.main(list(map(str, arguments)))
        return capsys.readouterr().out

    return run


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


def test_report(printed_report, result_file, tmp_path):
    printed = printed_report(result_file, "--output", tmp_path / "report")
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
        assert line in printed.splitlines()
    assert (tmp_path / "report" / "report.md").read_text() == printed
    with Image.open(tmp_path / "report" / "report.png") as image:
        assert image.format == "PNG"
        assert image.width == 1400


def test_bars_are_as_long_as_the_medians(result_file):
    """In the colours of their kinds, each with its time and its speed, and inside the axes."""
    figure = report.draw(report.read(result_file))
    first, second = figure.axes
    assert [bar.get_width() for bar in first.patches] == [0.2, 0.1, 0.0025]
    assert len({bar.get_facecolor() for bar in first.patches}) == 3
    assert [label.get_text() for label in first.get_yticklabels()] == [
        "reference float32",
        "eager float32",
        "cuda float32",
    ]
    assert [text.get_text() for text in second.texts] == ["4.000 ms   1.00x", "1.000 ms   4.00x"]
    figure.draw_without_rendering()
    for axes in (first, second):
        assert all(text.get_window_extent().x1 < figure.bbox.x1 for text in axes.texts)


def test_without_matplotlib_the_table_is_written_and_the_chart_an_error(result_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as end:
        report.main([str(result_file), "--output", str(tmp_path / "report")])
    assert end.value.code.startswith("error: report.png is not drawn: charts need matplotlib")
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["report.md"]


def step(variant: str, median: float, **extra: object) -> dict:
    """An entry for a training step."""
    written = "(a) plain" if variant.endswith("plain") else "(a) exact"
    details = {"images": 8, "updates": 1, "dtype": "float32", "plain": "own plain", "written": written}
    return benchmark("step net 8x16", variant, median, **details | extra)


def test_report_of_steps(printed_report, tmp_path):
    benchmarks = [
        step("own plain", 0.1, peak_memory=3 * 2**20),
        step("(a) plain", 0.2),
        step("(a) exact", 2.0, first_step_seconds=12.34),
        step("own exact", 0.5, percent_of_limit=54.6, dtype="bfloat16"),
        step("own free", 0.6, updates=4, images=32),
    ]
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"machine_info": {"cpu": {"brand_raw": "A Processor"}}, "benchmarks": benchmarks}))
    assert printed_report(path).splitlines()[-5:] == [
        "| own plain | float32 | 100.0 | 80 | 1.00 | 2.00 | 3 |  |  |",
        "| (a) plain | float32 | 200.0 | 40 | 2.00 | 1.00 |  |  |  |",
        "| (a) exact | float32 | 2000.0 | 4 | 20.00 | 1.00 |  |  | 12.3 |",
        "| own exact | bfloat16 | 500.0 | 16 | 5.00 | 4.00 |  | 55 |  |",
        "| own free | float32 | 150.0 | 53.3 | 1.50 | 13.33 |  |  |  |",
    ]
    # Alone a step has nothing to be measured by.
    path.write_text(json.dumps({"machine_info": {}, "benchmarks": benchmarks[3:4]}))
    assert printed_report(path).splitlines()[-1] == "| own exact | bfloat16 | 500.0 | 16 |  |  |  | 55 |  |"


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
def test_what_is_no_result_is_named(capsys, tmp_path, content, message):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as end:
        report.main([str(path)])
    assert capsys.readouterr().out == ""
    assert end.value.code.startswith(f"error: {path}")
    assert message in end.value.code


def test_recorded_results_can_be_reported(printed_report):
    assert "| 1.00x |" in printed_report(ROOT / "bench" / "results" / "projected_step_cpu.json")


def test_tables_in_the_docs_are_the_recorded_results():
    lines = (ROOT / "docs" / "performance.md").read_text().splitlines()
    marked = [index for index, line in enumerate(lines) if line.startswith("<!-- bench/results/")]
    assert marked
    for index in marked:
        path, _, name = lines[index].removeprefix("<!-- ").removesuffix(" -->").partition(": ")
        if name:
            (group,) = (group for group in report.read(ROOT / path) if group.name == name)
            table = report.table(group)
        else:
            content = json.loads((ROOT / path).read_text())
            table = shared_cores.table(content["seconds"]) if "seconds" in content else profile.table(content)
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert lines[index + 1 : index + 2 + len(rows)] == [*rows, ""]


def test_ratios_in_words_are_those_of_the_results():
    content = json.loads((ROOT / "bench" / "results" / "upscale_cpu_avx512.json").read_text())
    found = content["benchmarks"]
    seconds = {(each["group"], each["extra_info"]["variant"]): each["stats"]["median"] for each in found}

    def times(network, other):
        group = f"upscale 512x512 {network}"
        return f"{seconds[group, f'{other} float32'] / seconds[group, 'andfast float32']:.1f} times"

    rrdbnet, compact = times("RRDBNet-23 x4", "spandrel"), times("Compact-16 x4", "spandrel")
    ncnn = times("Compact-16 x4", "ncnn")
    readme, upscaling = (" ".join((ROOT / path).read_text().split()) for path in ("README.md", "docs/upscaling.md"))
    assert f"{rrdbnet} as fast as spandrel with RRDBNet, and with Compact {compact} as fast as spandrel" in readme
    assert f"and {ncnn} as fast as ncnn" in readme
    assert f"{rrdbnet} as fast as spandrel, in a tenth of the memory, and Compact {compact} as fast" in upscaling
    assert f"and {ncnn} as fast as ncnn" in upscaling


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("networks", "images"), [(1, 3), (2, 4), (3, 3)])
def test_eager_network_is_the_reference(networks, images, memory_format):
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


def test_eager_network_has_no_gaussian_noise():
    network = DegradationNetwork(noise="gaussian", channels=4, blocks=1)
    network.reset_identity((4, 4))
    with pytest.raises(ValueError, match="noise is 'gaussian'"):
        EagerNetwork(network.layout, network.theta, torch.float32)


def paper_case(kind, networks, size=(24, 32)):
    """A generator, a bank and images, and the first two as the baseline has them."""
    torch.manual_seed(networks)
    generator = (RRDBNet(features=8, blocks=1) if kind == "rrdbnet" else Compact(features=8, convs=2)).eval()
    written = paper.RRDBNet(8, 1) if kind == "rrdbnet" else paper.Compact(8, 2)
    written.load_state_dict(generator.state_dict())
    bank = DegradationNetwork(num_networks=networks, channels=16, blocks=2)
    bank.reset_identity(size)
    return generator, written, bank, torch.rand(2 * networks, 3, *size)


@pytest.mark.parametrize("kind", ["rrdbnet", "compact"])
def test_generators_of_the_baseline_are_andfasts(kind):
    generator, written, _, hr = paper_case(kind, 1)
    torch.testing.assert_close(written(hr), generator(hr), rtol=1e-5, atol=1e-6)


def test_networks_of_the_baseline_begin_at_the_identity():
    torch.manual_seed(0)
    network, hr = paper.Degradation((24, 32)), torch.rand(2, 3, 24, 32)
    clean = DegradationNetwork().clean(hr)
    torch.testing.assert_close(network.pool(hr), clean, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        first = network(hr)
        network.reset_identity()
    torch.testing.assert_close(first, clean, rtol=0, atol=1e-4)
    assert not torch.equal(network(hr), first)  # another identity


# A budget that binds at once (where later steps would change the loss by rounding errors, and which is the worst would
# be chance), one that binds late, and none.
@pytest.mark.parametrize(("budget_db", "count"), [(40.0, 1), (22.0, 5), (1.0, 5)])
@pytest.mark.parametrize(("kind", "networks"), [("compact", 1), ("compact", 3), ("rrdbnet", 2)])
def test_baseline_finds_what_andfast_finds(kind, networks, budget_db, count):
    generator, written, bank, hr = paper_case(kind, networks)
    generator.requires_grad_(False)
    expected = PGD(steps=count, psnr_range=(budget_db, budget_db))(bank, hr, l1_objective(generator))

    step = paper.Step(written, steps.written_networks(bank), budget_db, count)
    found = step.attack(hr)
    theta = torch.stack(
        [torch.cat([part.flatten() for part in map(torch.add, one.identity, one.deviation())]) for one in found]
    )
    torch.testing.assert_close(torch.tensor([one.loss for one in found]), expected.loss_after, rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.cat([one.lr for one in found]), expected.lr, rtol=0, atol=2e-5)
    moved = expected.delta.norm(dim=1)
    assert ((theta - expected.theta).norm(dim=1) < 1e-3 * moved).all()
    assert (moved > 0).all()


def test_baseline_has_andfasts_scale_factors():
    factors = ScaleFactors()
    assert [factors.conv_dc, *[factors.conv_shift] * 2, *[factors.conv] * 6] == paper.MOMENT_FACTORS
    assert (factors.noise, factors.slope) == (paper.NOISE_FACTOR, paper.SLOPE_FACTOR)


@pytest.mark.parametrize("who", ["andfast", "paper"])
@pytest.mark.parametrize("networks", [1, "batch"])
@pytest.mark.parametrize("method", ["PLAIN", "EXACT_5"])
def test_a_first_step_is_the_references(who, networks, method):
    case = steps.Case("compact", 2, 16, features=8, depth=1, channels=8, blocks=2)
    exact = steps.reference(case, getattr(steps, method), networks).found
    variant = steps.Variant(who, getattr(steps, method), networks)
    found = steps.make_program(case, variant).first()
    bounds = steps.EXACT if steps.type_of(case, variant) == torch.float32 else steps.ROUNDED
    steps.check(found, exact, bounds)
    assert found.updates == 1
    for wrong in (
        steps.FirstStep(1.1 * found.loss, found.gradient, 1),
        steps.FirstStep(found.loss, -found.gradient, 1),
        steps.FirstStep(found.loss, torch.full_like(found.gradient, torch.nan), 1),
    ):
        with pytest.raises(pytest.fail.Exception, match="the first step's loss is off by"):
            steps.check(wrong, exact, bounds)


def test_steps_are_benched_reported_and_recorded(tmp_path):
    path = tmp_path / "result.json"
    name = "bench/test_step.py::test_step[compact 2x16-{}]"
    variants = ["andfast plain", "(a) PyTorch exact", "andfast exact, N = B", "andfast pgd-3@0.5"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--benchmark-json={path}"]
    done = subprocess.run(
        [*command, *map(name.format, variants)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        # Of several test processes nothing is measured, and these may be such.
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        | {"ANDFAST_BENCH_SMALL": "1"},
    )
    assert done.returncode == 0, done.stdout
    assert "## step compact 2x16" in done.stdout
    rows = [line.split(" | ")[0].removeprefix("| ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["variant", *variants]

    content = json.loads(path.read_text())
    assert content["command"].startswith("python -m pytest -q")
    assert str(tmp_path) not in json.dumps(content)
    assert content["machine_info"]["versions"]["torch"] == torch.__version__
    info = {one["extra_info"]["variant"]: one["extra_info"] for one in content["benchmarks"]}
    assert info["andfast plain"]["times_plain"] == 1
    assert info["andfast pgd-3@0.5"]["over_written"] > 0
    assert info["andfast exact, N = B"]["over_written"] is None  # (a)'s own was not asked for
    assert all(one["peak_memory"] > 0 for one in info.values())


@pytest.mark.parametrize(
    ("method", "networks", "missing"),
    [
        ("pgd", "1", set()),
        ("pgd", "batch", set()),
        ("none", "1", set(profile.PHASES[1:7])),  # those of the attack
    ],
)
def test_profile_adds_up(capsys, tmp_path, monkeypatch, method, networks, missing):
    monkeypatch.setattr(profile, "matmul_rate", lambda dtype: 4e9)
    monkeypatch.setattr(profile, "copy_rate", lambda: 1e9)
    path = tmp_path / "profile.json"
    options = ["--generator=compact", "--features=8", "--depth=1", "--patch=32", f"--networks={networks}"]
    options += [f"--method={method}", "--steps=2", "--rounds=1", "--workers=0", "--output", str(path)]
    profile.main(options)
    assert "| a step without the profiler |" in capsys.readouterr().out
    content = json.loads(path.read_text())
    phases = content["phases"]
    assert {phase for phase, seconds in phases.items() if seconds == 0} == missing
    assert sum(phases.values()) == pytest.approx(content["sum_seconds"])
    assert content["difference_seconds"] == pytest.approx(content["sum_seconds"] - content["step_seconds"])
    assert content["command"] == f"python -m bench.profile {' '.join(options[:-1])} FILE"
    assert content["machine"]["versions"]["torch"] == torch.__version__
    assert content["config"]["attack"]["method"] == method
    assert content.keys() & {"limits"} == (set() if missing else {"limits"})
    if not missing:
        # F at 32 x 32 and, after the pooling by 6 x 6 taps, at 8 x 8: (into, out, taps, side, inputs a product).
        convs = [(3, 64, 9, 32, 3), *4 * [(64, 64, 9, 32, 64)], *5 * [(64, 64, 9, 8, 64)], (64, 3, 9, 8, 64)]
        products = sum(2 * out * taps * side**2 * summed for _, out, taps, side, summed in [*convs, (64, 64, 36, 8, 1)])
        numbers = sum(
            2 * (into * (side + 2) ** 2 + out * side**2) + into * out * taps for into, out, taps, side, _ in convs
        )
        numbers += 2 * 64 * (34**2 + 8**2) + 64 * 36
        seconds = 2 * products / 4 / 4e9 + 4 * numbers / 1e9
        assert content["limits"][profile.F_FORWARD] == pytest.approx(3 * seconds)
        assert content["limits"][profile.F_BACKWARD] == pytest.approx(4 * seconds)
        limits = content["limits"]
        assert 2 * limits[profile.UPDATE_FORWARD] == limits[profile.UPDATE_BACKWARD] == limits[profile.G_BACKWARD]
        assert f" {1000 * sum(limits.values()):.2f} |" in profile.table(content)


def test_profile_refuses_what_does_not_go_together(capsys):
    with pytest.raises(SystemExit) as refused:
        profile.main(["--patch=33"])
    assert refused.value.code == "error: train.patch_size is 33; it must be a multiple of scale, 4"
    with pytest.raises(SystemExit):
        profile.main(["--networks=some"])
    assert "argument --networks: wanted a number or 'batch', not 'some'" in capsys.readouterr().err


def test_gpu_script_is_well_formed():
    subprocess.run(["bash", "-n", ROOT / "bench" / "gpu.sh"], check=True)
    done = subprocess.run(["bash", ROOT / "bench" / "gpu.sh", "--wrong"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "usage: bench/gpu.sh [--dry-run]\n"
