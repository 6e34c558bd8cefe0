"""`python -m andfast.plot`: that curves pass where the records say, and what becomes of bad ones."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chart_pixels import heights, of_colour
from PIL import Image

from andfast import plot
from andfast.chart import GROUPS
from andfast.plot import labels, smoothed

# Of a panel's axes: where they begin and end in a chart with one row of names.
LOSS, GAIN, BICUBIC = (48, 676, 214, 554), (724, 1352, 214, 554), (48, 676, 674, 1014)


def record(folder: Path, lines: list[dict[str, Any]], rest: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)
    return folder


def step(number: int, loss: float, gain: float | None = None) -> dict[str, Any]:
    return {"step": number, "loss": loss, "gain": gain, "seconds": 0.1, "data_wait": 0.0}


def validation(number: int, psnr_y: float, bicubic: float = 28.0) -> dict[str, Any]:
    return {"step": number, "validation": {"bicubic": {"psnr_y": psnr_y, "bicubic_psnr_y": bicubic}}}


def run(folder: Path, level: float = 1.0, steps: int = 50) -> Path:
    lines = [step(n, level * 0.9**n, None if n < 20 else 1 + level / n) for n in range(1, steps + 1)]
    return record(folder, [*lines, validation(steps // 2, 27 + level), validation(steps, 28 + level)])


def drawn(*arguments: Any, output: Path) -> Image.Image:
    assert plot.main([*map(str, arguments), "--output", str(output)]) == 0
    return Image.open(output)


def inside(image: Image.Image, panel: tuple[int, int, int, int]) -> Image.Image:
    left, right, top, bottom = panel
    return image.crop((left, top, right + 10, bottom + 10))


def test_curves_pass_where_the_records_say(tmp_path: Path) -> None:
    """A loss that halves every ten steps is straight; gain begins at its step; validations are to scale."""
    steps = [step(n, 0.5 ** (n / 10), 2 ** ((n - 40) / 60) if n >= 40 else None) for n in range(1, 101)]
    psnr_y = {20: 26.0, 40: 27.5, 70: 29.0, 100: 28.5}
    records = [*steps, *(validation(*pair) for pair in psnr_y.items())]
    image = drawn(record(tmp_path / "run", records), "--smooth", 1, output=tmp_path / "plot.png")
    columns, rows = heights(inside(image, LOSS), GROUPS[0])
    slope, start = np.polyfit(columns, rows, 1)
    assert slope > 0.4
    assert np.abs(rows - slope * columns - start)[5:-5].max() < 1.5
    columns, rows = heights(inside(image, GAIN), GROUPS[0])
    edge = np.nonzero(np.asarray(inside(image, GAIN).convert("L"))[340] < 200)[0]
    assert (columns[-1] - columns[0]) / np.ptp(edge) == pytest.approx(0.6, abs=0.01)
    assert rows[0] - rows[-1] > 300
    columns, rows = heights(inside(image, BICUBIC), GROUPS[0])
    # Four pixels of the first and the last dot lie outside.
    numbers = 20 + 80 * (columns - columns[0] - 4) / (columns[-1] - columns[0] - 8)
    wanted = np.interp(numbers, list(psnr_y), list(psnr_y.values()))
    between = np.abs(numbers[:, None] - list(psnr_y)).min(1) > 2  # beside the dots
    slope, start = np.polyfit(wanted[between], rows[between], 1)
    assert -120 < slope < -90  # three dB and their margins in 340 pixels
    assert np.abs(rows - slope * wanted - start)[between].max() < 2


def test_a_discriminator_s_loss_has_a_panel_of_its_own(tmp_path: Path) -> None:
    """Where the validations' first one is otherwise; a run without one is not in it."""
    lines = [step(n, 0.1) | {"loss_d": 0.5 ** (n / 10)} for n in range(1, 101)]
    gan = record(tmp_path / "gan", [*lines, validation(100, 28.0)])
    image = drawn(gan, "--smooth", 1, output=tmp_path / "one.png")
    columns, rows = heights(inside(image, BICUBIC), GROUPS[0])
    slope, start = np.polyfit(columns, rows, 1)
    assert slope > 0.4
    assert np.abs(rows - slope * columns - start)[5:-5].max() < 1.5
    plain = run(tmp_path / "plain")
    both = drawn(gan, plain, output=tmp_path / "both.png")
    assert of_colour(inside(both, BICUBIC), GROUPS[0]).any()
    assert not of_colour(inside(both, BICUBIC), GROUPS[1]).any()


