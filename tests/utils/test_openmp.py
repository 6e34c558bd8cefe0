"""Idle threads sleep, unless the user wants otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SHOW = f"""
import os
from andfast.utils import openmp
print(*(os.environ.get(name) for name in {NAMES}), openmp.state, sep="|")
"""


@pytest.mark.parametrize(
    ("first", "given", "expected"),
    [
        ("import andfast", {}, "passive|0|they sleep"),
        ("import andfast.training.trainer", {}, "passive|0|they sleep"),
        (
            "import torch, andfast",
            {},
            "None|None|they spin, since torch was imported before andfast; "
            "set OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0 or import andfast first",
        ),
        ("import andfast", {"OMP_WAIT_POLICY": "active"}, "active|None|OMP_WAIT_POLICY=active"),
        ("import andfast", {"GOMP_SPINCOUNT": "100"}, "None|100|GOMP_SPINCOUNT=100"),
    ],
)
def test_the_setting_is_made_before_torch_is_imported(first: str, given: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | given
    command = [sys.executable, "-c", first + SHOW]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
