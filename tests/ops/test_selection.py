"""Implementations are verified and timed before they are used; those that fail are replaced, with a warning."""

import json
import re
import sys
import textwrap
import warnings

import pytest
import torch
import torch.nn.functional as F
from runs import photograph_crops
from tiny_trainer import TINY, as_options

from andfast import train
from andfast.ops import dispatch, selection, selection_worker, use_backend
from andfast.ops.backends.winograd import WinogradBackend
from andfast.ops.conv_act import conv_act, conv_act_reference
from andfast.ops.examples import EXAMPLES, standard_sizes
from andfast.ops.selection import KernelWarning

needs_cpu = pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))
CPU = torch.device("cpu")
SIZES = (5, 6, 2, 2, 17, 19)

# Finds nothing wrong, and everything a millisecond slower than what comes before it; `{body}` may change that.
WORKER = """
import json, os, sys, time
for line in sys.stdin:
    request = json.loads(line)
    answer = {{"problem": None, "ms": {{name: 1.0 + i for i, name in enumerate(request.get("time", []))}}}}
{body}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(autouse=True)
def measured(monkeypatch, tmp_path):
    """Measure, in a folder of the test's own."""
    monkeypatch.setenv("ANDFAST_MEASURE", "1")
    monkeypatch.setenv("ANDFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(selection, "_worker", selection._Worker())
    forget()
    yield
    selection._worker.stop()
    forget()


def forget():
    """As a new process."""
    selection._chosen.clear()
    for cached in (selection._table, selection._warn, selection._warn_unwritable):
        cached.cache_clear()


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """A function that replaces the worker by one that runs some Python at each request, and imports nothing."""

    def replace(body: str = "") -> None:
        script = tmp_path / "worker.py"
        script.write_text(WORKER.format(body=textwrap.indent(body, "    ")))
        monkeypatch.setattr(selection, "WORKER", [sys.executable, str(script)])

    return replace


def resolve() -> str:
    return dispatch.resolve("conv_act", CPU, torch.float32, SIZES)


def test_every_operation_has_an_example():
    assert set(EXAMPLES) == set(dispatch.operations)
    assert {operation for operation, _, _ in standard_sizes(CPU)} == set(EXAMPLES)


SMALL = {
    "conv_act": (9, 7, 2),
    "dense_block": (6, 5, 2),
    "degradation_block": (4, 3, 9, 1),
    "degradation_forward": (4, 3, 7, 2, 3, 1),
    "blur_pool": (5, 4),
    "gaussian_field": (),
    "projected_step": (),
    "identity_last": (2, 3, 8, 8),
}


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operation", EXAMPLES)
def test_all_implementations_here_are_right(operation, dtype):
    if operation == "gaussian_field":
        dtype = torch.int64
    for name in dispatch.candidates(operation, CPU, dtype)[:-1]:
        assert selection_worker.verify(operation, name, CPU, dtype, [*SMALL[operation], 1, 8, 8]) is None
    assert not torch.are_deterministic_algorithms_enabled()


def faulty(kind):
    """`WinogradBackend.conv_act` with a fault."""
    right = WinogradBackend.conv_act

    def run(self, x, weight, bias, slope, save):
        y, mask = right(self, x, weight, bias, slope, save)
        if kind == "raises":
            raise RuntimeError("out of resource: shared memory\nsecond line")
        if kind == "last column":
            y[:, :, -1] = 0
        if kind == "unwritten":
            rest = torch.empty_like(y)
            rest[:, :-1] = y[:, :-1]
            y = rest
        if kind == "mask":
            mask = mask ^ 1
        if kind == "random":
            y = y + 1e-7 * torch.rand_like(y)
        return y, mask

    return run


@needs_cpu
@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("last column", "its result differs from the exact one by"),
        ("unwritten", "its result holds NaN or memory that was never written"),
        ("mask", "its gradient 1 differs from the exact one by"),
        ("random", "it gives other bits when it is repeated"),
    ],
)
def test_wrong_results_are_found(monkeypatch, kind, problem):
    monkeypatch.setattr(WinogradBackend, "conv_act", faulty(kind))
    found = selection_worker.verify("conv_act", "winograd", CPU, torch.float32, list(SIZES))
    assert found is not None
    assert re.match(problem, found)


