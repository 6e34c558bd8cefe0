"""Peak memory, of tensors whose sizes are known."""

import sys

import pytest
import torch

from bench.peak_memory import peak_memory

MIB = 2**20


def megabytes(count: int) -> torch.Tensor:
    return torch.empty(count * MIB, dtype=torch.uint8)


def test_the_peak_is_what_lives_at_a_time(capfd):
    def function() -> None:
        kept = megabytes(4)
        passing = megabytes(8)
        del passing
        later = megabytes(3)
        del kept, later

    assert peak_memory(function, torch.device("cpu")) == 12 * MIB
    assert capfd.readouterr().err == ""  # torch's profiler announces itself there


def test_what_was_there_before_does_not_count():
    before = megabytes(16)
    assert peak_memory(lambda: before[:MIB].clone(), torch.device("cpu")) == MIB
    assert peak_memory(lambda: None, torch.device("cpu")) == 0


def test_errors_pass_through_and_the_error_stream_is_left_as_it_was(capfd):
    def function() -> None:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        peak_memory(function, torch.device("cpu"))
    print("still there", file=sys.stderr)
    assert capfd.readouterr().err == "still there\n"
    assert peak_memory(lambda: megabytes(1), torch.device("cpu")) == MIB
