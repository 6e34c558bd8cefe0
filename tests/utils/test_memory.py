"""A process that keeps what it frees maps no pages for what it takes next."""

import platform
import subprocess
import sys

import pytest

from andfast.utils import memory
from andfast.utils.memory import keep_freed_memory, return_freed_memory

# The module by its file: importing the package would take seconds.
PROGRAM = """
import resource, runpy, sys
import torch
keep_freed_memory = runpy.run_path(sys.argv[1])["keep_freed_memory"]
def mapped():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(12 * 2**20).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
freed = mapped()
assert keep_freed_memory()
mapped()
print(freed, mapped())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is for glibc")
def test_pages_are_mapped_once():
    """Those of 48 MiB that are allocated and freed ten times."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, memory.__file__], capture_output=True, text=True, check=True)
    freed, kept = map(int, done.stdout.split())
    if freed < 1000:
        pytest.skip("this system keeps memory, or maps large pages, by itself")
    assert kept < 100


HOLDING = """
import runpy, sys
import torch
memory = runpy.run_path(sys.argv[1])
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
assert memory["keep_freed_memory"]()
large = torch.ones(64 * 2**20)
del large
kept = resident()
memory["return_freed_memory"]()
print(kept - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is for glibc")
def test_freed_memory_goes_back():
    """Most of 256 MiB that were freed, and kept until then."""
    done = subprocess.run([sys.executable, "-c", HOLDING, memory.__file__], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 200 * 2**20


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
    return_freed_memory()
