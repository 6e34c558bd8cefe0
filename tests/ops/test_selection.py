"""Implementations are verified and timed before they are used; those that fail are replaced, with a warning."""

import json
import os
import re
import sys
import tempfile
import textwrap
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from runs import photograph_crops
from tiny_trainer import TINY, as_options
from torch.fx.experimental.proxy_tensor import make_fx

from andfast import train
from andfast.ops import dispatch, kernel_table, selection, selection_worker, use_backend
from andfast.ops.backends.library import OneDnnBackend
from andfast.ops.backends.winograd import WinogradBackend
from andfast.ops.blur_pool import blur_pool
from andfast.ops.conv_act import conv_act, conv_act_reference
from andfast.ops.examples import EXAMPLES, standard_sizes
from andfast.ops.kernel_table import KernelWarning, Time, fastest

needs_cpu = pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))
CPU = torch.device("cpu")
SIZES = (5, 6, 2, 2, 17, 19)

# Finds nothing wrong, and everything a millisecond slower than what comes before it; `{body}` may change that.
WORKER = """
import json, os, sys, time
for line in sys.stdin:
    request = json.loads(line)
    answer = {{"number": request["number"], "sources": {sources!r}}}
    if "time" in request:
        answer["times"] = {{name: [1.0 + i, 1.0 + i] for i, name in enumerate(request["time"])}}
    else:
        answer["problem"] = None
        print(json.dumps({{"number": request["number"], "running": request["verify"]}}), flush=True)
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
    for cached in (dispatch._decided, kernel_table._table, selection._warn, kernel_table._warn_unwritable):
        cached.cache_clear()


@pytest.fixture
def worker(monkeypatch):
    """A function that replaces the worker by one that runs some Python at each request, and imports nothing."""

    def replace(body: str = "") -> None:
        code = WORKER.format(sources=kernel_table.sources(), body=textwrap.indent(body, "    "))
        monkeypatch.setattr(selection, "WORKER", code)
        selection._worker.stop()

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


def verify(operation: str, name: str, dtype: torch.dtype, *structure: int) -> str | None:
    return selection_worker.verify(operation, name, CPU, dtype, list(structure), lambda name: None)


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operation", EXAMPLES)
def test_all_implementations_here_are_right(operation, dtype):
    if operation == "gaussian_field":
        dtype = torch.int64
    library = ["library"] * dispatch.operations[operation]["library"].automatic
    for name in (*dispatch.candidates(operation, CPU, dtype)[:-1], *library):
        assert verify(operation, name, dtype, *SMALL[operation]) is None


@needs_cpu
@pytest.mark.parametrize("num_networks", [1, 3])
def test_the_paper_s_network_is_right_in_tiles(num_networks):
    """Eleven convolutions add up what Winograd's tiles round."""
    assert verify("degradation_forward", "winograd", torch.float32, num_networks, 3, 64, 5, 4, 0) is None
    assert not torch.are_deterministic_algorithms_enabled()


def faulty(kind, right=WinogradBackend.conv_act):
    """A backend's `conv_act` with a fault."""

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
        if kind == "corner in inference" and not save:
            y[0, 0, 0] = 0
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
    found = verify("conv_act", "winograd", torch.float32, 5, 6, 2)
    assert found is not None
    assert re.match(problem, found)


@needs_cpu
def test_a_single_wrong_pixel_in_bfloat16_is_found(monkeypatch):
    monkeypatch.setattr(OneDnnBackend, "conv_act", faulty("corner in inference", OneDnnBackend.conv_act))
    found = verify("conv_act", "onednn", torch.bfloat16, 64, 64, 2)
    assert found is not None
    assert re.match("its result without gradients differs .* of its largest value", found)


@needs_cpu
def test_an_exception_of_the_candidate_is_a_problem_and_others_are_not(monkeypatch):
    request = {"operation": "conv_act", "device": "cpu", "dtype": "float32", "threads": 1, "settings": {}}
    answers: list[dict] = []

    def ask(**asked) -> list[dict]:
        answers.clear()
        selection_worker.answer(request | asked, lambda **content: answers.append(content))
        return answers

    monkeypatch.setattr(WinogradBackend, "conv_act", faulty("raises"))
    words = "RuntimeError: out of resource: shared memory"
    failed = [{"running": "winograd"}, {"problem": words, "lost": False}]
    assert ask(verify="winograd", structure=[5, 6, 2]) == failed
    assert ask(time=["winograd", "reference"], sizes=SIZES) == failed
    monkeypatch.setattr(selection_worker, "_results", lambda example: example.no_such_attribute)
    assert list(ask(verify="winograd", structure=[5, 6, 2])[0]) == ["unknown", "lost"]


