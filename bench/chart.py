"""Horizontal bars, drawn with Pillow alone."""

from __future__ import annotations

from PIL import Image, ImageDraw

from andfast.chart import FAINT, INK, MARGIN, OLD, OTHER, OWN, PALE, PAPER, WIDTH, font

#: A bar: its label, its value, and what is written at its end.
Bar = tuple[str, float, str]

GAP = 36
TITLE, ROW, BAR = 52, 40, 26
# By the first word of a label; all others are andfast's own.
COLOURS = {"eager": OLD, "torch.compile": OTHER, "reference": PALE}


def draw(charts: list[tuple[str, list[Bar]]]) -> Image.Image:
    """Groups of bars below each other, each with a title and on its own scale from zero."""
    title, text = font(26), font(22)
    bars = [bar for _, group in charts for bar in group]
    left = MARGIN + int(max(text.getlength(label) for label, _, _ in bars)) + 20
    longest = WIDTH - MARGIN - left - int(max(text.getlength(note) for _, _, note in bars)) - 20
    rows = sum(TITLE + ROW * len(group) for _, group in charts)
    image = Image.new("RGB", (WIDTH, 2 * MARGIN + rows + GAP * (len(charts) - 1)), PAPER)
    pen = ImageDraw.Draw(image)
    y = MARGIN
    for name, group in charts:
        pen.text((MARGIN, y), name, INK, title)
        y += TITLE
        scale = longest / max(value for _, value, _ in group)
        pen.line((left - 1, y, left - 1, y + ROW * len(group)), FAINT)
        for label, value, note in group:
            middle = y + ROW // 2
            end = left + max(2, round(value * scale))
            pen.text((left - 16, middle), label, INK, text, anchor="rm")
            pen.rectangle((left, middle - BAR // 2, end, middle + BAR // 2), COLOURS.get(label.split()[0], OWN))
            pen.text((end + 14, middle), note, FAINT, text, anchor="lm")
            y += ROW
        y += GAP
    return image
