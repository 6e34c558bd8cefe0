"""What commands print, where that cannot be printed or nobody reads it."""

import io
import logging
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image
from tqdm import tqdm

from andfast import info, plot, train, upscale
from andfast.utils import console as module
from andfast.utils.console import console

NAME = "r\udce9sultats \u7ed3\u679c"


def stream(file, encoding="utf-8", **options):
    return io.TextIOWrapper(file, encoding=encoding, **options)


def closed_pipe():
    """What is written to a program that has ended; with a buffer, as the interpreter has it."""
    reader, writer = os.pipe()
    os.close(reader)
    return stream(os.fdopen(writer, "wb"))


def full_disk():
    return stream(open("/dev/full", "wb"))


def shut():
    made = io.StringIO()
    made.close()
    return made


UNHEARD = [closed_pipe, full_disk, shut, lambda: None]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_characters_that_an_encoding_lacks_are_printed_as_escapes(encoding, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", stream(written, encoding))
    with console():
        print(f"written: {NAME}")
        tqdm.write(NAME)
    line = NAME.encode(encoding, "backslashreplace").replace(b"\xe9", NAME[1].encode(encoding, "backslashreplace"))
    assert written.getvalue() == b"written: " + line + b"\n" + line + b"\n"
    assert sys.stdout.errors == "strict"


def test_what_a_stream_escapes_itself_is_left_to_it(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", stream(written, errors="surrogateescape"))
    with console():
        print("caf\udce9")
    assert written.getvalue() == b"caf\xe9\n"


def test_the_log_is_printed_by_commands_alone(capsys):
    log = logging.getLogger("andfast.somewhere")
    with console():
        log.info("takes seconds")
        log.debug("details")
    log.info("of a library")
    assert capsys.readouterr().err == "takes seconds\n"


@pytest.mark.parametrize("make", UNHEARD)
def test_what_nobody_hears_ends_nothing(make, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, make())
    before = sys.stdout, sys.stderr
    with console():
        for _ in range(3):
            print("a" * 100_000)
            print("b", file=sys.stderr, flush=True)
            for _ in tqdm(range(2), disable=None):
                pass
    assert (sys.stdout, sys.stderr) == before
    if make in (closed_pipe, full_disk):  # nothing is left that the interpreter would try again
        for each in before:
            each.close()


def test_what_is_asked_to_pass_does(monkeypatch):
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    with pytest.raises(BrokenPipeError), console(BrokenPipeError):
        print("a", flush=True)
    monkeypatch.setattr(sys, "stdout", full_disk())
    with console(BrokenPipeError):
        print("a", flush=True)


def test_a_stream_goes_on_after_a_disk_was_full(tmp_path, monkeypatch):
    with open(tmp_path / "log", "w+b", buffering=0) as log, open("/dev/full", "wb") as full:
        monkeypatch.setattr(sys, "stdout", stream(io.BufferedWriter(log)))
        with console():
            kept = os.dup(log.fileno())
            os.dup2(full.fileno(), log.fileno())
            print("lost", flush=True)
            os.dup2(kept, log.fileno())
            os.close(kept)
            print("kept", flush=True)
        assert (tmp_path / "log").read_text() == "kept\n"


@pytest.mark.parametrize("make", [*UNHEARD, lambda: stream(io.BytesIO(), "ascii")])
def test_commands_do_their_work_unheard(make, tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, make())
    output = tmp_path / NAME
    assert upscale.main([str(tmp_path / "a.png"), str(tmp_path / "a.png"), "--output", str(output)]) == 0
    assert (output / "a.png").exists()
    assert info.main(["--json"]) is None
    assert plot.main([str(tmp_path / NAME)]) == 2
    with pytest.raises(SystemExit) as end:
        upscale.main(["--help"])
    assert end.value.code == 0


def test_training_ends_as_by_the_signal_when_its_reader_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream(closed_pipe().detach(), write_through=True))
    for name in "abcd":
        Image.effect_noise((48, 48), 60).save(tmp_path / f"{name}.png")
    options = ["--generator.features=8", "--train.patch_size=32", "--device=cpu", f"--data.hr={tmp_path}"]
    assert train.main([f"--run_dir={tmp_path / 'run'}", *options]) == 128 + 13


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "> /dev/full", "| head -c 0"])
def test_the_interpreter_has_nothing_to_add_at_its_end(closed):
    # By its file: to import the package would take seconds.
    code = f"import runpy\nwith runpy.run_path({module.__file__!r})['console']():\n print('a' * 99_999)\n"
    command = f"{{ '{sys.executable}' -c \"$0\"; echo $? >&3; }} {closed}"
    done = subprocess.run(["sh", "-c", f"exec 3>&2 4>&1; {command}", code], capture_output=True, text=True)
    assert done.stderr == "0\n"


WAITS = """
import runpy, signal, sys, time
console = runpy.run_path(sys.argv[1])["console"]  # alone: to import all of andfast takes seconds

@console()
def main():
    try:
        print("begun", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("putting things in order", flush=True)
        while True:  # as in an operation that does not listen
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass

signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="processes are sent SIGINT")
def test_a_second_ctrl_c_ends_a_command_at_once():
    with subprocess.Popen([sys.executable, "-c", WAITS, module.__file__], stdout=subprocess.PIPE, text=True) as process:
        for said in ("begun", "putting things in order"):
            assert process.stdout.readline() == f"{said}\n"
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT


def test_ctrl_c_is_as_before_afterwards():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), console():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        own = lambda number, frame: None  # noqa: E731
        signal.signal(signal.SIGINT, own)
        with console():
            assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_that_another_one_calls_prints_the_log_once(capsys):
    @console()
    def inner():
        logging.getLogger("andfast.ops").warning("slow")

    @console()
    def outer():
        inner()
        logging.getLogger("andfast.ops").warning("done")

    outer()
    assert capsys.readouterr().err == "slow\ndone\n"
