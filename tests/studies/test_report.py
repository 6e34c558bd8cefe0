"""Tables and figure of a result, against numbers worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from andfast.utils.files import write_json
from studies import report
from studies.outcome import Outcome, OutcomeError, column_titles, columns, read_outcome
from studies.testsets import STRENGTHS

PHOTOGRAPHS = 4
GROUPS = {
    "reporting": ["canon", "canon", "canon", "nikon"],
    "tuning": ["canon", "canon"],
    "clean": ["photographs"] * PHOTOGRAPHS,
    **{name: ["photographs"] * PHOTOGRAPHS for name in STRENGTHS},
    **{name: ["photographs"] * PHOTOGRAPHS for name in ("F 40 dB", "noise 40 dB")},
}
IMAGES = {name: np.random.default_rng(len(name)).normal(27, 2, len(groups)) for name, groups in GROUPS.items()}
GAINS = {"classical": 0.0, "complete": 0.5, "start": -1.0, "bicubic interpolation": -2.0}


def scores(row: str, seed: int) -> dict:
    """Every image in its own way, plus what the row gains, plus a little chance."""
    random = np.random.default_rng((seed, len(row)))
    psnr = {name: list(images + GAINS[row] + random.normal(0, 0.05, len(images))) for name, images in IMAGES.items()}
    return {"psnr_y": psnr, "ssim_y": {name: [value / 40 for value in values] for name, values in psnr.items()}}


def run(row: str, seed: int, budgets: list[str]) -> dict:
    cost = 3.0 if row == "complete" else 1.5
    return {
        "row": row,
        "seed": seed,
        "budgets": budgets,
        "updates": 100,
        "seconds_per_update": cost,
        "seconds": 100 * cost,
        "scores": scores(row, seed),
    }


@pytest.fixture
def content() -> dict:
    return {
        "title": "a study",
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "abc",
        "command": "the command",
        "jobs": 1,
        "machine": {"processor": "a processor", "devices": {"cpu": {}}},
        "reference": "classical",
        "subject": "complete",
        "rows": {name: {"description": f"{name} training"} for name in ("classical", "complete")},
        "tests": {name: {"images": [str(i) for i in range(len(g))], "groups": g} for name, g in GROUPS.items()},
        "failed": [],
        "marks": {"bicubic interpolation": scores("bicubic interpolation", 0)},
        "runs": [
            *(run("start", seed, ["start"]) for seed in (0, 1)),
            *(run("classical", seed, ["updates"]) for seed in (0, 1)),
            *(run("complete", seed, ["updates", "time"]) for seed in (0, 1)),
            run("classical", 1, ["time"]),
        ],
    }


def test_columns_are_cameras_sets_and_all_strengths():
    found = columns(GROUPS)
    expected = ["reporting canon", "reporting nikon", "reporting, all", "tuning canon", "clean", *STRENGTHS]
    assert list(found) == [*expected, "F 40 dB", "noise 40 dB", "all strengths", "worst case"]
    assert found["reporting nikon"] == [("reporting", [3])]
    assert [name for name, _ in found["all strengths"]] == list(STRENGTHS)
    assert [name for name, _ in found["worst case"]] == ["F 40 dB", "noise 40 dB"]
    assert column_titles(found, "worst case") == ["F 40 dB", "noise 40 dB", "worst case"]
    assert column_titles(found, "clean") == ["clean", *STRENGTHS, "all strengths"]


def test_differences_are_paired_by_image_and_seed(content):
    outcome = Outcome(content)
    ours, theirs = (
        np.array([scores(row, seed)["psnr_y"]["reporting"] for seed in (0, 1)]) for row in ("complete", "classical")
    )
    found = outcome.difference("complete", "classical", "updates", "psnr_y", "reporting, all")
    expected = stats.ttest_rel(ours.mean(axis=0), theirs.mean(axis=0)).confidence_interval()
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    # By time only seed 1 has both.
    found = outcome.difference("complete", "classical", "time", "psnr_y", "reporting, all")
    assert found.mean == pytest.approx((ours[1] - theirs[1]).mean())
    # Bicubic interpolation has no seed.
    bicubic = np.array(scores("bicubic interpolation", 0)["psnr_y"]["reporting"])
    found = outcome.difference("bicubic interpolation", "classical", "updates", "psnr_y", "reporting, all")
    assert found.mean == pytest.approx((bicubic - theirs.mean(axis=0)).mean())


def test_a_photograph_counts_once_under_all_strengths(content):
    found = Outcome(content).mean("complete", "updates", "psnr_y", "all strengths")
    expected = np.mean([[scores("complete", seed)["psnr_y"][name] for name in STRENGTHS] for seed in (0, 1)], axis=1)
    assert found.images == PHOTOGRAPHS
    assert found.mean == pytest.approx(expected.mean())
    low = stats.ttest_1samp(expected.mean(axis=0), 0).confidence_interval().low
    assert found.low == pytest.approx(low)


def test_the_worst_strength_has_the_least_mean(content):
    name, value = Outcome(content).worst("complete", "updates", "psnr_y")
    means = {name: np.mean([scores("complete", seed)["psnr_y"][name] for seed in (0, 1)]) for name in STRENGTHS}
    assert name == min(means, key=means.get)
    assert value == pytest.approx(min(means.values()))


def test_a_row_without_common_seeds_has_no_difference(content):
    content["runs"] = [
        one for one in content["runs"] if (one["row"], one["seed"]) not in (("complete", 1), ("classical", 0))
    ]
    outcome = Outcome(content)
    assert outcome.difference("complete", "classical", "updates", "psnr_y", "clean") is None
    assert "### Cost" in report.report(outcome)


def test_a_written_result_is_read_again(content, tmp_path):
    path = tmp_path / "result.json"
    content["tables"] = Outcome(content).tables()
    write_json(path, content)
    assert read_outcome(path).content == json.loads(json.dumps(content))
    assert ' "mean": { "mean": ' in path.read_text()  # what is plain stands on a line
    # One camera's single image has no interval.
    table = content["tables"]["updates"]["psnr_y"]["reporting nikon"]["complete"]
    assert table["over_reference"]["low"] is None
    assert table["over_reference"]["mean"] == pytest.approx(0.5, abs=0.2)
    assert math.isfinite(table["mean"]["spread"])


def test_the_command_prints_tables_and_draws(content, tmp_path, capsys):
    path, figure = tmp_path / "result.json", tmp_path / "figure.png"
    content["failed"] = ["complete-time-seed2"]
    write_json(path, content)
    assert report.main([str(path), "--metric", "psnr_y", "--figure", str(figure)]) == 0
    text = capsys.readouterr().out
    assert "SSIM" not in text
    assert "Runs that failed are missing: complete-time-seed2." in text
    assert text.index("equal updates") < text.index("equal time") < text.index("### Cost")
    found = Outcome(content).difference("complete", "classical", "updates", "psnr_y", "clean")
    assert found.low > 0
    assert f"**{found.mean:+.2f} ± {found.half:.2f}**" in text
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["complete", "equal updates", "0, 1", "100", "3.0000", "2.00", "5.0"] in lines
    mean = np.mean([scores("complete", seed)["psnr_y"]["reporting"][3] for seed in (0, 1)])
    [line] = [line for line in lines if line[:1] == ["complete: complete training"] and len(line) == 4][:1]
    assert line[2] == f"{mean:.2f}"
    with Image.open(figure) as image:
        pixels = np.array(image.convert("RGB"))
    assert image.width == 1400
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_what_is_no_result_is_named(tmp_path, capsys):
    for text in ("[1]", '{"title": 3}', "not JSON"):
        path = tmp_path / "other.json"
        path.write_text(text)
        with pytest.raises(OutcomeError, match=r"other\.json is no result"):
            read_outcome(path)
    assert report.main([str(path)]) == 2
    assert "other.json is no result" in capsys.readouterr().err


def test_the_page_s_tables_hold_gains_and_leads(content, tmp_path, capsys):
    path = tmp_path / "some.json"
    write_json(path, content)
    assert report.main([str(path), "--page"]) == 0
    printed = capsys.readouterr().out
    outcome = Outcome(content)
    tables = report.page_tables(outcome)
    for name, table in tables.items():
        assert f"<!-- studies/results/some.json: {name} -->\n{table}\n" in printed
    summary = dict(
        line.strip("| ").split(" | ", 1) for line in tables["equal updates"].splitlines() if "---" not in line
    )
    cells = summary["complete: complete training"].split(" | ")
    gain = outcome.difference("complete", "classical", "updates", "psnr_y", "reporting, all")
    assert cells[2] == f"{outcome.mean('complete', 'updates', 'psnr_y', 'reporting, all').mean:.2f}"
    assert cells[3] == f"**{gain.mean:+.2f} ± {gain.half:.2f}**"
    lead = tables["lead, equal updates"]
    assert f"| classical | **{gain.mean:+.2f} ± {gain.half:.2f}** |" in lead
    assert "| complete |" not in lead
    worst = outcome.difference("complete", "classical", "updates", "psnr_y", "worst case")
    means = [
        outcome.mean("classical", "updates", "psnr_y", title).mean for title in ("F 40 dB", "noise 40 dB", "worst case")
    ]
    assert means[2] == pytest.approx((means[0] + means[1]) / 2)
    row = [f"{mean:.2f}" for mean in means] + [f"**{worst.mean:+.2f} ± {worst.half:.2f}**"]
    assert f"| classical: classical training | {' | '.join(row)} |" in tables["worst case, equal updates"]


def test_the_trade_off_names_the_rows_that_dominate(content, tmp_path):
    outcome = Outcome(content)
    titles = ("reporting, all", "all strengths", "worst case")
    points = {
        row: [outcome.mean(row, "updates", "psnr_y", title).mean for title in titles]
        for row in outcome.lines("updates")
        if row != "start"
    }
    table = report.trade_off(outcome, "updates")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [line[0] for line in lines] == list(points)
    for row, *means, named in lines:
        assert means == [f"{mean:.2f}" for mean in points[row]]
        above = [name for name in points if name != row and (np.array(points[name]) >= points[row]).all()]
        assert named == "; ".join(above)
    assert {bool(line[-1]) for line in lines} == {True, False}
    path, figure = tmp_path / "result.json", tmp_path / "front.png"
    write_json(path, content)
    assert report.main([str(path), "--front", str(figure)]) == 0
    with Image.open(figure) as image:
        assert image.width == 1400


def test_a_front_needs_a_worst_case(content, tmp_path, capsys):
    for name in ("F 40 dB", "noise 40 dB"):
        del content["tests"][name]
    path = tmp_path / "result.json"
    write_json(path, content)
    assert report.main([str(path), "--front", str(tmp_path / "front.png")]) == 2
    assert "result.json has no worst case" in capsys.readouterr().err


def test_a_result_without_adversaries_has_no_table_of_them(content):
    for name in ("F 40 dB", "noise 40 dB"):
        del content["tests"][name]
    assert "worst case, equal updates" not in report.page_tables(Outcome(content))
    untimed = [run for run in content["runs"] if "time" not in run["budgets"]]
    assert report.page_tables(Outcome({**content, "runs": untimed})).keys() == {"equal updates", "lead, equal updates"}


@pytest.mark.parametrize("name", ["table2_compact.json", "attacks_compact.json", "adversaries_compact.json"])
def test_the_page_shows_the_committed_results(name):
    root = Path(__file__).parents[2]
    outcome = read_outcome(root / "studies" / "results" / name)
    text = (root / "docs" / "results.md").read_text()
    for title, table in report.page_tables(outcome).items():
        marker = f"<!-- studies/results/{name}: {title} -->\n"
        assert marker in text
        assert f"{marker}{table}\n" in text, title
    assert not outcome.content["commit"].endswith("-dirty")
