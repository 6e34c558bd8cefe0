"""Fit NIQE's model of undistorted photographs: `python -m studies.niqe --images DIR... --output FILE.npz`."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from andfast.data.images import DataError, image_size, read_image
from andfast.data.listing import list_images, listed
from andfast.data.tensors import to_tensor
from andfast.metrics.niqe import (
    BLOCK,
    FEATURES,
    PristineModel,
    block_features,
    gaussian_window,
    moments,
    niqe_luma,
    save_pristine,
    whole_blocks,
)
from andfast.utils.command_line import as_path, make_parser
from andfast.utils.console import console
from studies.sources import count_sources

SHARPEST = 0.75
"""The model is fitted to blocks of at least this sharpness, relative to the sharpest block of the image."""


def fit_pristine(images: Iterable[torch.Tensor]) -> tuple[PristineModel, int]:
    """Fit the model as `estimatemodelparam.m` of NIQE's authors does.

    Args:
        images: float (1, 3, H, W) in [0, 1], each at least a block high and wide.

    Returns:
        The model, and the number of blocks that it was fitted to.

    Raises:
        DataError: there are too few sharp blocks for a covariance of full rank.
    """
    window, chosen = gaussian_window(), []
    for image in images:
        features, sharpness = block_features(niqe_luma(image), window)
        chosen.append(features[sharpness > SHARPEST * sharpness.max()])
    mean, covariance, count = moments(torch.cat(chosen)[None])
    if count <= FEATURES:
        raise DataError(f"{int(count)} sharp blocks; more than {FEATURES} are needed, and hundreds for a good fit")
    return PristineModel(mean[0], covariance[0], window), int(count)


def find_photographs(folders: Sequence[str]) -> list[Path]:
    """All images in the folders.

    Raises:
        DataError: there are no images, or some are smaller than a block, or unreadable.
    """
    paths = [path for folder in folders for path in list_images(folder)]
    small = [str(path) for path in paths if not whole_blocks(*image_size(path))]
    if small or not paths:
        raise DataError(f"smaller than {BLOCK} x {BLOCK} pixels: {listed(small)}" if small else "no images there")
    return paths


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 not begun."""
    parser = make_parser("studies.niqe", description=__doc__.partition(":")[0])
    add = parser.add_argument
    add("--images", nargs="+", required=True, metavar="DIR", help="folders of undistorted photographs")
    add("--output", type=as_path, required=True, metavar="FILE", help="the model, .npz")
    options = parser.parse_args(arguments)
    try:
        if options.output.suffix != ".npz":
            raise DataError(f"--output {options.output}: give an .npz file")
        paths = find_photographs(options.images)
        about: dict[str, Any] = {"images": len(paths), "sources": _sources([path.name for path in paths])}
        digest = hashlib.sha256()
        for path in paths:
            digest.update(path.read_bytes())
        images = (to_tensor(read_image(path)) for path in tqdm(paths, unit="image", disable=None))
        model, blocks = fit_pristine(images)
        about |= {"sha256 of the files": digest.hexdigest(), "blocks": blocks, "sharpest": SHARPEST}
        about["luma"] = "ITU-R BT.601 of 8-bit RGB, 16 to 235, rounded"
        save_pristine(PristineModel(model.mean, model.covariance, model.window, about), options.output)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"fitted to {blocks} blocks of {len(paths)} images: {options.output}")
    return 0


def _sources(names: Sequence[str]) -> list[dict[str, str | int]]:
    """The collections of the photographs, with their licences and numbers of images."""
    kept = ("name", "licence", "url")
    return [{key: one[key] for key in kept} | {"images": one["trained"]} for one in count_sources(names, [])]


if __name__ == "__main__":
    sys.exit(main())
