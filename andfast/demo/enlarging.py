"""What the page's first tab does: an uploaded file through a model, beside bicubic interpolation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from andfast.demo.models import Offered
from andfast.demo.pictures import describe, flat
from andfast.inference.formats import Picture, read_to_upscale, write_picture
from andfast.utils.files import shortened

#: Of larger results the slider shows the middle, so many pixels high and wide: browsers are slow with more.
SHOWN = 3072

#: An output scale that is whatever the model's is.
OWN = "the model's own"

#: The largest factor that can be asked for, as that of `andfast.upscale`.
LARGEST_FACTOR = 64

# For what is looked at and thrown away: larger files, written in a fraction of the time.
_FAST = 1


@dataclass(frozen=True)
class Enlarged:
    """An upscaled file.

    Attributes:
        file: all of the result, a PNG with the upload's bits, transparency and colour profile.
        before, after: PNGs for a slider, of one size: bicubic interpolation, and the result.
        line: sizes, time, model and device, for people.
    """

    file: Path
    before: Path
    after: Path
    line: str


def parse_factor(text: str) -> float | None:
    """`4`, `x4` or `2.5` as a factor; `OWN` is the model's: None.

    Raises:
        ValueError: it is no number, or not above 0 and at most `LARGEST_FACTOR`.
    """
    if text == OWN:
        return None
    try:
        factor = float(text.strip().removeprefix("x"))
    except ValueError:
        raise ValueError(f"the output scale is a number such as 3 or 2.5, not {text!r}") from None
    if not 0 < factor <= LARGEST_FACTOR:
        raise ValueError(f"the output scale is {text}; it must be above 0 and at most {LARGEST_FACTOR}")
    return factor


def enlarge(
    path: Path,
    offered: Offered,
    factor: float | None,
    folder: Path,
    max_pixels: int,
    done: Callable[[float], object] | None = None,
) -> Enlarged:
    """Upscale a file.

    Args:
        path: the file.
        offered: the model.
        factor: of the result's size to the file's; None: the model's own.
        folder: where results are written.
        max_pixels: files of more are refused before they are decoded.
        done: is told the share that is done, in (0, 1].

    Raises:
        DataError: the file cannot be read, or the result needs more memory than there is.
        NonFiniteError: the model's output holds NaN or infinity.
        ValueError: the result is too large for PNG.
        OSError: it cannot be written.
    """
    times = offered.scale if factor is None else factor
    target = folder / f"{shortened(path.stem, 200)}_x{times:g}.png"
    picture = read_to_upscale(path, target, times, max_pixels)
    height, width, channels = picture.pixels.shape
    total, finished = height * width * (2 if channels in (2, 4) else 1), 0  # alpha is a pass of its own

    def count(pixels: int) -> None:
        nonlocal finished
        finished += pixels
        if done is not None:
            done(min(finished / total, 1.0))

    begin = time.perf_counter()
    result = replace(picture, pixels=offered.upscaler.pixels(picture.pixels, factor, count))
    seconds = time.perf_counter() - begin
    write_picture(target, result)
    before, after = folder / "before.png", folder / "after.png"
    line = f"{path.name}, {width} x {height} → {describe(result)}; {seconds:.1f} s by {offered.described}"
    if not _show(picture, result, before, after):
        line += ". The slider shows the middle of it"
    return Enlarged(target, before, after, line)


def _show(picture: Picture, result: Picture, before: Path, after: Path) -> bool:
    """Write both sides of the slider; returns whether they show all of the result."""
    height, width = result.pixels.shape[:2]
    high, wide = min(height, SHOWN), min(width, SHOWN)
    top, left = (height - high) // 2, (width - wide) // 2
    y, x = picture.pixels.shape[0] / height, picture.pixels.shape[1] / width  # the input's pixels in one of the result
    box = (left * x, top * y, (left + wide) * x, (top + high) * y)
    original = flat(picture)
    part = flat(Picture(result.pixels[top : top + high, left : left + wide], result.icc))
    _write(original.resize((wide, high), Image.Resampling.BICUBIC, box=box), before, original.info.get("icc_profile"))
    _write(part, after, part.info.get("icc_profile"))
    return (high, wide) == (height, width)


def _write(image: Image.Image, path: Path, icc: bytes | None) -> None:
    image.save(path, compress_level=_FAST, icc_profile=icc)