def test_a_request_says_which_gpu_and_with_what_settings(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"GPU-{device.index}"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(selection_worker, "_is_lost", lambda: False)
    used = []
    monkeypatch.setattr(selection_worker, "verify", lambda operation, name, device, *others: used.append(device))
    gpu = torch.device("cuda", 1)
    wanted = kernel_table.settings(gpu)
    assert wanted["cudnn.benchmark"] is False
    assert wanted["cudnn.conv.fp32_precision"] in ("tf32", "none", "ieee")
    request = {"operation": "conv_act", "device": "cuda", "dtype": "float32", "threads": 1, "verify": "library"}
    request |= {"structure": [], "settings": wanted | {"cudnn.benchmark": True}, "uuid": kernel_table.uuid(gpu)}
    answers: list[dict] = []
    with torch.backends.cudnn.flags(enabled=True):  # undone
        selection_worker.answer(request, lambda **content: answers.append(content))
        assert torch.backends.cudnn.benchmark
        selection_worker.answer(request | {"uuid": "GPU-7"}, lambda **content: answers.append(content))
    assert used == [gpu]
    assert answers[0] == {"problem": None}
    assert "does not see this device" in answers[1]["unknown"]


def test_what_was_found_with_other_settings_does_not_count(monkeypatch):
    usual = kernel_table.table(CPU)
    assert kernel_table.table(CPU) is usual
    monkeypatch.setattr(kernel_table, "settings", lambda device: {"mkldnn.conv.fp32_precision": "bf16"})
    assert kernel_table.table(CPU).path != usual.path


@needs_cpu
def test_running_out_of_memory_says_nothing_of_a_kernel(monkeypatch):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(WinogradBackend, "conv_act", fail)
    answers: list[dict] = []
    request = {"operation": "conv_act", "device": "cpu", "dtype": "float32", "threads": 1, "settings": {}}
    selection_worker.answer(request | {"verify": "winograd", "structure": [5, 6, 2]}, lambda **c: answers.append(c))
    assert answers[-1] == {"unknown": "OutOfMemoryError: CUDA out of memory", "lost": False}


@needs_cpu
def test_the_worker_verifies_and_times_and_the_file_keeps_it(monkeypatch, capfd, caplog):
    caplog.set_level("INFO", "andfast")
    chosen = resolve()
    found = kernel_table.table(CPU)
    (times,) = found.times.values()
    assert list(times) == ["winograd", "reference"]
    assert all(value > 0 for time in times.values() for value in time)
    assert chosen == fastest(times)
    assert found.problems == {"conv_act float32 5x6x2": {"winograd": None}}
    assert caplog.messages[0].startswith("testing which kernels are the fastest on ")
    assert capfd.readouterr().err == ""  # in other programs `logging` decides what is printed
    caplog.clear()

    forget()
    monkeypatch.setattr(selection._worker, "ask", None)  # must not be asked again
    assert resolve() == chosen
    assert dispatch.in_use("conv_act", CPU, torch.float32) == chosen
    assert not caplog.messages


@pytest.mark.parametrize(
    ("clock", "threads", "expected"),
    [(3.0, 3.0, "b"), (1.05, 1.05, "a"), (0.5, 0.5, "a"), (3.0, 0.5, "a"), (0.5, 3.0, "a")],
)
def test_a_later_one_must_be_clearly_faster_by_both_clocks(clock, threads, expected):
    assert fastest({"a": Time(clock, threads), "b": Time(1.0, 1.0)}) == expected


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
    monkeypatch.setattr(selection, "TIMEOUT", 1.0)
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
    worker('if "time" in request: answer["times"] = {"winograd": [2.0, 2.0], "reference": [1.0, 1.0]}')
    assert resolve() == "reference"
    assert dispatch.resolve("conv_act", CPU, torch.float32, SIZES, fastest=False) == "winograd"
    dispatch.measure_anew(CPU)
    worker('answer["problem"] = "it is wrong"')
    with pytest.warns(KernelWarning, match="it is wrong"):
        assert dispatch.resolve("conv_act", CPU, torch.float32, SIZES, fastest=False) == "reference"


@needs_cpu
def test_what_fails_at_the_real_size_alone_is_replaced(worker):
    worker("""
if "winograd" in request.get("time", []):
    print(json.dumps({"number": request["number"], "running": "winograd"}), flush=True)
    os.abort()
""")
    with pytest.warns(KernelWarning, match="status -6"):
        assert resolve() == "reference"
    worker()  # at another size it still runs
    assert dispatch.resolve("conv_act", CPU, torch.float32, (5, 6, 2, 1, 8, 8)) == "winograd"


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
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("os.kill(os.getpid(), 2)", "ended with status -2|KeyboardInterrupt"),
        ("os.kill(os.getpid(), 9)", "its process ended with status -9"),
        ('answer["sources"] = "others"', "the process that verifies it imports another andfast"),
        ('del answer["problem"]; answer["unknown"] = "no memory"', "no memory"),
    ],
)
def test_what_says_nothing_of_a_kernel_is_tried_again(worker, body, reason):
    worker(f'if "verify" in request:\n    import signal; signal.signal(2, signal.SIG_DFL); {body}')
    with pytest.warns(KernelWarning, match=f"could not be verified: .*({reason}).*tries again"):
        assert resolve() == "winograd"  # on the CPU
    forget()
    worker()
    assert resolve() == "winograd"
    assert kernel_table.table(CPU).problems == {"conv_act float32 5x6x2": {"winograd": None}}


