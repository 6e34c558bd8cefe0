"""`python -m andfast.plot`: the curves are those of the records, and bad records and options are named."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from andfast import plot
from andfast.plot import draw, labels, read_curves, smoothed
from andfast.utils.charts import COLOURS, FAINT


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


def drawn(*folders: Path, smooth: int | None = None) -> Figure:
    return draw(dict(zip(labels(folders), map(read_curves, folders), strict=True)), smooth)


def panel(figure: Figure, title: str) -> Axes:
    """The one panel whose title begins so."""
    (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))
    return axes


def curves(axes: Axes, colour: str) -> list[Line2D]:
    """Solid and opaque lines of a colour."""
    return [
        line for line in axes.lines
        if to_hex(line.get_color()) == colour and line.get_linestyle() == "-" and line.get_alpha() is None
    ]  # fmt: skip


def points(line: Line2D) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)


def test_curves_are_those_of_the_records(tmp_path: Path) -> None:
    """Loss and gain on logarithmic axes; the gain begins at its step; validations have a point each."""
    steps = [step(n, 0.5 ** (n / 10), 2 ** ((n - 40) / 60) if n >= 40 else None) for n in range(1, 101)]
    psnr_y = {20: 26.0, 40: 27.5, 70: 29.0, 100: 28.5}
    records = [*steps, *(validation(*pair) for pair in psnr_y.items())]
    figure = drawn(record(tmp_path / "run", records), smooth=1)
    numbers = np.arange(1, 101)
    (loss,) = curves(panel(figure, "loss"), COLOURS[0])
    np.testing.assert_allclose(points(loss), (numbers, 0.5 ** (numbers / 10)))
    (gain,) = curves(panel(figure, "gain"), COLOURS[0])
    np.testing.assert_allclose(points(gain)[1], np.where(numbers < 40, np.nan, 2.0 ** ((numbers - 40) / 60)))
    for title in ("loss", "gain"):
        assert panel(figure, title).get_yscale() == "log"
        assert panel(figure, title).get_xlim() == (0, 100)
    (validated,) = curves(panel(figure, "PSNR-Y on bicubic LR, dB"), COLOURS[0])
    np.testing.assert_array_equal(points(validated), (list(psnr_y), list(psnr_y.values())))
    assert validated.get_marker() == "o"
    assert list(validated.get_markevery()) == [0, 1, 2, 3]
    assert panel(figure, "PSNR-Y").get_yscale() == "linear"


def test_a_discriminator_s_loss_has_a_panel_of_its_own(tmp_path: Path) -> None:
    """A run without one is not in it."""
    lines = [step(n, 0.1) | {"loss_d": 0.5 ** (n / 10)} for n in range(1, 101)]
    gan = record(tmp_path / "gan", [*lines, validation(100, 28.0)])
    (line,) = curves(panel(drawn(gan, smooth=1), "loss of the discriminator"), COLOURS[0])
    np.testing.assert_allclose(points(line)[1], 0.5 ** (np.arange(1, 101) / 10))
    plain = run(tmp_path / "plain")
    both = panel(drawn(gan, plain), "loss of the discriminator")
    assert len(both.lines) == 1
    assert curves(both, COLOURS[0])
    with pytest.raises(ValueError, match="not enough values"):
        panel(drawn(plain), "loss of the discriminator")


def test_bicubic_interpolation_is_a_dashed_line_at_its_psnr(tmp_path: Path) -> None:
    figure = drawn(record(tmp_path / "run", [step(1, 1.0), validation(1, 28.0, 27.0)]))
    (reference,) = (line for line in panel(figure, "PSNR-Y").lines if line.get_linestyle() == "--")
    assert list(reference.get_ydata()) == [27.0, 27.0]
    assert to_hex(reference.get_color()) == FAINT
    low, high = panel(figure, "PSNR-Y").get_ylim()
    assert low < 27 < 28 < high


@pytest.mark.parametrize("count", [1, 2, 6])
def test_every_run_has_its_colour_in_every_panel_and_in_the_legend(count: int, tmp_path: Path) -> None:
    runs = [run(tmp_path / f"a_run_with_a_rather_long_name_{index}", 1 + 0.2 * index) for index in range(count)]
    figure = drawn(*runs)
    for title in ("loss", "gain", "PSNR-Y"):
        solid = [
            line for line in panel(figure, title).lines if line.get_linestyle() == "-" and line.get_alpha() is None
        ]
        assert [to_hex(line.get_color()) for line in solid] == list(COLOURS[:count])
    (legend,) = figure.legends
    entries = {
        text.get_text(): to_hex(line.get_color()) for text, line in zip(legend.texts, legend.get_lines(), strict=True)
    }
    assert entries == dict(zip(labels(runs), COLOURS, strict=False)) | {"bicubic interpolation": FAINT}
    # Nothing is cut off, and nothing lies on something else.
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert figure.bbox.x0 < box.x0
    assert box.x1 < figure.bbox.x1
    assert all(axes.get_tightbbox().y1 <= box.y0 + 2 for axes in figure.axes)
    assert all(box.y1 <= text.get_window_extent().y0 + 8 for text in figure.texts)


def test_references_that_differ_have_the_colours_of_their_runs(tmp_path: Path) -> None:
    lines = [[step(1, 1.0), step(2, 1.0), validation(2, 29.0, bicubic)] for bicubic in (27.0, 28.0)]
    runs = [record(tmp_path / f"run{index}", own) for index, own in enumerate(lines)]
    dashed = [line for line in panel(drawn(*runs), "PSNR-Y").lines if line.get_linestyle() == "--"]
    assert [(to_hex(line.get_color()), line.get_ydata()[0]) for line in dashed] == [
        (COLOURS[0], 27.0),
        (COLOURS[1], 28.0),
    ]


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
    figures = {"rough": drawn(one, smooth=1), "smooth": drawn(one), "both": drawn(one, two)}
    ptp, pale = {}, {}
    for name, figure in figures.items():
        axes = panel(figure, "loss")
        (line,) = curves(axes, COLOURS[1 if name == "both" else 0])
        ptp[name] = np.ptp(points(line)[1])
        pale[name] = [np.ptp(points(line)[1]) for line in axes.lines if line.get_alpha()]
    assert ptp["rough"] == 1
    assert ptp["smooth"] == ptp["both"] < 0.5
    assert pale == {"rough": [], "smooth": [1.0], "both": []}


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
    images = []
    for folder in (whole, cut):
        assert plot.main([str(folder), "--output", str(tmp_path / "plot.png")]) == 0
        images.append(Image.open(tmp_path / "plot.png").convert("RGB"))
    assert images[0] == images[1]


def test_a_run_without_validation_or_adversary_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = record(tmp_path / "bare", [step(n, 1 / n) for n in range(1, 10)])
    figure = drawn(bare)
    assert curves(panel(figure, "loss"), COLOURS[0])
    for title, said in (("gain", "no step has met an adversary"), ("PSNR-Y", "no validation yet")):
        axes = panel(figure, title)
        assert not axes.lines
        assert [text.get_text() for text in axes.texts] == [said]
    # Beside one that has both, its own are missing.
    both = run(tmp_path / "run")
    assert plot.main([str(bare), str(both), "--output", str(tmp_path / "both.png")]) == 0
    assert "bare: no validation yet\n" in capsys.readouterr().out
    figure = drawn(bare, both)
    for title in ("gain", "PSNR-Y"):
        assert not curves(panel(figure, title), COLOURS[0])
        assert curves(panel(figure, title), COLOURS[1])


def test_losses_that_no_logarithm_has_are_drawn(tmp_path: Path) -> None:
    axes = panel(drawn(record(tmp_path / "run", [step(n, 10.0 - n) for n in range(1, 21)]), smooth=1), "loss")
    assert axes.get_yscale() == "linear"
    np.testing.assert_array_equal(points(curves(axes, COLOURS[0])[0])[1], 10.0 - np.arange(1, 21))


def test_a_value_without_neighbours_is_a_dot(tmp_path: Path) -> None:
    """A line through it alone would not show."""
    losses = [1.0, 1.2, math.nan, 1.5, math.nan, 1.1, 1.3]
    axes = panel(drawn(record(tmp_path / "run", [step(n, loss) for n, loss in enumerate(losses)]), smooth=1), "loss")
    (line,) = curves(axes, COLOURS[0])
    assert line.get_marker() == "o"
    assert list(line.get_markevery()) == [3]


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.017, 0.3, ["0.02", "0.05", "0.1", "0.2"]),
        (1.25, 1.9, ["1.3", "1.4", "1.5", "1.6", "1.7", "1.8", "1.9"]),
        (1e-4, 1e3, ["0.0001", "0.001", "0.01", "0.1", "1", "10", "100", "1000"]),
    ],
)
def test_round_values_are_marked(low: float, high: float, wanted: list[str], tmp_path: Path) -> None:
    axes = panel(drawn(record(tmp_path / "run", [step(1, low), step(2, high)]), smooth=1), "loss")
    axes.figure.draw_without_rendering()
    bottom, top = axes.get_ylim()
    marked = [label.get_text() for label in axes.get_yticklabels() if bottom <= label.get_position()[1] <= top]
    assert marked == wanted


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot.main([str(run(tmp_path / "run"))]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: charts need matplotlib: pip install 'matplotlib>=3.8'")
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.glob("**/*.png"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "metrics.jsonl: no such file; "),
        ("", "metrics.jsonl: no step is recorded there yet"),
        ('{"step": 1, "lo', "metrics.jsonl: no step is recorded there yet"),
        ('{"step": 1, "loss": 1.0}\n{"step": 2, "lo\n', "metrics.jsonl: line 2 is damaged"),
        ('{"epoch": 1, "loss": 1.0}\n', "metrics.jsonl: line 1 has no step"),
        ('{"step": 1, "loss": "low"}\n', "metrics.jsonl: a line of step 1 is not one that andfast.train writes"),
        ('{"step": 3, "validation": {"bicubic": 1}}\n', "metrics.jsonl: a line of step 3 is not one that"),
        ('{"step": 4, "validation": null}\n', "metrics.jsonl: a line of step 4 is not one that"),
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
