"""Folders that one process at a time works in."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from andfast.utils.locks import LOCK_FILE, LockedError, locked

fcntl = pytest.importorskip("fcntl")

HOLD = "import fcntl, sys; file = open(sys.argv[1], 'a+'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"


@pytest.fixture
def held(tmp_path: Path):
    """A folder whose lock another process holds, and that process."""
    (tmp_path / LOCK_FILE).write_text("process 7 on elsewhere, since yesterday,\n")
    command = [sys.executable, "-c", HOLD, tmp_path / LOCK_FILE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        yield tmp_path, process
        process.kill()


def is_free(folder: Path) -> bool:
    """Whether another process could take the lock."""
    take = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", take, folder / LOCK_FILE]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def test_the_folder_is_held_meanwhile_and_it_is_said_by_whom(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert not is_free(tmp_path)
        assert (tmp_path / LOCK_FILE).read_text().startswith(f"process {os.getpid()} on ")
    assert is_free(tmp_path)
    assert (tmp_path / LOCK_FILE).read_text() == ""


def test_a_folder_that_another_process_holds_is_refused_and_left_alone(held) -> None:
    folder, process = held
    expected = f"^{folder}: process 7 on elsewhere, since yesterday, works in this folder; wait for its end, or give"
    with pytest.raises(LockedError, match=expected), locked(folder):
        pass
    assert not is_free(folder)
    assert (folder / LOCK_FILE).read_text() == "process 7 on elsewhere, since yesterday,\n"
    process.kill()  # however it ends, its lock is gone
    process.wait()
    with locked(folder):
        pass


def test_it_can_be_waited_for(held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    folder, process = held
    monkeypatch.setattr(time, "sleep", lambda seconds: (process.kill(), process.wait()))
    with locked(folder, wait=True):
        assert not is_free(folder)
    (told,) = caplog.messages
    who = "process 7 on elsewhere, since yesterday"
    assert told == f"{folder}: {who}, works in this folder; waiting until it is done there"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_forked_process_does_not_hold_it_on(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            os.read(reader, 1)
            os._exit(0)
    assert is_free(tmp_path)
    os.write(writer, b"x")
    os.waitpid(child, 0)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_costs_a_warning(tmp_path: Path, monkeypatch, caplog, number: int) -> None:
    def refuse(*values):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with locked(tmp_path):
        pass
    assert "cannot be locked" in caplog.text


def test_a_lock_that_fails_otherwise_is_an_error(tmp_path: Path, monkeypatch) -> None:
    def fail(*values):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "lockf", fail)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path):
        pass
