"""A process that keeps what it frees maps no pages for what it takes next."""

import platform
import subprocess
import sys

import pytest

from andfast.utils.memory import keep_freed_memory

PROGRAM = """
import resource, sys
import torch
from andfast.utils.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.empty(12 * 2**20).fill_(1)
before = pages()
for _ in range(10):
    torch.empty(12 * 2**20).fill_(1)
print(pages() - before)
"""


def mapped(how: str) -> int:
    """Pages that a process maps while it takes and frees 48 MiB ten times."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is for glibc")
def test_pages_are_mapped_once():
    if mapped("do not") < 1000:
        pytest.skip("this system keeps memory, or maps large pages, by itself")
    assert mapped("keep") < 100


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
