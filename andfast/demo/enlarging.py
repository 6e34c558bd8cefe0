"""The page's first tab: upscale an uploaded file, and show it beside bicubic interpolation."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from andfast.data.images import image_size, read_picture
from andfast.data.picture import eight_bits, over_white, to_pil
from andfast.demo.models import Offered
from andfast.inference.formats import Picture, check_memory, losses, read_to_upscale, write_picture
from andfast.utils.files import shortened

#: The slider shows the centre of larger results, up to this height and width: browsers are slow with more.
SHOWN = 2048

#: The choice of the model's scale.
OWN = "the model's own"

#: The largest factor, as in `andfast.upscale`.
LARGEST_FACTOR = 64

# Compression of the temporary files for the slider: larger, but written faster.
_FAST = 1

_KINDS = {1: "gray", 2: "gray with alpha", 3: "RGB", 4: "RGB with alpha"}

# Largest height and width of a thumbnail.
_SMALL = 640


@dataclass(frozen=True)
class Enlarged:
    """An upscaled file.

    Attributes:
        file: the result.
        before, after: PNGs of one size for the slider: bicubic interpolation, and the result.
        line: a description: sizes, time, model and device.
    """

    file: Path
    before: Path
    after: Path
    line: str


def parse_factor(text: str) -> float | None:
    """Parse `4`, `x4` or `2.5` as a factor in (0, `LARGEST_FACTOR`], or raise a ValueError; None for `OWN`."""
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
    suffix: str = ".png",
    quality: int = 95,
) -> Enlarged:
    """Upscale a file by `factor`, None for the model's scale, and write the results to `folder`.

    `done` is called with the progress, in (0, 1]. `suffix` says the format, `quality` is as for `write_picture`.

    Raises:
        DataError: the file cannot be read, has more than `max_pixels`, or the result is too large for its format or
            the free memory.
        NonFiniteError: the model's output holds NaN or infinity.
        OSError: a result cannot be written.
    """
    times = offered.scale if factor is None else factor
    target = folder / f"{shortened(path.stem, 200)}_x{times:g}{suffix}"
    picture = read_to_upscale(path, target, times, max_pixels)
    check_memory(path, picture, target, times)
    height, width, channels = picture.pixels.shape
    total, finished = height * width * (2 if channels in (2, 4) else 1), 0  # alpha is upscaled separately

    def count(pixels: int) -> None:
        nonlocal finished
        finished += pixels
        if done is not None:
            done(min(finished / total, 1.0))

    begin = time.perf_counter()
    result = replace(picture, pixels=offered.upscaler.pixels(picture.pixels, factor, count))
    seconds = time.perf_counter() - begin
    write_picture(target, result, quality)
    before, after = folder / "before.png", folder / "after.png"
    line = f"{path.name}, {width} x {height} → {describe(result)}; {seconds:.1f} s by {offered.described}"
    line = "; ".join((line, *losses(target, result)))
    if not _show(picture, result, before, after):
        line += ". The slider shows the middle of it"
    return Enlarged(target, before, after, line)


def archive(files: Sequence[Path], target: Path) -> None:
    """Move files into a ZIP archive; of those with one name the later ones get a number.

    Raises:
        OSError: it cannot be written.
    """
    names: set[str] = set()
    with zipfile.ZipFile(target, "w") as file:  # not compressed, as images are
        for path in files:
            name, number = path.name, 1
            while name.casefold() in names:  # as systems do that do not distinguish capital letters
                number += 1
                name = f"{path.stem} ({number}){path.suffix}"
            names.add(name.casefold())
            file.write(path, name)
            path.unlink()


def _show(picture: Picture, result: Picture, before: Path, after: Path) -> bool:
    """Write both images of the slider; return whether they show the whole result."""
    height, width = result.pixels.shape[:2]
    high, wide = min(height, SHOWN), min(width, SHOWN)
    top, left = (height - high) // 2, (width - wide) // 2
    y, x = picture.pixels.shape[0] / height, picture.pixels.shape[1] / width  # input pixels per result pixel
    box = (left * x, top * y, (left + wide) * x, (top + high) * y)
    original = flat(picture)
    part = flat(Picture(result.pixels[top : top + high, left : left + wide], result.icc))
    # Pillow writes the colour profile that an image has.
    original.resize((wide, high), Image.Resampling.BICUBIC, box=box).save(before, compress_level=_FAST)
    part.save(after, compress_level=_FAST)
    return (high, wide) == (height, width)


def describe(picture: Picture) -> str:
    """Describe a picture: `600 x 400 pixels, RGB, 8 bits`."""
    height, width, channels = picture.pixels.shape
    words = f"{width} x {height} pixels, {_KINDS[channels]}, {8 * picture.pixels.itemsize} bits"
    return words if picture.icc is None else f"{words}, with a colour profile"


def thumbnail(path: Path, max_pixels: int) -> tuple[np.ndarray, str]:
    """Make a thumbnail of an uploaded file, uint8 (h, w, 3), and a line that describes the file."""
    picture = read_picture(path, max_pixels)
    image = flat(picture)
    image.thumbnail((_SMALL, _SMALL))
    return np.asarray(image), "; ".join((f"{path.name}: {describe(picture)}", *picture.notes))


def glance(path: Path, max_pixels: int) -> str:
    """A line that describes an uploaded file by its header."""
    height, width = image_size(path, max_pixels)
    return f"{path.name}: {width} x {height} pixels"


def flat(picture: Picture) -> Image.Image:
    """Convert a picture to 8-bit RGB over white; a colour profile of RGB is kept.

    The slider draws one image over the other, so transparency would mix them.
    """
    image = to_pil(Picture(eight_bits(over_white(picture.pixels)))).convert("RGB")
    if picture.icc and picture.pixels.shape[2] > 2:
        image.info["icc_profile"] = picture.icc
    return image