@needs_cpu
def test_an_exception_is_a_problem(monkeypatch):
    monkeypatch.setattr(WinogradBackend, "conv_act", faulty("raises"))
    request = {"operation": "conv_act", "device": "cpu", "dtype": "float32", "sizes": SIZES, "threads": 1}
    answers: list[dict] = []
    selection_worker.answer(request | {"verify": "winograd"}, lambda **content: answers.append(content))
    assert answers == [{"problem": "RuntimeError: out of resource: shared memory", "lost": False}]
    answers.clear()
    selection_worker.answer(request | {"time": ["winograd", "reference"]}, lambda **content: answers.append(content))
    assert answers[0] == {"running": "winograd"}
    assert answers[1]["problem"] == "RuntimeError: out of resource: shared memory"


@needs_cpu
def test_the_worker_verifies_and_times_and_the_file_keeps_it(monkeypatch, capfd):
    chosen = resolve()
    found = selection.table(CPU)
    (times,) = found.milliseconds.values()
    assert list(times) == ["winograd", "reference"]
    assert all(value > 0 for value in times.values())
    assert chosen == selection._fastest(times)
    assert found.problems == {"conv_act float32 5x6x2": {"winograd": None}}
    assert "verifying and timing kernels" in capfd.readouterr().err

    forget()
    monkeypatch.setattr(selection._worker, "ask", None)  # must not be asked again
    assert resolve() == chosen
    assert dispatch.in_use("conv_act", CPU, torch.float32) == chosen
    assert capfd.readouterr().err == ""


@needs_cpu
def test_the_fastest_runs(worker):
    for milliseconds, expected in ((3.0, "reference"), (1.05, "winograd"), (0.5, "winograd"), (None, "winograd")):
        forget()
        selection.table(CPU).clear()
        worker(f'answer["ms"] = {{"winograd": {milliseconds}, "reference": 1.0}}')
        selection._worker.stop()
        assert resolve() == expected


@needs_cpu
@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("os.abort()", "its process ended with status -6"),
        (
            'sys.exit("CUDA error: an illegal memory access")',
            "ended with status 1: CUDA error: an illegal memory access",
        ),
        ("time.sleep(60)", "it did not finish within 1 s"),
        ('answer["problem"] = "RuntimeError: no C compiler"', "RuntimeError: no C compiler"),
    ],
)
def test_what_fails_is_replaced_with_one_warning(worker, monkeypatch, body, problem):
    monkeypatch.setattr(selection, "_TIMEOUT", 1.0)
    worker(f'if request.get("verify") == "winograd": {body}')
    with pytest.warns(KernelWarning, match="the winograd kernels of conv_act .*andfast.info --verify") as found:
        assert resolve() == "reference"
    assert problem in str(next(each.message for each in found if each.category is KernelWarning))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve() == "reference"
        images = torch.randn(2, 5, 17, 19), torch.randn(6, 5, 3, 3).requires_grad_(), torch.randn(6)
        assert torch.equal(conv_act(*images, 0.2), conv_act_reference(*images, 0.2))


@needs_cpu
def test_the_first_that_is_right_where_memory_counts(worker):
    worker('answer["ms"] = {"winograd": 2.0, "reference": 1.0}')
    assert resolve() == "reference"
    assert dispatch.resolve("conv_act", CPU, torch.float32, SIZES, fastest=False) == "winograd"
    selection.table(CPU).clear()
    selection._worker.stop()
    worker('answer["problem"] = "it is wrong"')
    with pytest.warns(KernelWarning, match="it is wrong"):
        assert dispatch.resolve("conv_act", CPU, torch.float32, SIZES, fastest=False) == "reference"


@needs_cpu
def test_what_fails_at_the_real_size_alone_is_replaced(worker):
    worker("""
if "winograd" in request.get("time", []):
    print(json.dumps({"running": "winograd"}), flush=True)
    os.abort()
""")
    with pytest.warns(KernelWarning, match="status -6"):
        assert resolve() == "reference"


