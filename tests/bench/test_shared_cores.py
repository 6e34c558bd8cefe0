"""Steps beside other processes: each situation is measured, in the environment that it is for."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from bench import shared_cores

SMALL = ["--depth=1", "--batch=1", "--patch=16", "--steps=2"]


def test_all_situations_are_measured(tmp_path: Path, capsys, monkeypatch) -> None:
    """With other steps, which tell how idle threads are set."""
    steps = """import os; print("ready", flush=True); input(); print(1 + ("GOMP_SPINCOUNT" in os.environ))"""
    monkeypatch.setattr(shared_cores, "_STEPS", steps)
    output = tmp_path / "result.json"
    shared_cores.main([*SMALL, f"--output={output}"])
    content = json.loads(output.read_text())
    for idle, time in {"sleep": 1.0, "spin": 2.0}.items():
        expected = {"alone": [time], "two at once": [time, time], "beside a busy loop": [time]}
        assert content["seconds"][idle] == expected
    assert content["command"].startswith("python -m bench.shared_cores --depth=1")
    assert "| two at once | " in capsys.readouterr().out


def test_steps_are_timed_one_by_one() -> None:
    options = Namespace(generator="compact", depth=1, batch=1, patch=16, steps=3)
    seconds = shared_cores.measure("alone", "sleep", options)
    assert len(seconds) == 3
    assert all(second > 0 for second in seconds)


def test_a_process_that_fails_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(shared_cores, "_STEPS", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="ended with status 3"):
        shared_cores.main(SMALL)


def test_the_table_is_of_medians() -> None:
    seconds = {idle: {name: [1.0, 2.0, 9.0] for name in shared_cores.SITUATIONS} for idle in shared_cores.IDLE}
    seconds["spin"]["two at once"] = [8.0, 10.0]
    assert "| two at once | 2.00 (1.00x) | 9.00 (4.50x) |" in shared_cores.table(seconds)
