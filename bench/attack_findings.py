"""What a judge found, as a table, as JSON types and as a chart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from bench.attack_judge import EXACT, PASSES, Finding
from bench.scatter import Point, scatter

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def by_name(findings: Sequence[Finding], name: str) -> Finding:
    """The finding of a variant that took part."""
    return next(finding for finding in findings if finding.variant.name == name)


def pareto(findings: Sequence[Finding]) -> list[Finding]:
    """Those than which no other finds more in as little time, the fastest first."""
    front: list[Finding] = []
    for finding in sorted(findings, key=lambda finding: (finding.median_seconds, -_mean_share(finding, findings))):
        if not front or _mean_share(finding, findings) > _mean_share(front[-1], findings):
            front.append(finding)
    return front


def _mean_share(finding: Finding, findings: Sequence[Finding]) -> float:
    return statistics.fmean(finding.share_of(by_name(findings, EXACT[0])))


def _spread(values: Sequence[float]) -> float:
    """Standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def table(findings: Sequence[Finding]) -> str:
    """A Markdown table, a row a variant; those on the Pareto front, for which none finds more in less time, in bold."""
    exact, front = by_name(findings, EXACT[0]), pareto(findings)
    lines = [
        f"| attack | found of {EXACT[0]} | of {EXACT[1]} | ms a batch | time | peak MiB | {' | '.join(PASSES)} |",
        "|---|" + "--:|" * (5 + len(PASSES)),
    ]
    for finding in findings:
        shares = [finding.share_of(by_name(findings, name)) for name in EXACT]
        passes = finding.mean_passes()
        name = finding.variant.name
        cells = [
            f"**{name}**" if finding in front else name,
            *(f"{statistics.fmean(share):.1%} ± {_spread(share):.1%}" for share in shares),
            f"{1000 * finding.median_seconds:.1f}",
            f"{finding.median_seconds / exact.median_seconds:.2f}x",
            f"{finding.peak_memory / 2**20:.1f}",
            *(f"{passes[name]:.2f}".rstrip("0").rstrip(".") for name in PASSES),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """All findings; a list under "each" holds a value a batch, "spread" is the standard deviation over the batches."""
    exact, front = by_name(findings, EXACT[0]), pareto(findings)

    def spread(values: list[float]) -> dict[str, Any]:
        return {"mean": statistics.fmean(values), "spread": _spread(values), "each": values}

    return [
        {
            "name": finding.variant.name,
            "attack": type(finding.variant.attack).__name__,
            "settings": _own_settings(finding),
            "dtype": None if finding.variant.dtype is None else str(finding.variant.dtype).removeprefix("torch."),
            **{f"share_of_{name}": spread(finding.share_of(by_name(findings, name))) for name in EXACT},
            "loss_increase": spread(finding.increase),
            "lr_psnr": statistics.fmean(finding.lr_psnr),
            "seconds": {"median": finding.median_seconds, "each": finding.seconds},
            f"time_ratio_to_{EXACT[0]}": finding.median_seconds / exact.median_seconds,
            "peak_memory": finding.peak_memory,
            "passes": finding.mean_passes(),
            "on_pareto_front": finding in front,
        }
        for finding in findings
    ]


def _own_settings(finding: Finding) -> dict[str, Any]:
    """What distinguishes the variant's attack from others; what all have in common is said once, elsewhere."""
    attack = finding.variant.attack
    common = {"epsilon", "scale_factors", "lr_psnr", "lens"}
    return {item.name: getattr(attack, item.name) for item in fields(attack) if item.name not in common}


def chart(findings: Sequence[Finding], subtitle: str) -> Figure:
    """Loss increase found against time, both relative to the exact attack's, with the Pareto front."""
    exact, front = by_name(findings, EXACT[0]), pareto(findings)
    points = []
    for finding in findings:
        share = [100 * value for value in finding.share_of(exact)]
        points.append(
            Point(
                label=finding.variant.name,
                group=finding.variant.method,
                x=finding.median_seconds / exact.median_seconds,
                y=statistics.fmean(share),
                # Of the mean: what a second run would give.
                spread=_spread(share) / len(share) ** 0.5,
                on_line=finding in front,
            )
        )
    return scatter(
        "Loss increase found by attacks, against their time",
        subtitle,
        f"time of the attack, relative to {EXACT[0]}",
        f"loss increase found, % of {EXACT[0]}'s (mean over batches, bars: its standard error)",
        "Pareto front",
        points,
        # Attacks lie close together, far above a random deviation.
        least=min(point.y - point.spread for point in points if point.group != "random") - 5,
    )