@needs_cpu
def test_a_device_that_is_lost_is_lost_to_one_process_alone(worker, tmp_path):
    worker(f"""
if request.get("verify"):
    answer |= {{"problem": "AcceleratorError: illegal memory access", "lost": True}}
open({str(tmp_path / "processes")!r}, "a").write(f"{{os.getpid()}}\\n")
""")
    with pytest.warns(KernelWarning, match="illegal memory access"):
        assert resolve() == "reference"
    with pytest.warns(KernelWarning):
        dispatch.resolve("blur_pool", CPU, torch.float32, (3, 2, 1, 8, 8))
    processes = (tmp_path / "processes").read_text().split()
    assert len(processes) == len(set(processes)) >= 2


@needs_cpu
def test_a_worker_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(selection, "WORKER", ["/no/such/python"])
    with pytest.warns(KernelWarning, match="no process could be started to run it"):
        assert resolve() == "reference"


@needs_cpu
def test_a_folder_that_cannot_be_written(worker, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ANDFAST_CACHE", str(tmp_path / "file"))
    worker()
    with pytest.warns(KernelWarning, match="file.* cannot be written .*ANDFAST_CACHE"):
        assert resolve() == "winograd"


@needs_cpu
def test_a_damaged_file_is_measured_anew(worker):
    worker()
    resolve()
    path = selection.table(CPU).path
    path.write_text(path.read_text()[:-20])
    forget()
    assert resolve() == "winograd"
    json.loads(path.read_text())


@needs_cpu
def test_what_another_process_has_found_meanwhile_counts(worker):
    worker()
    mine = selection.table(CPU)
    other = selection.Table(mine.device, mine._environment)
    other.problems["conv_act float32 5x6x2"] = {"winograd": "it is wrong"}
    other.milliseconds["conv_act float32 5x6x2 at 2^9 pixels"] = {"reference": None}
    with other.opened():
        other.write()
    with pytest.warns(KernelWarning, match="it is wrong"):
        assert resolve() == "reference"


@needs_cpu
def test_nothing_is_measured_that_is_forced_or_has_no_choice(monkeypatch):
    monkeypatch.setattr(selection._worker, "ask", None)
    with use_backend("cpu"):
        assert resolve() == "winograd"
    assert dispatch.resolve("conv_act", CPU, torch.float64, SIZES) == "reference"
    assert dispatch.resolve("conv_act", CPU, torch.float32, (*SIZES[:-1], 0)) == "winograd"  # no pixels
    monkeypatch.setenv("ANDFAST_MEASURE", "0")
    assert resolve() == "winograd"


def test_large_sizes_are_timed_smaller():
    most = selection.MOST_PIXELS["cpu"]
    assert selection._at_most((64, 32, 1, 2, 64, 64), most) == (64, 32, 1, 2, 64, 64)
    *structure, batch, height, width = selection._at_most((64, 32, 1, 1, 4000, 6001), most)
    assert structure == [64, 32, 1]
    assert most / 4 < batch * height * width <= most


@needs_cpu
def test_a_choice_is_made_while_torch_compile_traces(worker):
    worker()
    weight, bias, x = torch.randn(6, 5, 3, 3), torch.randn(6), torch.randn(2, 5, 17, 19)
    compiled = torch.compile(lambda x: conv_act(x, weight, bias, 0.2), fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), F.leaky_relu(F.conv2d(x, weight, bias, padding=1), 0.2))
    assert selection.chosen_here() == {"conv_act": ["winograd"]}


@needs_cpu
def test_training_goes_on_by_plain_pytorch_where_every_kernel_fails(worker, tmp_path, capsys):
    worker('if "verify" in request: os.abort()')
    run_dir = tmp_path / "run"
    settings = as_options(TINY | {"train.iterations": 2, "run_dir": run_dir, "data.hr": photograph_crops()})
    with pytest.warns(KernelWarning) as found:
        assert train.main(settings) == 0
    assert any("winograd kernels of degradation_forward" in str(each.message) for each in found)
    assert (run_dir / "model.safetensors").exists()
    assert "kernels: degradation reference, generator reference" in capsys.readouterr().out
