"""What is drawn on: a white sheet with a title, and the colours that all charts share."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageColor, ImageDraw, ImageFont

WIDTH, MARGIN = 1400, 48
INK, FAINT, PAPER, GRID = "#1f2328", "#59636e", "#ffffff", "#e4e8ec"
OWN, OLD, OTHER, PALE = "#2f6fb2", "#9aa4af", "#c9a26b", "#c8ced5"
#: Colours of groups, told apart in gray, too.
GROUPS = (OWN, "#c2571a", "#2e8b57", "#7d4fa8", "#b03060", OLD)

# Drawn so many times larger and then reduced, for smooth edges.
_FINE = 2


def font(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


def paler(colour: str) -> tuple[int, ...]:
    """A third of a colour, the rest white."""
    return tuple((value + 2 * 255) // 3 for value in ImageColor.getrgb(colour))


class Sheet:
    """A drawing of `WIDTH` x `height` pixels with a title and a subtitle, in the finished image's coordinates."""

    def __init__(self, height: int, title: str, subtitle: str) -> None:
        self.height = height
        self._image = Image.new("RGB", (_FINE * WIDTH, _FINE * height), PAPER)
        self._pen = ImageDraw.Draw(self._image)
        self.text(MARGIN, MARGIN - 10, title, INK, 28)
        self.text(MARGIN, MARGIN + 30, subtitle, FAINT, 20)

    def text(self, x: float, y: float, text: str, colour: str = INK, size: float = 18, anchor: str = "la") -> None:
        self._pen.text((_FINE * x, _FINE * y), text, colour, font(_FINE * size), anchor=anchor)

    def bounds(self, x: float, y: float, text: str, size: float, anchor: str) -> tuple[float, ...]:
        """Left, top, right and bottom of what `text` would write."""
        box = self._pen.textbbox((_FINE * x, _FINE * y), text, font(_FINE * size), anchor=anchor)
        return tuple(value / _FINE for value in box)

    def line(self, points: Sequence[tuple[float, float]], colour: str | tuple[int, ...], width: float = 1) -> None:
        self._pen.line([(_FINE * x, _FINE * y) for x, y in points], colour, round(_FINE * width), joint="curve")

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        self._pen.rectangle([_FINE * value for value in (left, top, right, bottom)], colour)

    def dot(self, x: float, y: float, colour: str, radius: float = 6, edge: str = PAPER, width: float = 1) -> None:
        ends = [_FINE * value for value in (x - radius, y - radius, x + radius, y + radius)]
        self._pen.ellipse(ends, colour, edge, round(_FINE * width))

    def polygon(self, points: Sequence[tuple[float, float]], colour: str, edge: str) -> None:
        self._pen.polygon([(_FINE * x, _FINE * y) for x, y in points], colour, edge)

    def done(self) -> Image.Image:
        return self._image.resize((WIDTH, self.height), Image.Resampling.LANCZOS)
