"""What the adversary found, as the page shows it."""

from __future__ import annotations

import base64
import html

from andfast.data.png import png_bytes
from andfast.demo.adversary import Cell, Found


def table(found: Found) -> str:
    """The numbers, in Markdown."""
    rows = (
        ("LR-PSNR, dB", "", f"{found.lr_psnr:.2f}"),
        ("loss (L1)", *(f"{value:.4f}" for value in found.loss)),
        ("restoration's PSNR-Y, dB", *(f"{value:.2f}" for value in found.psnr_y)),
    )
    lines = ["| | clean LR | attacked LR |", "|---|--:|--:|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def figures(found: Found) -> str:
    """The images with their labels, in HTML; the browser enlarges those of LR by repeating pixels."""
    return f'<div class="figures"><h3>What was found</h3>{"".join(map(_figure, found.cells))}</div>'


def _figure(cell: Cell) -> str:
    data = base64.b64encode(png_bytes(cell.image)).decode()
    label, note = html.escape(cell.label), html.escape(cell.note)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{label}">'
        f"<figcaption><span>{label}</span><span>{note}</span></figcaption></figure>"
    )
