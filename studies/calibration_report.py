"""The tables and figures of docs/calibration.md: `python -m studies.calibration_report FILE [--figures DIR]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andfast.utils.charts import COLOURS, FAINT, GRAY, INK, PALE, ChartError, new_figure, plain_axes, save_figure
from andfast.utils.console import console
from andfast.utils.formatting import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]

CAMERAS = (INK, "#6b4c9a", "#2e8b57")
TRAINED, OWN = "#e0a100", COLOURS[0]
_TITLES = {
    "dc_share": "DC share",
    "gain": "gain",
    "response_half": "response\nhalf Nyquist",
    "response_full": "response\nNyquist",
    "residual_psnr": "residual\nPSNR (dB)",
    "tone_share": "tone share",
    "neighbour_correlation": "neighbour\ncorrelation",
    "colour_correlation": "colour\ncorrelation",
    "gradient_correlation": "gradient\ncorrelation",
    "flat_noise": "flat noise",
}


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of a result file, and draw its figures."""
    parser = argparse.ArgumentParser(prog="python -m studies.calibration_report", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="what studies.calibration wrote")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="where to write the figures; none: not drawn")
    options = parser.parse_args(arguments)
    record = json.loads(options.file.read_text(encoding="utf-8"))
    print("\n\n".join(f"<!-- {name} -->\n{table(record)}" for name, table in TABLES.items()))
    if options.figures is not None:
        try:
            for name, draw in FIGURES.items():
                save_figure(draw(record), options.figures / name)
        except (ChartError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


def cameras(record: Record) -> str:
    """Whole images: the cameras beside each other."""
    found = record["cameras"]
    rows = {
        "pairs": lambda camera: str(camera["images"]),
        "PSNR to the clean LR image, dB": _spread("whole", "psnr", 1),
        "the same to bicubic LR": _spread("whole", "psnr_bicubic", 1),
        "DC share of the difference": _spread("whole", "dc_share", 3),
        "kernel: gain": lambda camera: f"{camera['kernel']['gain']:.3f}",
        "kernel: offset": lambda camera: f"{camera['kernel']['offset']:.3f}",
        "kernel: shift x, y, HR pixels": lambda camera: ", ".join(
            f"{value:.2f}" for value in camera["kernel"]["shift"]
        ),
        "kernel: width x, y, HR pixels": lambda camera: ", ".join(
            f"{value:.2f}" for value in camera["kernel"]["width"]
        ),
        "kernel: response at half of Nyquist": lambda camera: f"{camera['kernel']['response'][4]:.2f}",
        "kernel: response at Nyquist": lambda camera: f"{camera['kernel']['response'][8]:.2f}",
        "the kernel on sharp photographs, dB": lambda camera: _quantiles(camera["kernel_on_photographs"], 1),
        "residual PSNR, own kernels, dB": _spread("whole", "residual_psnr", 1),
        "residual: tone share": _spread("whole", "tone_share", 2),
        "residual: correlation of neighbours": _spread("whole", "neighbour_correlation", 2),
        "residual: correlation of colours": _spread("whole", "colour_correlation", 2),
        "residual: size with level": _spread("whole", "level_correlation", 2),
        "residual: size with gradient": _spread("whole", "gradient_correlation", 2),
        "residual: in flat parts, of 255": _spread("whole", "flat_noise", 1),
    }
    return markdown_table(
        ["", *found], [[name, *(cell(camera) for camera in found.values())] for name, cell in rows.items()]
    )


def overlap(record: Record) -> str:
    """Crops: medians of all measures by source, and the share inside the cameras' range."""
    names = ["psnr", *record["ranges"]]
    head = ["", "PSNR", *(_TITLES[name].replace("\n", " ") for name in record["ranges"]), "in range", "loss"]
    low, high = (["-", *(f"{edges[side]:.2f}" for edges in record["ranges"].values()), "", ""] for side in (0, 1))
    rows = [["cameras: 10%", *low], ["cameras: 90%", *high]]
    for name, camera in record["cameras"].items():
        rows.append([name, *_medians(camera, names), _percent(camera), ""])
    for name, row in compared(record):
        rows.append([name, *_medians(row, names), _percent(row), f"{row['loss_ratio']:.2f}x"])
    return markdown_table(head, rows)


def budgets(record: Record) -> str:
    """What each group does as the budget grows: N = 1, the narrow F."""
    levels = record["settings"]["budgets"]
    head = ["", *(f"{level:g} dB" for level in levels)]
    rows = []
    for name in _mixtures(record):
        cells = [_find(record, name, lr_psnr=[level, level]) for level in levels]
        texts = [
            f"{row['loss_ratio']:.2f}x, {_median(row, 'response_half'):.2f}, {_median(row, 'dc_share'):.2f}, "
            f"{row['distance']:.2g}"
            for row in cells
        ]
        rows.append([name, *texts])
    return markdown_table(head, rows)


def widths(record: Record) -> str:
    """The narrow F beside the wide one, at the middle budget."""
    names = ("response_half", "response_full", "neighbour_correlation", "colour_correlation", "residual_psnr")
    head = [
        " / ".join(map(str, _channels(record))) + " channels",
        *(_TITLES[name].replace("\n", " ") for name in names),
        "loss",
        "distance",
        "in range",
    ]
    rows = []
    for method in ("pgd", "random"):
        for name in _mixtures(record):
            pair = [_find(record, name, method=method, channels=channels) for channels in _channels(record)]
            cells = [" / ".join(f"{_median(row, key):.2f}" for row in pair) for key in names]
            cells += [" / ".join(f"{row['loss_ratio']:.2f}x" for row in pair)]
            cells += [" / ".join(f"{row['distance']:.2g}" for row in pair), " / ".join(_percent(row) for row in pair)]
            rows.append([f"{name}, random" if method == "random" else name, *cells])
    return markdown_table(head, rows)


def shares(record: Record) -> str:
    """What each group makes of the squared difference when it acts alone."""
    groups = list(record["prior"][0]["shares"])
    rows = [
        [label, *(f"{row['shares'][group]:.2f}" for group in groups)]
        for label, row in compared(record)
        if row["name"] in ("default", "trained")
    ]
    return markdown_table(["", *groups], rows)


def behind(record: Record) -> str:
    """The lens, the adversary behind it, and the same adversary without it: how far each one's crops spread."""
    names = ("response_half", "response_full", "neighbour_correlation", "colour_correlation", "residual_psnr")
    rows = [(name, camera, "") for name, camera in record["cameras"].items()]
    rows += [
        (label, row, f"{row['loss_ratio']:.2f}x")
        for label, row in compared(record)
        if row["lens"] is not None or (row["name"] == "trained" and row["method"] == "pgd" and row["size"] is None)
    ]
    cells = [
        [label, *(_quantiles(row["measures"][name], 2) for name in names), _percent(row), loss]
        for label, row, loss in rows
    ]
    return markdown_table(["", *(_TITLES[name].replace("\n", " ") for name in names), "in range", "loss"], cells)


def compared(record: Record) -> list[tuple[str, Record]]:
    """The rows of the overlap, with their labels: the narrow F at the middle budget, at those trained with, at none."""
    middle, narrow = record["settings"]["middle"], _channels(record)[0]
    return [
        (_label(row), row)
        for row in record["prior"]
        if row["channels"] == narrow and (row["lr_psnr"] in (None, [middle, middle]) or _is_range(row))
    ]


def _label(row: Record) -> str:
    if row["lr_psnr"] is None:
        return "the lens alone"
    if row["method"] == "random":
        return f"{row['name']}, random"
    low, high = row["lr_psnr"]
    parts = [
        row["name"] + (" + lens" if row["lens"] else ""),
        "N = B" if row["per_image"] else "N = 1",
        f"{low:g}-{high:g} dB" if low < high else "",
        f"{row['size']} x {row['size']}" if row["size"] else "",
    ]
    return ", ".join(part for part in parts if part)


def spectra(record: Record) -> Figure:
    """Draw the spectrum of the difference and the kernels' responses, medians over crops."""
    from matplotlib.lines import Line2D

    middle = f"{record['settings']['middle']:g} dB"
    rows = dict(compared(record))
    sources = [(name, colour, "-", camera) for (name, camera), colour in zip(_cameras(record), CAMERAS, strict=False)]
    sources += [
        (name, COLOURS[index], "--", rows[name]) for name, index in (("conv AC, N = 1", 1), ("noise map, N = 1", 4))
    ]
    low, high = next(row["lr_psnr"] for row in rows.values() if row["name"] == "trained" and _is_range(row))
    for name, colour in (("trained", TRAINED), ("trained + lens", OWN)):
        label = f"{name}, N = B, {low:g}-{high:g} dB"
        sources.append((label, colour, "-", rows[label]))
    sources.append(("the lens alone", OWN, "--", rows["the lens alone"]))
    legend = [Line2D([], [], label=name, color=colour, linestyle=style) for name, colour, style, _ in sources]
    figure = new_figure(
        "Where in frequency cameras and adversaries differ from the clean LR image",
        f"Medians over crops; adversaries at {middle} unless they say otherwise.",
        4.0,
        [*legend, Line2D([], [], label="pooling", color=PALE, linestyle="--")],
    )
    spectrum, response = figure.subplots(1, 2)
    rings = len(record["prior"][0]["measures"]["spectrum"])
    centres = [(index + 0.5) / rings for index in range(rings)]
    for _, colour, style, row in sources:
        spectrum.plot(centres, row["measures"]["spectrum"], color=colour, linestyle=style, linewidth=1.8)
        response.plot(record["frequencies"], row["measures"]["response"], color=colour, linestyle=style, linewidth=1.8)
    response.plot(record["frequencies"], record["pooling"]["response"], color=PALE, linestyle="--", linewidth=1.8)
    for axes, title in ((spectrum, "spectrum of the difference (shares)"), (response, "response of the kernel")):
        plain_axes(axes, title, "frequency, in units of the LR image's Nyquist")
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
    return figure


def ranges(record: Record) -> Figure:
    """Draw the quantiles of all compared measures, a line a source; random directions are in the table only."""
    sources = [(name, colour, camera) for (name, camera), colour in zip(_cameras(record), CAMERAS, strict=False)]
    sources += [
        (label, OWN if row["lens"] else TRAINED if row["name"] == "trained" else GRAY, row)
        for label, row in compared(record)
        if row["method"] != "random"
    ]
    figure = new_figure(
        "What cameras do, and what the prior does within a budget",
        "Line: 10 to 90% of crops; box: 25 to 75%; dot: median; shaded: 10 to 90% of all cameras' crops. "
        f"At {record['settings']['middle']:g} dB unless said otherwise.",
        0.26 * len(sources) + 0.8,
    )
    all_axes = figure.subplots(1, len(record["ranges"]), sharey=True)
    for axes, (name, shaded) in zip(all_axes, record["ranges"].items(), strict=True):
        plain_axes(axes, grid="x")
        axes.set_title(_TITLES[name], loc="left", fontsize=9, color=INK)
        axes.axvspan(*shaded, color="#e8eff7")
        for index, (_, colour, row) in enumerate(sources):
            low, first, median, third, high = row["measures"][name]
            axes.plot([low, high], [index] * 2, color=colour, linewidth=1.2)
            axes.plot([first, third], [index] * 2, color=colour, linewidth=6, solid_capstyle="butt")
            axes.plot(median, index, "o", color=colour, markeredgecolor="white", markersize=6)
        ends = [end for *_, row in sources for end in row["measures"][name]]
        edges = min(shaded[0], *ends), max(shaded[1], *ends)
        margin = 0.08 * (edges[1] - edges[0])
        axes.set_xlim(edges[0] - margin, edges[1] + margin)
        axes.set_xticks(edges, [f"{edge:.2g}" for edge in edges], fontsize=8, color=FAINT)
    all_axes[0].set_yticks(range(len(sources)), [name for name, *_ in sources], fontsize=9, color=INK)
    all_axes[0].set_ylim(len(sources) - 0.5, -0.5)
    return figure


TABLES: dict[str, Callable[[Record], str]] = {
    "cameras": cameras,
    "overlap": overlap,
    "budgets": budgets,
    "shares": shares,
    "behind": behind,
    "widths": widths,
}
FIGURES: dict[str, Callable[[Record], Figure]] = {
    "calibration_spectra.png": spectra,
    "calibration_ranges.png": ranges,
}


def _mixtures(record: Record) -> list[str]:
    return list(dict.fromkeys(row["name"] for row in record["prior"] if row["lens"] is None))


def _is_range(row: Record) -> bool:
    """Whether the budgets are drawn from a range, as in training."""
    return row["lr_psnr"] is not None and row["lr_psnr"][0] < row["lr_psnr"][1]


def _channels(record: Record) -> list[int]:
    """The narrow F's and the wide one's."""
    return sorted({row["channels"] for row in record["prior"]})


def _cameras(record: Record) -> list[tuple[str, Record]]:
    return list(record["cameras"].items())


def _find(record: Record, name: str, **wanted: Any) -> Record:
    """The row of a mixture without a lens: exact PGD, N = 1, the narrow F, the middle budget, or as asked."""
    middle = record["settings"]["middle"]
    wanted = {
        "method": "pgd",
        "channels": _channels(record)[0],
        "per_image": False,
        "lr_psnr": [middle, middle],
        "size": None,
        "lens": None,
    } | wanted
    (row,) = (
        row
        for row in record["prior"]
        if row["name"] == name and all(row[key] == value for key, value in wanted.items())
    )
    return row


def _median(row: Record, name: str) -> float:
    values = row["measures"][name]
    return values[len(values) // 2]


def _medians(row: Record, names: Sequence[str]) -> list[str]:
    return [f"{_median(row, name):.{1 if name.endswith('psnr') else 2}f}" for name in names]


def _percent(row: Record) -> str:
    inside = row["inside"].values()
    return f"{100 * sum(inside) / len(inside):.0f}%"


def _spread(group: str, name: str, digits: int) -> Callable[[Record], str]:
    return lambda camera: _quantiles(camera[group][name], digits)


def _quantiles(values: Sequence[float], digits: int) -> str:
    """The median, and the 10 and 90% quantiles in brackets."""
    low, middle, high = (f"{value:.{digits}f}" for value in (values[0], values[2], values[4]))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    sys.exit(main())
