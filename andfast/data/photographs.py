"""The photographs that come inside scikit-image's package: data for a first run that needs no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from andfast.data.images import DataError, ImageError, read_image

# Sharp and full of detail. The stereo pair shows one scene twice, so both halves stay on this side. Left out:
# smooth ones (moon, retina, cell) and drawings (logo, color), which have little to restore.
_TRAINING = (
    "brick.png",
    "camera.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
)
# A face with fabric and metal, fur, wood with reflections: what a person would judge a result by.
_HELD_OUT = ("astronaut.png", "chelsea.png", "coffee.png")


def training_photographs() -> list[tuple[str, np.ndarray]]:
    """Ten photographs to train on, as (name, uint8 (H, W, 3) RGB): five in colour, five gray.

    The smallest is 303 x 384 pixels. None is among `held_out_photographs`.

    Raises:
        DataError: scikit-image is not installed, or its package lacks one of them.
    """
    return _read(_TRAINING)


def held_out_photographs() -> list[tuple[str, np.ndarray]]:
    """Three colour photographs to validate on, as (name, uint8 (H, W, 3) RGB).

    astronaut (512 x 512), chelsea (300 x 451) and coffee (400 x 600).

    Raises:
        DataError: scikit-image is not installed, or its package lacks one of them.
    """
    return _read(_HELD_OUT)


def held_out_files() -> list[Path]:
    """The files of `held_out_photographs`.

    Raises:
        DataError: scikit-image is not installed.
    """
    return _files(_HELD_OUT)


def _files(names: tuple[str, ...]) -> list[Path]:
    # From the package's folder, not by skimage.data's functions, which would download a file that is missing.
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise DataError("the sample photographs come with scikit-image, which is not installed")
    return [Path(package.origin).parent / "data" / name for name in names]


def _read(names: tuple[str, ...]) -> list[tuple[str, np.ndarray]]:
    try:
        return [(file.stem, read_image(file)) for file in _files(names)]
    except ImageError as error:
        raise DataError(
            f"this scikit-image lacks a sample photograph ({error}); install scikit-image 0.24 or later, "
            "or give a folder of images"
        ) from error