def test_bicubic_interpolation_is_where_it_belongs(tmp_path: Path) -> None:
    """A validation that reaches just that lies on its line, which is dashed."""
    image = drawn(record(tmp_path / "run", [step(1, 1.0), validation(1, 28.0)]), output=tmp_path / "plot.png")
    y = heights(inside(image, BICUBIC), GROUPS[0])[1].mean()
    ink = np.asarray(inside(image, BICUBIC).convert("L"))[round(y)] < 160
    assert 0.3 < ink.mean() < 0.8
    assert np.count_nonzero(np.diff(ink.astype(int)) == 1) > 20


@pytest.mark.parametrize("count", [1, 2, 6])
def test_every_run_has_its_colour_in_every_panel_and_in_the_legend(count: int, tmp_path: Path) -> None:
    runs = [run(tmp_path / f"a_run_with_a_rather_long_name_{index}", 1 + 0.2 * index) for index in range(count)]
    image = drawn(*runs, output=tmp_path / "plot.png")
    down = image.height - 1118  # by more rows of names
    regions = [(48, 1352, 110, 170 + down)]
    regions += [(left + 70, right, top + down, bottom + down) for left, right, top, bottom in (LOSS, GAIN, BICUBIC)]
    for region in regions:
        seen = [np.count_nonzero(of_colour(inside(image, region), colour, within=20)) for colour in GROUPS]
        assert min(seen[:count]) > 40
        assert max(seen[count:5], default=0) < 10  # the sixth is gray, as the edges of letters are
    pixels = np.asarray(image.convert("L"))
    for edge in (pixels[:4], pixels[-4:], pixels[:, :40], pixels[:, -4:]):
        assert (edge > 250).all()


def test_references_that_differ_have_the_colours_of_their_runs(tmp_path: Path) -> None:
    lines = [[step(1, 1.0), step(2, 1.0), validation(2, 29.0, bicubic)] for bicubic in (27.0, 28.0)]
    runs = [record(tmp_path / f"run{index}", own) for index, own in enumerate(lines)]
    image = inside(drawn(*runs, output=tmp_path / "plot.png"), BICUBIC)
    rows = [heights(image, colour)[1][:100].mean() for colour in GROUPS[:2]]
    assert rows[0] - rows[1] > 100


@pytest.mark.parametrize("window", [1, 3, 7, 101])
def test_smoothing_is_the_mean_of_the_values_around(window: int) -> None:
    values = np.random.default_rng(0).normal(size=60)
    values[[0, 5, 6, 7, 8, 30, 59]] = math.nan
    half = window // 2
    for index, found in enumerate(smoothed(values, window)):
        near = values[max(index - half, 0) : index + half + 1]
        wanted = math.nan if math.isnan(values[index]) else np.nanmean(near)
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)


def test_smoothing_takes_the_noise_and_leaves_it_behind_a_single_run(tmp_path: Path) -> None:
    noise = [step(n, 2.0 if n % 2 else 1.0) for n in range(1, 201)]
    one, two = record(tmp_path / "one", noise), record(tmp_path / "two", noise)
    ptp = {}
    for name, arguments in {"rough": [one, "--smooth", 1], "smooth": [one], "both": [one, two]}.items():
        image = inside(drawn(*arguments, output=tmp_path / f"{name}.png"), LOSS)
        rows, _ = np.nonzero(of_colour(image, GROUPS[1 if name == "both" else 0], within=40))
        ptp[name] = np.ptp(rows)
        pale = of_colour(image, "#bacfe5", within=12)
        assert (np.count_nonzero(pale) > 5000) == (name == "smooth")
    assert ptp["rough"] > 280
    assert ptp["smooth"] < 150


