"""The photographs inside scikit-image's package: data for a first run without a download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from andfast.data.images import DataError, ImageError, read_image

# Sharp and detailed. The stereo pair shows one scene twice, so both images are for training. Smooth images (moon,
# retina, cell) and drawings (logo, color) are left out: they have little to restore.
_TRAINING = (
    *("brick.png", "camera.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png"),
    *("motorcycle_left.png", "motorcycle_right.png", "rocket.jpg"),
)
# A face with fabric and metal, fur, wood with reflections: what people judge a result by.
_HELD_OUT = ("astronaut.png", "chelsea.png", "coffee.png")


def training_photographs() -> list[tuple[str, np.ndarray]]:
    """Ten photographs to train on, as (name, uint8 (H, W, 3) RGB): five in colour, five gray, of 303 x 384 or more.

    Raises:
        DataError: scikit-image is not installed, or its package lacks one of them.
    """
    return _read(_TRAINING)


def held_out_photographs() -> list[tuple[str, np.ndarray]]:
    """Three colour photographs to validate on: astronaut (512 x 512), chelsea (300 x 451) and coffee (400 x 600).

    Type and errors are as for `training_photographs`.
    """
    return _read(_HELD_OUT)


def held_out_files() -> list[Path]:
    """The files of `held_out_photographs`; DataError if scikit-image is not installed."""
    return _files(_HELD_OUT)


def _files(names: tuple[str, ...]) -> list[Path]:
    # Not by the functions of skimage.data, which would download a missing file.
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