def test_what_could_not_be_measured_does_not_run_on_a_gpu():
    assert selection._unmeasured(("triton", "cudnn", "reference"), torch.device("cuda")) == "reference"
    assert selection._unmeasured(("winograd", "reference"), CPU) == "winograd"


@needs_cpu
@pytest.mark.parametrize("executable", ["/no/such/python", None])
def test_a_worker_that_cannot_be_started(monkeypatch, executable):
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.warns(KernelWarning, match="could not be verified: (no process could be started|this program has no)"):
        assert resolve() == "winograd"


@needs_cpu
def test_an_idle_worker_that_died_is_started_again(worker):
    worker()
    resolve()
    selection._worker._process.kill()
    selection._worker._process.wait()
    assert dispatch.resolve("blur_pool", CPU, torch.float32, (3, 2, 1, 8, 8)) == "cpu"
    assert kernel_table.table(CPU).problems["blur_pool float32 3x2"] == {"cpu": None}


@needs_cpu
def test_an_interrupted_answer_is_not_taken_for_the_next_one(worker, monkeypatch):
    worker('if "verify" in request: answer["problem"] = request["operation"]')
    read = selection._Worker._read_line

    def interrupt(process):
        monkeypatch.setattr(selection._Worker, "_read_line", staticmethod(read))
        raise KeyboardInterrupt

    monkeypatch.setattr(selection._Worker, "_read_line", staticmethod(interrupt))
    with pytest.raises(KeyboardInterrupt):
        resolve()
    with pytest.warns(KernelWarning, match="of blur_pool .*: blur_pool"):
        dispatch.resolve("blur_pool", CPU, torch.float32, (3, 2, 1, 8, 8))


@needs_cpu
def test_what_others_print_is_no_answer(worker):
    worker('print("hello"); print("[]"); print("{}"); print(json.dumps({"number": -1, "problem": "of another"}))')
    assert resolve() == "winograd"


@needs_cpu
def test_an_idle_worker_ends(worker, monkeypatch):
    monkeypatch.setattr(selection, "_IDLE", 0.1)
    worker()
    resolve()
    for _ in range(100):
        if selection._worker._process is None:
            return
        time.sleep(0.1)
    pytest.fail("it did not end")