def test_a_single_run_s_chart_lies_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot.main([str(run(tmp_path / "run"))]) == 0
    path = tmp_path / "run" / "plot.png"
    assert capsys.readouterr().out == f"written: {path}\n"
    assert sorted(file.name for file in path.parent.iterdir()) == ["metrics.jsonl", "plot.png"]
    assert Image.open(path).width == 1400


def test_runs_are_named_by_as_much_as_tells_them_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert labels([Path("x/one"), Path("y/two")]) == ["one", "two"]
    assert labels([Path("x/run"), Path("y/run"), Path("y/other")]) == ["x/run", "y/run", "y/other"]
    monkeypatch.chdir(tmp_path)
    assert labels([Path(".")]) == [tmp_path.name]


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    whole = run(tmp_path / "a" / "run")
    cut = record(tmp_path / "b" / "run", [], (whole / "metrics.jsonl").read_text() + '{"step": 51, "lo')
    images = [drawn(folder, output=tmp_path / "plot.png").convert("RGB") for folder in (whole, cut)]
    assert images[0] == images[1]


def test_a_run_without_validation_or_adversary_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = record(tmp_path / "bare", [step(n, 1 / n) for n in range(1, 10)])
    image = drawn(bare, output=tmp_path / "plot.png")
    assert "bare: no validation yet\n" in capsys.readouterr().out
    assert of_colour(inside(image, LOSS), GROUPS[0]).any()
    for panel in (GAIN, BICUBIC):
        part = inside(image, panel)
        assert not of_colour(part, GROUPS[0]).any()
        rows, columns = np.nonzero(np.asarray(part.convert("L")) < 200)
        assert 100 < len(rows) < 3000  # a few words in the middle
        assert abs(rows.mean() - 170) < 12
        assert abs(columns.mean() - 314) < 12
    # Beside one that has both, its own are missing.
    drawn(bare, run(tmp_path / "run"), output=tmp_path / "both.png")
    assert "bare: no validation yet\n" in capsys.readouterr().out


def test_losses_that_no_logarithm_has_are_drawn(tmp_path: Path) -> None:
    falling = record(tmp_path / "run", [step(n, 10.0 - n) for n in range(1, 21)])
    columns, rows = heights(inside(drawn(falling, "--smooth", 1, output=tmp_path / "plot.png"), LOSS), GROUPS[0])
    slope, start = np.polyfit(columns, rows, 1)
    assert np.abs(rows - slope * columns - start)[5:-5].max() < 1.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "metrics.jsonl: no such file; "),
        ("", "metrics.jsonl: no step is recorded there yet"),
        ('{"step": 1, "lo', "metrics.jsonl: no step is recorded there yet"),
        ('{"step": 1, "loss": 1.0}\n{"step": 2, "lo\n', "metrics.jsonl: line 2 is damaged"),
        ('{"epoch": 1, "loss": 1.0}\n', "metrics.jsonl: line 1 has no step"),
        ('{"step": 1, "loss": "low"}\n', "metrics.jsonl: a line of step 1 is none that andfast.train writes"),
        ('{"step": 3, "validation": {"bicubic": 1}}\n', "metrics.jsonl: a line of step 3 is none that"),
        ('{"step": 4, "validation": null}\n', "metrics.jsonl: a line of step 4 is none that"),
    ],
)
def test_records_that_cannot_be_drawn_are_named(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    if content is not None:
        record(folder, [], content)
    assert plot.main([str(folder)]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"error: {folder / 'metrics.jsonl'}")
    assert message in told.err
    assert told.err.count("\n") == 1
    assert not (folder / "plot.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b"], "--output FILE is needed where several runs are drawn"),
        (["a", "./a", "--output", "x.png"], "a was given twice"),
        (["a", "--output", "x.txt"], "--output x.txt: its name must end in .png"),
        (["a", "--smooth", "0"], "--smooth is 0; it must be at least 1"),
        ([*"abcdefg", "--output", "x.png"], "7 runs are too many to be told apart; give at most 6"),
    ],
)
def test_options_that_cannot_be_followed_are_named(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "abcdefg":
        run(tmp_path / name, steps=3)
    assert plot.main(arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not list(tmp_path.glob("**/*.png"))
