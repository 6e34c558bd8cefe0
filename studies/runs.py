"""Training runs of a study: each a process of `andfast.train`, resumed after an interruption, and kept."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from andfast.evaluation.environment import commit
from andfast.training.records import METRICS_FILE, read_records
from andfast.utils.files import write_text
from andfast.utils.locks import locked
from andfast.utils.yaml_files import dump_yaml
from studies.study import Settings

_FINISHED = "finished.json"


class RunError(RuntimeError):
    """A training run failed, or was stopped; the message says which and why."""


@dataclass(frozen=True)
class Run:
    """A training run: its row or "start", its seed, its budget ("updates", "time", "timed"), its settings."""

    row: str
    seed: int
    budget: str
    settings: Settings

    @property
    def name(self) -> str:
        """Ends in a digest of the settings, so that a run with other settings has another name."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.row.replace(' ', '_')}-{self.budget}-seed{self.seed}-{digest}"


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        model: the file of its averaged generator.
        iterations: training steps.
        seconds_per_step: the median over means of ten steps, because a GPU's times are read every tenth step.
        seconds: of all steps.
        commit: of the code that finished it.
    """

    model: Path
    iterations: int
    seconds_per_step: float
    seconds: float
    commit: str | None


class Runner:
    """Trains runs, each in its own process on one core, and keeps them in a folder `work`.

    A finished run is not repeated. An interrupted run resumes from its last checkpoint. If a run is still training,
    because only the process that started it was killed, it is waited for.

    Attributes:
        stopped: whether `stop` was called.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self._processes: set[subprocess.Popen] = set()
        self.stopped = False
        self._changing = threading.Lock()

    def __call__(self, run: Run) -> Finished:
        """Train a run unless it is finished; may be called from several threads, for different runs.

        Raises:
            RunError: the run failed or was stopped.
            OSError: the folder cannot be written.
        """
        folder = self.work / run.name
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=True):
            if not (folder / _FINISHED).exists():
                self._train(run, folder)
                write_text(folder / _FINISHED, json.dumps(_summary(folder)) + "\n")
        return Finished(
            model=folder / "run" / "model.safetensors", **json.loads((folder / _FINISHED).read_text(encoding="utf-8"))
        )

    def _train(self, run: Run, folder: Path) -> None:
        (folder / "run").mkdir(exist_ok=True)
        with locked(folder / "run", wait=True):
            pass  # training that another, killed process left behind has ended
        settings = folder / "settings.yaml"
        write_text(settings, dump_yaml(run.settings))
        command = [sys.executable, "-m", "andfast.train", "--config", str(settings), f"--run_dir={folder / 'run'}"]
        log = folder / "log.txt"
        with log.open("ab") as output:
            with self._changing:
                if self.stopped:
                    raise RunError(f"{run.name}: stopped before it began")
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    # Ctrl-C reaches this process only, which signals each run once: a second signal ends it at once.
                    start_new_session=True,
                )
                self._processes.add(process)
            status = process.wait()
            with self._changing:
                self._processes.discard(process)
        if self.stopped:
            raise RunError(f"{run.name}: stopped; the same command resumes it")
        if status:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
            raise RunError(
                f"{run.name}: andfast.train ended with status {status}; {log} ends in\n  " + "\n  ".join(last)
            )

    def stop(self) -> None:
        """Let all runs save their state and end, and start no more."""
        with self._changing:
            self.stopped = True
            for process in self._processes:
                process.send_signal(signal.SIGTERM)


def _summary(folder: Path) -> dict:
    """The fields of `Finished` without the model, from the log of a finished run."""
    records = read_records(folder / "run" / METRICS_FILE)
    seconds = [record["seconds"] for record in records if "validation" not in record]
    size = max(min(10, len(seconds) // 5), 1)
    return {
        "iterations": len(seconds),
        "seconds_per_step": statistics.median(
            statistics.fmean(seconds[begin : begin + size]) for begin in range(0, len(seconds) - size + 1, size)
        ),
        "seconds": sum(seconds),
        "commit": commit(),
    }
