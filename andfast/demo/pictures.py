"""Uploaded pictures as the page describes and shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from andfast.data.images import read_picture
from andfast.data.picture import Picture, eight_bits, over_white, to_pil

_KINDS = {1: "gray", 2: "gray with alpha", 3: "RGB", 4: "RGB with alpha"}

#: A thumbnail's height and width at most.
_SMALL = 640


def describe(picture: Picture) -> str:
    """What a picture is, for people: `600 x 400 pixels, RGB, 8 bits`."""
    height, width, channels = picture.pixels.shape
    words = f"{width} x {height} pixels, {_KINDS[channels]}, {8 * picture.pixels.itemsize} bits"
    return words if picture.icc is None else f"{words}, with a colour profile"


def thumbnail(path: Path, max_pixels: int) -> tuple[np.ndarray, str]:
    """An uploaded file as the page shows it before anything is done: uint8 (h, w, 3), and a line that describes it.

    Raises:
        ImageError: as `read_picture`.
    """
    picture = read_picture(path, max_pixels)
    image = flat(picture)
    image.thumbnail((_SMALL, _SMALL))
    return np.asarray(image), "; ".join((f"{path.name}: {describe(picture)}", *picture.notes))


def flat(picture: Picture) -> Image.Image:
    """A picture as it looks over white in 8 bits: RGB, with its colour profile where it is one of RGB.

    The two sides of a slider lie above each other, so that transparency would show the one through the other.
    """
    image = to_pil(Picture(eight_bits(over_white(picture.pixels)))).convert("RGB")
    if picture.icc and picture.pixels.shape[2] > 2:
        image.info["icc_profile"] = picture.icc
    return image