@needs_cpu
def test_a_forked_process_has_a_worker_of_its_own(worker):
    worker()
    resolve()
    with selection._lock:  # as if a thread were measuring
        child = os.fork()
        if child == 0:
            found = dispatch.resolve("blur_pool", CPU, torch.float32, (3, 2, 1, 8, 8))
            os._exit(0 if found == "cpu" and selection._worker._process is not None else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert dispatch.resolve("gaussian_field", CPU, torch.int64, (1, 8, 8)) == "cpu"


@needs_cpu
@pytest.mark.parametrize(("seconds", "expected"), [(0.5, torch.bfloat16), (0.95, torch.float32), (2, torch.float32)])
def test_the_faster_type_by_one_thread(worker, monkeypatch, seconds, expected):
    worker(f"""
assert request["threads"] == 1
answer["times"] = {{name: [{seconds} if request["dtype"] == "bfloat16" else 1] * 2 for name in request["time"]}}
""")
    names = {torch.float32: "winograd", torch.bfloat16: "onednn"}
    assert selection.faster_type("conv_act", names, SIZES) == expected
    forget()
    monkeypatch.setattr(selection._worker, "ask", None)  # must not be asked again
    assert selection.faster_type("conv_act", names, SIZES) == expected
    assert list(kernel_table.table(CPU).times) == ["conv_act 5x6x2 in one thread at 2^9 pixels"]


@needs_cpu
def test_types_that_cannot_be_timed(worker):
    worker('if request["dtype"] == "bfloat16": os.abort()')
    names = {torch.float32: "winograd", torch.bfloat16: "onednn"}
    with pytest.warns(KernelWarning, match="conv_act could not be timed in bfloat16: .*status -6.* tries again"):
        assert selection.faster_type("conv_act", names, SIZES) is None
    assert kernel_table.table(CPU).times == {}


def test_a_user_without_a_home(monkeypatch):
    monkeypatch.delenv("ANDFAST_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(
        Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory."))
    )
    assert kernel_table.cache_folder() == Path(tempfile.gettempdir()) / f"andfast-{os.getuid()}"


@needs_cpu
def test_choices_do_not_depend_on_which_size_came_first(worker):
    worker('if "time" in request: answer["times"]["winograd"] = [2.0 * request["sizes"][-1]] * 2')
    sizes = (5, 6, 2, 2, 64, 64), (5, 6, 2, 2, 50, 100), (5, 6, 2, 1, 90, 90), (5, 6, 2, 9, 3, 200)
    found = []
    for order in (sizes, sizes[::-1]):
        forget()
        found.append({each: dispatch.resolve("conv_act", CPU, torch.float32, each) for each in order})
    assert found[0] == found[1]


@needs_cpu
def test_a_folder_that_cannot_be_written(worker, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ANDFAST_CACHE", str(tmp_path / "file"))
    worker()
    with pytest.warns(KernelWarning, match="file.* cannot be written .*ANDFAST_CACHE"):
        assert resolve() == "winograd"


@needs_cpu
@pytest.mark.parametrize(
    "content",
    [
        '{"problems": {}, "times": {',
        "[]",
        "null",
        '{"problems": [], "times": {}}',
        '{"problems": {"conv_act float32 5x6x2": 3}, "times": {}}',
        '{"problems": {}, "times": {"conv_act float32 5x6x2 at 2^9 pixels": {"winograd": null, "reference": [1]}}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_is_measured_anew(worker, content):
    worker()
    path = kernel_table.table(CPU).path
    path.parent.mkdir(parents=True)
    path.write_text(content)
    forget()
    assert resolve() == "winograd"
    assert json.loads(path.read_text())["problems"] == {"conv_act float32 5x6x2": {"winograd": None}}


@needs_cpu
def test_what_another_process_has_found_meanwhile_counts(worker):
    worker()
    mine = kernel_table.table(CPU)
    other = kernel_table.Table(mine.device, mine.environment)
    other.problems["conv_act float32 5x6x2"] = {"winograd": "it is wrong"}
    other.times["conv_act float32 5x6x2 at 2^9 pixels"] = {name: Time(1, 1) for name in ("triton", "reference")}
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
    assert selection._at_most((64, 32, 1, 2, 64, 64), CPU) == (64, 32, 1, 2, 64, 64)
    *structure, batch, height, width = selection._at_most((64, 32, 1, 1, 4000, 6001), CPU)
    assert structure == [64, 32, 1]
    assert most / 4 < batch * height * width <= most


@needs_cpu
def test_a_choice_is_made_while_torch_compile_traces(worker):
    worker()
    weight, bias, x = torch.randn(6, 5, 3, 3), torch.randn(6), torch.randn(2, 5, 17, 19)
    compiled = torch.compile(lambda x: conv_act(x, weight, bias, 0.2), fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = F.leaky_relu(F.conv2d(x, weight, bias, padding=1), 0.2)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-4)
    assert selection.chosen_here() == {"conv_act": ["winograd"]}


@needs_cpu
def test_sizes_may_be_symbols(worker):
    worker()
    weight, bias = torch.randn(6, 5, 3, 3), torch.randn(6)

    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return conv_act(blur_pool(x, 2), weight, bias, 0.2)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        traced = make_fx(run, tracing_mode="symbolic")(torch.randn(2, 5, 16, 18), weight, bias)
        for shape in ((2, 5, 16, 18), (3, 5, 20, 18), (1, 5, 24, 34)):
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x, weight, bias), run(x, weight, bias))
            torch.testing.assert_close(traced(x, weight, bias), run(x, weight, bias))


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
