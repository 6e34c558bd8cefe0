"""Compare ways to train: `python -m studies.compare STUDY --data.hr DIR... --pairs DIR... --work DIR --output FILE`.

STUDY is a YAML file as studies/table2.yaml. For every seed, one run on clean LR images makes the weights that all rows
start from. The rows are then timed for a few steps, one after the other, so keep the machine free of other work. Every
row is trained for the same number of generator updates, and once more for as many updates as fit into the time of the
study's subject. The models are tested on camera-captured pairs, clean LR images and unseen degradations, and, if the
study has `worst`, in the worst case that adversaries find on crops of held-out photographs. FILE is written after every
run; `python -m studies.report FILE` makes tables of it.

Every run is kept in the work folder: the same command resumes after an interruption, and computes only what is new or
changed in the study.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from andfast.data.pairs import find_pairs
from andfast.evaluation.attackers import ATTACKERS, Effort
from andfast.evaluation.models import Method, bicubic_method
from andfast.evaluation.robustness import Plan, case_name, make_crops
from andfast.inference.tiles import NonFiniteError
from andfast.models import ModelError
from andfast.training.config import Config, TrainConfig
from andfast.utils import command_line
from andfast.utils.command_line import as_path, whole
from andfast.utils.console import console
from andfast.utils.devices import choose_device
from andfast.utils.files import write_json, write_text
from andfast.utils.memory import keep_freed_memory
from bench.record import now, origin
from studies.evaluate import Scores, evaluate, evaluate_worst, load_models
from studies.outcome import ALL_STRENGTHS, BICUBIC, BUDGETS, START, TIME, UPDATES, WORST, Outcome, column_titles
from studies.runs import Finished, Run, RunError, Runner
from studies.study import TUNING_PAIRS, Settings, StudyError, checked, filled, merged, read_study
from studies.testsets import (
    CLEAN,
    TUNING,
    TestSets,
    digest,
    groups,
    held_out_photographs,
    link_pairs,
    reduced,
    split_pairs,
    study_sets,
)

# Numbers of updates that differ by less are taken for the same: time is not measured more precisely.
_NEAR = 0.1
# A row is timed by so many steps, for every seed.
_TIMED_STEPS = 20


def make_parser() -> ArgumentParser:
    """The command line of `python -m studies.compare`."""
    parser = command_line.make_parser("studies.compare", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("study", type=as_path, metavar="STUDY", help="a YAML file as studies/table2.yaml")
    add("--data.hr", nargs="+", type=as_path, default=[], metavar="DIR", help="HR images to train on")
    add("--pairs", nargs="+", type=as_path, default=[], metavar="DIR", help="camera pairs, in HR/ and LR/, to test on")
    add("--work", type=as_path, required=True, metavar="DIR", help="keeps the runs and their results")
    add("--output", type=as_path, required=True, metavar="FILE", help="the result, JSON")
    add("--seeds", nargs="+", type=int, metavar="N", help="instead of the study's")
    add("--rows", nargs="+", metavar="ROW", help="only these, and those that they are compared with")
    add(
        "--budgets", nargs="+", choices=BUDGETS, default=[*BUDGETS], help="equal updates, equal time, or both (default)"
    )
    add("--jobs", type=whole(1), default=1, help="runs at once, each on one core (default: %(default)s)")
    add("--quick", action="store_true", help="the study's reduced form: does it all work?")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one")
    return parser


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 not begun, 3 some run failed, 128 + n ended by signal n."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = make_parser().parse_args(arguments)
    try:
        comparison = Comparison(options, origin("studies.compare", arguments))
    except (ValueError, OSError) as error:  # among them StudyError, DataError and ModelError
        print(f"error: {error}", file=sys.stderr)
        return 2
    return comparison.run()


class Comparison:
    """All runs of a study and their results so far.

    Args:
        options: of the command line.
        made: as `bench.record.origin`, for the result.

    Raises:
        ValueError, OSError: the study, the images or the options are invalid.
    """

    def __init__(self, options: Namespace, made: Mapping[str, Any]) -> None:
        self.options = options
        self.study = read_study(options.study, options.quick)
        self.rows = self._chosen_rows()
        self.seeds: list[int] = list(dict.fromkeys(options.seeds or self.study.seeds))
        self.device = choose_device(options.device)
        self.runner = Runner(options.work.resolve())
        self.tuning_pairs = self._tuning_pairs() if options.pairs else None
        config = self._check()
        self.sets: TestSets = reduced(study_sets(options.pairs, config), self.study.images)
        self.scale = config.scale
        self.plan = None if self.study.worst is None else self._plan(held_out_photographs(config))
        self.digest = digest(self.sets) + self._digest_of_plan()
        self.seconds: dict[str, float] = {}
        self.results: list[dict[str, Any]] = []
        self.failed: dict[str, str] = {}
        self._made = {**made, "jobs": options.jobs}
        self._scores_of_bicubic = self._evaluated(bicubic_method())

    def _chosen_rows(self) -> list[str]:
        study, chosen = self.study, self.options.rows
        if strangers := sorted(set(chosen or ()) - set(study.rows)):
            raise StudyError(f"--rows {' '.join(strangers)}: the rows are {', '.join(study.rows)}")
        return [name for name in study.rows if not chosen or name in {*chosen, study.reference, study.subject}]

    def _tuning_pairs(self) -> Path | None:
        """A folder with the tuning part of all pairs, for the rows that train on it."""
        if not any(TUNING_PAIRS in json.dumps(self.study.rows[name].settings) for name in self.rows):
            return None
        scale = self.study.settings.get("scale", Config.scale)
        pairs = [pair for folder in self.options.pairs for pair in split_pairs(find_pairs(folder, scale))[0]]
        names = "\n".join(str(pair.hr.resolve()) for pair in pairs)
        folder = self.runner.work / f"tuning_pairs-{hashlib.sha256(os.fsencode(names)).hexdigest()[:10]}"
        link_pairs(pairs, folder)
        return folder

    def _plan(self, photographs: Sequence[tuple[str, np.ndarray]]) -> Plan:
        """How the worst case is measured, on crops of the held-out photographs."""
        worst = self.study.worst
        if strangers := sorted(set(worst["attackers"]) - set(ATTACKERS)):
            raise StudyError(f"worst.attackers: {', '.join(strangers)}; there are {', '.join(ATTACKERS)}")
        count = worst["crops"] if self.study.images is None else min(worst["crops"], self.study.images)
        return Plan(
            scale=self.scale,
            subjects=[],
            crops=make_crops(photographs, count, worst["size"], seed=0),
            attackers=worst["attackers"],
            budgets=worst["budgets"],
            effort=Effort(steps=worst["steps"], restarts=1),
            batch=10,
            seed=0,
            device=self.device,
        )

    def _digest_of_plan(self) -> str:
        if self.plan is None:
            return ""
        found = repr((self.plan.settings(), self.plan.cases(), [crop.name for crop in self.plan.crops]))
        return "-" + hashlib.sha256(found.encode()).hexdigest()[:16]

    def _check(self) -> Config:
        """Check the settings of all rows, and find their updates a step; returns the start's configuration."""
        self._per_step = {START: 1}
        for name in self.rows:
            self._per_step[name] = checked(self._settings(name, self.seeds[0]), f"row {name}").attack.updates_per_step
        return checked(self._start(self.seeds[0]).settings, START)

    # What to run.

    def _common(self, seed: int) -> Settings:
        common = {
            "device": self.device.type,
            "data": {"hr": [str(folder.resolve()) for folder in self.options.data.hr]},
            "train": {"warmup": 0, "validate_every": 0},  # tested here, and not during training, which takes time
        }
        return merged(common, self.study.settings, {"seed": seed})

    def _start(self, seed: int) -> Run:
        return Run(START, seed, START, merged(self._common(seed), self.study.start))

    def _settings(self, name: str, seed: int) -> Settings:
        """Those of a row that do not depend on other runs."""
        return merged(self._common(seed), filled(self.study.rows[name].settings, self.tuning_pairs))

    def _row(self, name: str, seed: int, start: Finished, budget: str, updates: int) -> Run:
        """A row's run of so many generator updates; its ramp grows with them."""
        settings, per_step = self._settings(name, seed), self._per_step[name]
        ramp = settings["train"].get("ramp", TrainConfig.ramp) * updates / self.study.updates
        steps = {"iterations": max(round(updates / per_step), 1), "ramp": round(ramp / per_step)}
        init = {"generator": {"init": str(start.model)}}
        return Run(name, seed, budget, merged(settings, init, {"train": steps}))

    def run(self) -> int:
        """Make all runs, and the result; returns the exit status of the command."""
        torch.set_num_threads(1)
        if self.device.type == "cpu":
            keep_freed_memory()
        received: list[int] = []

        def stop(number: int, frame: FrameType | None) -> None:
            received.append(number)
            self.runner.stop()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._run_all()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if received:
            print("stopped; the same command resumes there", file=sys.stderr)
            return 128 + received[0]
        if self.failed:
            print(f"error: failed, and missing in the result: {', '.join(self.failed)}", file=sys.stderr)
        print(f"{len(self.results)} runs in {self.options.output}; python -m studies.report makes tables of it")
        return 3 if self.failed else 0

    def _run_all(self) -> None:
        starts = self._together([(self._start(seed), [START]) for seed in self.seeds])
        self.seconds = self._time(starts) if TIME in self.options.budgets else {}
        equal, in_time = [], []
        for name in self.rows:
            updates = self._updates_in_time(name)
            same = updates is not None and abs(updates / self.study.updates - 1) <= _NEAR
            for (_, seed), start in starts.items():
                budgets = [UPDATES, TIME] if same else [UPDATES]
                if wanted := [budget for budget in budgets if budget in self.options.budgets]:
                    equal.append((self._row(name, seed, start, UPDATES, self.study.updates), wanted))
                if updates is not None and not same:
                    in_time.append((self._row(name, seed, start, TIME, updates), [TIME]))
        self._together(equal)
        self._together(in_time)

    def _time(self, starts: Mapping[tuple[str, int], Finished]) -> dict[str, float]:
        """Seconds of an update by row, the median over seeds; one run at a time."""
        seconds: dict[str, list[float]] = {}
        for (_, seed), start in starts.items():
            for name in self.rows:
                run = self._row(name, seed, start, "timed", _TIMED_STEPS * self._per_step[name])
                try:
                    finished = self.runner(run)
                except (RunError, OSError) as error:
                    self._failed(run, error)
                else:
                    seconds.setdefault(name, []).append(finished.seconds_per_step / self._per_step[name])
        return {name: statistics.median(each) for name, each in seconds.items()}

    def _updates_in_time(self, name: str) -> int | None:
        """How many updates a row makes in the time of the subject; None if one of them could not be timed."""
        if not {name, self.study.subject} <= self.seconds.keys():
            return None
        fit = self.study.updates * self.seconds[self.study.subject] / self.seconds[name]
        return max(round(fit / self._per_step[name]), 1) * self._per_step[name]

    def _together(self, runs: Sequence[tuple[Run, list[str]]]) -> dict[tuple[str, int], Finished]:
        """Train and test runs, each for the budgets beside it, several at once; returns the finished ones.

        By row and seed, in the order of `runs`.
        """
        done: dict[tuple[str, int], Finished] = {}
        with ThreadPoolExecutor(self.options.jobs) as pool:
            waiting = {pool.submit(self._one, run): (run, budgets) for run, budgets in runs}
            for future in as_completed(waiting):
                run, budgets = waiting[future]
                try:
                    finished, scores = future.result()
                except (RunError, ModelError, NonFiniteError, OSError) as error:
                    self._failed(run, error)
                    continue
                done[run.row, run.seed] = finished
                self._add(run, finished, scores, budgets)
        return {(run.row, run.seed): done[run.row, run.seed] for run, _ in runs if (run.row, run.seed) in done}

    def _failed(self, run: Run, error: Exception) -> None:
        if not self.runner.stopped:
            self.failed[run.name] = str(error)
            tqdm.write(f"failed: {error}", file=sys.stderr)

    def _one(self, run: Run) -> tuple[Finished, Scores]:
        finished = self.runner(run)
        return finished, self._scores(finished.model)

    def _scores(self, path: Path) -> Scores:
        """A model's scores, computed once for the same file and tests."""
        model = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        kept = self.runner.work / "scores" / f"{model}-{self.digest}.json"
        if not kept.exists():
            (method,) = load_models([path], self.device)
            write_text(kept, json.dumps(self._evaluated(method)))
        return json.loads(kept.read_text(encoding="utf-8"))

    def _evaluated(self, method: Method) -> Scores:
        scores = evaluate(method, self.sets, self.scale)
        if self.plan is not None:
            worst = evaluate_worst(method, self.plan, self.runner.work / "worst")
            scores = {metric: scores[metric] | worst[metric] for metric in scores}
        return scores

    # Results.

    def _add(self, run: Run, finished: Finished, scores: Scores, budgets: Sequence[str]) -> None:
        per_step = self._per_step[run.row]
        self.results.append(
            {
                "row": run.row,
                "seed": run.seed,
                "budgets": list(budgets),
                "updates": finished.iterations * per_step,
                "iterations": finished.iterations,
                "seconds_per_update": self.seconds.get(run.row, finished.seconds_per_step / per_step),
                "seconds": finished.seconds,
                "commit": finished.commit,
                "scores": scores,
            }
        )
        self._write()
        outcome = Outcome(self.content())
        # Not the reporting part: settings are chosen by what is printed here.
        titles = [*column_titles(outcome.columns, TUNING)[-1:], CLEAN, ALL_STRENGTHS]
        titles += [WORST] if WORST in outcome.columns else []
        reached = ", ".join(
            f"{title} {outcome.values(run.row, budgets[0], 'psnr_y', title, [run.seed]).mean():.2f}" for title in titles
        )
        tqdm.write(f"{run.name}: {finished.iterations} steps in {finished.seconds:.0f} s; PSNR-Y {reached}")

    def content(self) -> dict[str, Any]:
        """The result so far."""
        study = self.study
        order = {name: index for index, name in enumerate([START, *study.rows])}
        return {
            "title": study.title,
            **self._made,
            "date": now(),
            "data": {
                "hr": [folder.resolve().name for folder in self.options.data.hr],
                "pairs": [folder.resolve().name for folder in self.options.pairs],
            },
            "reference": study.reference,
            "subject": study.subject,
            "settings": study.settings,
            "start": study.start,
            "rows": {name: vars(study.rows[name]) for name in self.rows},
            "tests": {
                name: {"images": [case.image for case in self.sets[name]], "groups": members}
                for name, members in groups(self.sets).items()
            }
            | self._worst_tests(),
            **({} if study.worst is None else {"worst": study.worst}),
            "failed": sorted(self.failed),
            "marks": {BICUBIC: self._scores_of_bicubic},
            "runs": sorted(self.results, key=lambda run: (run["budgets"], order[run["row"]], run["seed"])),
        }

    def _worst_tests(self) -> dict[str, dict[str, list[str]]]:
        """The tests of the worst case, as `content` lists the others."""
        if self.plan is None:
            return {}
        names = [crop.name for crop in self.plan.crops]
        cases = [case_name(*case) for case in self.plan.cases() if case[1] is not None]
        return {case: {"images": names, "groups": ["photographs"] * len(names)} for case in cases}

    def _write(self) -> None:
        content = self.content()
        write_json(self.options.output, content | {"tables": Outcome(content).tables()})


if __name__ == "__main__":
    sys.exit(main())
