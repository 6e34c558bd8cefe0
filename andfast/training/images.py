"""The images of a run: those to train on, those held out, and those that could not be used."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from andfast.data.images import DataError, ImageError
from andfast.data.listing import SkippedFile, list_folder, skipped_message
from andfast.data.pairs import Pair, cut_to_fit, find_pairs
from andfast.data.patches import Failure, ImageArray, ImageFile, Source, scan_images, too_small
from andfast.data.photographs import held_out_photographs, training_photographs
from andfast.training.config import Config
from andfast.training.validation import centre_crop, least_size
from andfast.utils.formatting import counted


class Skipped:
    """Counts and, if `verbose`, reports images that had to be skipped; `named` adds the process to a message."""

    def __init__(self, named: Callable[[str], str] = str, verbose: bool = True) -> None:
        self.count = 0
        self.named, self.verbose = named, verbose

    def report(self, failures: Sequence[Failure]) -> None:
        for failure in failures:
            self.count += 1
            if self.verbose:
                tqdm.write(self.named(f"skipped image {self.count}: {failure.reason}"), file=sys.stderr)

    def pass_over(self, files: Sequence[SkippedFile]) -> None:
        if self.verbose and files:
            tqdm.write(self.named(skipped_message(files)), file=sys.stderr)


@dataclass
class Images:
    """The images of a run."""

    sources: list[Source]  # to train on
    held_out: list[tuple[str, np.ndarray]]  # names and centres of HR images to validate on
    pairs: list[Pair]  # camera pairs to validate on
    trained_pairs: list[Pair]  # camera pairs to train on (`attack.mix.pairs`)

    @property
    def folders(self) -> list[int]:
        """For each source the place in `data.hr` of its folder."""
        return [source.folder if isinstance(source, ImageFile) else 0 for source in self.sources]

    def digest(self) -> str:
        """A short text that changes when an image is added or removed."""
        names = [source.name for source in self.sources] + [name for name, _ in self.held_out]
        names += [pair.name for pair in self.trained_pairs]
        return hashlib.sha256(os.fsencode("\n".join(names))).hexdigest()[:16]


def find_images(config: Config, skipped: Skipped) -> Images:
    """Find the images that a configuration names; images that cannot be used are reported to `skipped`.

    Raises:
        DataError: there are too few, or invalid pairs; the message names the folders.
    """
    data = config.data
    pairs = _pairs(data.val_pairs, config.scale, skipped)
    trains_on_pairs = config.mixed and config.mix_method == "pairs"
    trained_pairs = _pairs(config.attack.mix.pairs if trains_on_pairs else None, config.scale, skipped)
    sources = training_sources(data.hr, config.train.patch_size, skipped)
    if data.val_hr:
        candidates = _scan(data.val_hr, 8 * config.scale, skipped)
    elif len(sources) == 1:
        raise DataError(
            f"{', '.join(data.hr)}: one usable image, which cannot be trained on and held out both; give other images "
            "as data.val_hr, or the same, to validate on what is trained on"
        )
    elif data.hr:
        # A quarter at most: with few images, training needs them more.
        count = min(data.held_out, max(len(sources) // 4, 1))
        # Evenly spread over the sorted names, so that no one folder or series gives them all.
        candidates = [sources[(2 * index + 1) * len(sources) // (2 * count)] for index in range(count)]
        sources = [source for source in sources if source not in candidates]
    else:
        candidates = [ImageArray(*image) for image in held_out_photographs()]
    held_out, least = [], least_size(config.scale)
    for source in candidates:
        try:
            image = centre_crop(source.read(), config.scale)
            if min(image.shape[:2]) < least:
                raise ImageError(f"{source.name}: {too_small(*image.shape[:2], least)} to validate on")
        except ImageError as error:
            skipped.report([Failure(source.name, str(error))])
        else:
            held_out.append((source.name, image))
    if not held_out or not sources:
        found = f"{counted(len(sources), 'usable image')} to train on and {len(held_out)} to validate on"
        where = ", ".join([*data.hr, *data.val_hr])
        raise DataError(f"{where}: {found}; at least one of each is needed (data.hr, data.val_hr)")
    images = Images(sources, held_out, pairs, trained_pairs)
    if data.weights and (without := [data.hr[index] for index in set(range(len(data.hr))) - set(images.folders)]):
        raise DataError(f"{', '.join(without)}: no image to train on, and data.weights has a weight for it")
    return images


def _pairs(folder: str | None, scale: int, skipped: Skipped) -> list[Pair]:
    if folder is None:
        return []
    pairs = find_pairs(folder, scale)
    skipped.pass_over(list_folder(folder).passed_over)
    if skipped.verbose and (cut := sum(pair.cut for pair in pairs)):
        tqdm.write(skipped.named(f"{folder}: {cut_to_fit(cut, len(pairs), scale)}"), file=sys.stderr)
    return pairs


def training_sources(folders: Sequence[str], min_size: int, skipped: Skipped) -> list[Source]:
    """The images in `folders` that can give patches of `min_size`; without folders scikit-image's photographs."""
    if not folders:
        return [ImageArray(*image) for image in training_photographs()]
    return _scan(folders, min_size, skipped)


def _scan(folders: Sequence[str], min_size: int, skipped: Skipped) -> list[Source]:
    scan = scan_images([Path(folder) for folder in folders], min_size)
    skipped.pass_over(scan.passed_over)
    skipped.report(scan.skipped)
    return list(scan.sources)
