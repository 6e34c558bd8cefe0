"""Loops by our own threads: every part is done once, errors reach the caller, forks and other loops do no harm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_on_host import compiler

from andfast.ops import dispatch

CPU = Path(__file__).parents[2] / "csrc" / "cpu"

LOOPS = r"""
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "team.h"

using andfast::cpu::run_in_team;

// Whether a loop visits each number of [0, count) once.
bool all_once(int64_t count, int64_t grain, int64_t threads) {
  std::vector<std::atomic<int>> visits(count);
  std::atomic<int64_t> parts{0};
  const bool ran = run_in_team(count, grain, threads, [&](int64_t begin, int64_t end) {
    ++parts;
    for (int64_t i = begin; i < end; ++i) ++visits[i];
  });
  for (auto& visit : visits) {
    if (visit != 1) return false;
  }
  return ran && parts <= threads && (count > grain || parts <= 1);
}

#define EXPECT(what) \
  if (!(what)) return std::printf("line %d: not so: %s\n", __LINE__, #what), 1

int main() {
  for (int64_t count : {0, 1, 2, 3, 7, 8, 100, 1001}) {
    for (int64_t grain : {1, 3, 64}) {
      for (int64_t threads : {1, 2, 5, 16, 3}) EXPECT(all_once(count, grain, threads));
    }
  }
  // Many short loops one after the other, and some after a pause in which all threads fall asleep.
  for (int i = 0; i < 20000; ++i) EXPECT(all_once(4, 1, 3));
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT(all_once(100, 1, 4));
  }
  // An error of any part; the others are done all the same, and so is the next loop.
  for (int64_t bad : {0, 50, 99}) {
    std::atomic<int> done{0};
    std::string error;
    try {
      run_in_team(100, 1, 4, [&](int64_t begin, int64_t end) {
        if (begin <= bad && bad < end) throw std::runtime_error("no memory");
        done += int(end - begin);
      });
    } catch (const std::runtime_error& thrown) {
      error = thrown.what();
    }
    EXPECT(error == "no memory" && done == 75);
    EXPECT(all_once(100, 1, 4));
  }
  // A loop within a loop is left to the caller.
  std::atomic<int> inner{0};
  EXPECT(run_in_team(4, 1, 4, [&](int64_t, int64_t) { inner += run_in_team(4, 1, 4, [](int64_t, int64_t) {}); }));
  EXPECT(inner == 0);
  // Several callers: whoever finds another's loop running is told so.
  std::atomic<int> wrong{0}, ran{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (int j = 0; j < 2000; ++j) {
        std::atomic<int> sum{0};
        if (!run_in_team(64, 1, 3, [&](int64_t begin, int64_t end) { sum += int(end - begin); })) continue;
        ++ran, wrong += sum != 64;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT(wrong == 0 && ran > 0);
  const pid_t child = fork();
  if (child == 0) _exit(all_once(100, 1, 4) ? 0 : 1);
  int status = 1;
  waitpid(child, &status, 0);
  EXPECT(status == 0);
  EXPECT(all_once(100, 1, 4));
  return 0;
}
"""


@pytest.mark.skipif(compiler() is None or sys.platform != "linux", reason="needs a C++ compiler, and fork")
def test_loops(tmp_path: Path) -> None:
    source, program = tmp_path / "loops.cpp", tmp_path / "loops"
    source.write_text(LOOPS)
    flags = ["-std=c++17", "-O2", "-pthread", f"-I{CPU}"]
    subprocess.run([compiler(), *flags, str(source), str(CPU / "team.cpp"), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "")


PRINT_RESULTS = """
import threading, torch
import andfast
from andfast.ops import use_backend
from andfast.ops.conv_act import conv_act

torch.set_num_threads(3)
torch.manual_seed(0)
x, weight, bias = torch.randn(2, 8, 37, 21, requires_grad=True), torch.randn(16, 8, 3, 3), torch.randn(16)

def run(results):
    for _ in range(20):
        y = conv_act(x, weight, bias)
        gradient, = torch.autograd.grad(y.square().sum(), x)
        results.append((y.sum(dtype=torch.float64), gradient.sum(dtype=torch.float64)))

with use_backend("cpu"):
    found = [[] for _ in range(3)]
    threads = [threading.Thread(target=run, args=(each,)) for each in found]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print({tuple(map(float, pair)) for each in found for pair in each}, sum(map(len, found)))
"""


@pytest.mark.skipif("cpu" in dispatch.unavailable, reason="the extension is not built")
def test_results_are_those_of_torch_loops() -> None:
    """By several callers at once, as in a server."""
    results = []
    for policy in ("passive", "active"):
        environment = os.environ | {"OMP_WAIT_POLICY": policy, "GOMP_SPINCOUNT": "0"}
        command = [sys.executable, "-c", PRINT_RESULTS]
        results.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert results[0] == results[1]
    assert results[0].endswith(" 60\n")
    assert results[0].count("(") == 1
