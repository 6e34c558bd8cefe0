"""The tables and figures of docs/calibration.md: `python -m studies.calibration_report FILE [--figures DIR]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from andfast.utils.charts import COLOURS, FAINT, GRAY, INK, PALE, ChartError, new_figure, plain_axes, save_figure
from andfast.utils.command_line import as_path, make_parser
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
_SPREAD = ("response_half", "response_full", "neighbour_correlation", "colour_correlation", "residual_psnr")


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of a result file, and draw its figures; returns the exit status."""
    parser = make_parser("studies.calibration_report", description=__doc__)
    parser.add_argument("file", type=as_path, metavar="FILE", help="written by studies.calibration")
    parser.add_argument("--figures", type=as_path, metavar="DIR", help="write the figures there")
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
    """Whole images, by camera."""
    found = record["cameras"]
    measures = {
        "PSNR to the clean LR image, dB": ("psnr", 1),
        "the same to bicubic LR": ("psnr_bicubic", 1),
        "DC share of the difference": ("dc_share", 3),
    }
    of_residual = {
        "residual PSNR, own kernels, dB": ("residual_psnr", 1),
        "residual: tone share": ("tone_share", 2),
        "residual: correlation of neighbours": ("neighbour_correlation", 2),
        "residual: correlation of colours": ("colour_correlation", 2),
        "residual: size with level": ("level_correlation", 2),
        "residual: size with gradient": ("gradient_correlation", 2),
        "residual: in flat parts, of 255": ("flat_noise", 1),
    }
    kernels = {name: camera["kernel"] for name, camera in found.items()}
    rows = [["pairs", *(camera["images"] for camera in found.values())], *_whole(found, measures)]
    for key in ("gain", "offset"):
        rows.append([f"kernel: {key}", *(f"{kernel[key]:.3f}" for kernel in kernels.values())])
    for key in ("shift", "width"):
        pairs = [", ".join(f"{value:.2f}" for value in kernel[key]) for kernel in kernels.values()]
        rows.append([f"kernel: {key} x, y, HR pixels", *pairs])
    for name, index in (("half of Nyquist", 4), ("Nyquist", 8)):
        rows.append(
            [f"kernel: response at {name}", *(f"{kernel['response'][index]:.2f}" for kernel in kernels.values())]
        )
    on_sharp = [_quantiles(camera["kernel_on_photographs"], 1) for camera in found.values()]
    rows += [["the kernel on sharp photographs, dB", *on_sharp], *_whole(found, of_residual)]
    return markdown_table(["", *found], rows)


def _whole(found: Record, measures: dict[str, tuple[str, int]]) -> list[list[str]]:
    return [
        [title, *(_quantiles(camera["whole"][name], digits) for camera in found.values())]
        for title, (name, digits) in measures.items()
    ]


def overlap(record: Record) -> str:
    """Crops: medians of all measures by source, and the share inside the cameras' range."""
    names, edges = ["psnr", *record["ranges"]], record["ranges"].values()
    rows = [
        [f"cameras: {percent}%", "-", *(f"{each[side]:.2f}" for each in edges), "", ""]
        for side, percent in enumerate((10, 90))
    ]
    rows += [[name, *_medians(camera, names), _percent(camera), ""] for name, camera in record["cameras"].items()]
    rows += [[name, *_medians(row, names), _percent(row), _loss(row)] for name, row in compared(record)]
    return markdown_table(["", "PSNR", *_titles(record["ranges"]), "in range", "loss"], rows)


def budgets(record: Record) -> str:
    """The effect of each group by budget: N = 1, the narrow F."""
    levels = record["settings"]["budgets"]
    rows = []
    for name in _mixtures(record):
        cells = [_find(record, name, lr_psnr=[level, level]) for level in levels]
        rows.append([name])
        rows[-1] += [
            f"{_loss(row)}, {_median(row, 'response_half'):.2f}, {_median(row, 'dc_share'):.2f}, {row['distance']:.2g}"
            for row in cells
        ]
    return markdown_table(["", *(f"{level:g} dB" for level in levels)], rows)


def widths(record: Record) -> str:
    """The narrow F beside the wide one, at the middle budget."""
    rows = []
    for method in ("pgd", "random"):
        for name in _mixtures(record):
            pair = [_find(record, name, method=method, channels=channels) for channels in _channels(record)]
            cells = [[f"{_median(row, key):.2f}" for row in pair] for key in _SPREAD]
            cells += [[_loss(row) for row in pair], [f"{row['distance']:.2g}" for row in pair], map(_percent, pair)]
            rows.append([f"{name}, random" if method == "random" else name, *map(" / ".join, cells)])
    head = " / ".join(map(str, _channels(record))) + " channels"
    return markdown_table([head, *_titles(_SPREAD), "loss", "distance", "in range"], rows)


def shares(record: Record) -> str:
    """The squared difference that each group causes alone, relative to the whole."""
    groups = list(record["prior"][0]["shares"])
    rows = [
        [label, *(f"{row['shares'][group]:.2f}" for group in groups)]
        for label, row in compared(record)
        if row["name"] in ("default", "trained")
    ]
    return markdown_table(["", *groups], rows)


def behind(record: Record) -> str:
    """The lens, the adversary behind it, and the same adversary without it: the spread over crops."""
    rows = [(name, camera, "") for name, camera in record["cameras"].items()]
    rows += [
        (label, row, _loss(row))
        for label, row in compared(record)
        if row["lens"] is not None or (row["name"] == "trained" and row["method"] == "pgd" and row["size"] is None)
    ]
    cells = [
        [label, *(_quantiles(row["measures"][name], 2) for name in _SPREAD), _percent(row), loss]
        for label, row, loss in rows
    ]
    return markdown_table(["", *_titles(_SPREAD), "in range", "loss"], cells)


def compared(record: Record) -> list[tuple[str, Record]]:
    """The rows of `overlap` and their labels: the narrow F, the middle budget, the ranges of training, or no budget."""
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
    sources = [
        (name, colour, "-", camera) for (name, camera), colour in zip(record["cameras"].items(), CAMERAS, strict=False)
    ]
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
    """Draw the quantiles of all compared measures, a line for each source but random directions."""
    sources = [
        (name, colour, camera) for (name, camera), colour in zip(record["cameras"].items(), CAMERAS, strict=False)
    ]
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


def _find(record: Record, name: str, **wanted: Any) -> Record:
    """The row of a mixture: exact PGD, N = 1, the narrow F, the middle budget and no lens, unless `wanted` differs."""
    middle = record["settings"]["middle"]
    plain = {"method": "pgd", "channels": _channels(record)[0], "per_image": False, "lr_psnr": [middle, middle]}
    wanted = plain | {"name": name, "size": None, "lens": None} | wanted
    (row,) = (row for row in record["prior"] if wanted.items() <= row.items())
    return row


def _median(row: Record, name: str) -> float:
    values = row["measures"][name]
    return values[len(values) // 2]


def _medians(row: Record, names: Sequence[str]) -> list[str]:
    return [f"{_median(row, name):.{1 if name.endswith('psnr') else 2}f}" for name in names]


def _percent(row: Record) -> str:
    inside = row["inside"].values()
    return f"{100 * sum(inside) / len(inside):.0f}%"


def _titles(names: Sequence[str]) -> list[str]:
    return [_TITLES[name].replace("\n", " ") for name in names]


def _loss(row: Record) -> str:
    return f"{row['loss_ratio']:.2f}x"


def _quantiles(values: Sequence[float], digits: int) -> str:
    """The median, and the 10 and 90% quantiles in brackets."""
    low, middle, high = (f"{value:.{digits}f}" for value in (values[0], values[2], values[4]))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    sys.exit(main())
