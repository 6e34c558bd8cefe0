"""The models that the page offers, loaded once and kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from andfast.evaluation.models import split_title, title_of
from andfast.inference.models import find_model, precision_for
from andfast.inference.upscaler import Upscaler
from andfast.models import ModelError
from andfast.models.frozen import FrozenModule
from andfast.models.weights import SUFFIXES
from andfast.pretrained import pretrained_names
from andfast.training.checkpoints import PREVIOUS_FILE, STATE_FILE
from andfast.utils.command_line import one_line
from andfast.utils.console import printable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offered:
    """A model on the page.

    Attributes:
        title: its name on the page.
        file: its file, or a pretrained model's name.
        upscaler: upscales with it.
        view: the model that the adversary attacks, in the type that `andfast.degrade` chooses.
    """

    title: str
    file: str
    upscaler: Upscaler
    view: FrozenModule

    @property
    def model(self) -> nn.Module:
        return self.upscaler.model

    @property
    def scale(self) -> int:
        return self.upscaler.scale

    @property
    def described(self) -> str:
        """Title, device and types, for messages."""
        return f"{self.title} on {self.upscaler.device} in {self.upscaler.types}"


def load_offered(
    given: Sequence[str], device: torch.device, precision: str = "auto", tile: int | None = None
) -> dict[str, Offered]:
    """Load the models of the page by title: the given ones first, then the pretrained ones.

    Args:
        given: files, TITLE=FILE, or folders, which are searched recursively. Files in a folder that are not models are
            skipped with a message on stderr.
        device, precision, tile: as for `andfast.upscale_image`.

    Raises:
        ModelError: a file is not a model, a folder has none, or two models have one title.
        ValueError: a model does not support that precision.
        OSError: a file cannot be read.
    """
    offered: dict[str, Offered] = {}

    def offer(title: str, file: str) -> None:
        title = printable(title)  # for browsers
        if title in offered:
            raise ModelError(f"two models have the title {title}: {offered[title].file} and {file}; give TITLE=FILE")
        model = find_model(file, device).requires_grad_(False)
        deep = precision_for(model, precision, "deep upscaling")
        upscaler = Upscaler(model, precision_for(model, precision), tile, deep=deep)
        view = FrozenModule(model, precision_for(model, precision, "training"))
        offered[title] = Offered(title, file, upscaler, view)

    for text in given:
        if not Path(text).is_dir():
            offer(*split_title(text))
            continue
        before = len(offered)
        for title, path in _in_folder(Path(text)):
            try:
                if path.name in (STATE_FILE, PREVIOUS_FILE):
                    raise ModelError(f"{path}: the state of a run, whose model is beside it")
                offer(title, str(path))
            except ModelError as error:
                logger.warning(f"passed over: {one_line(error)}")
        if len(offered) == before:
            raise ModelError(f"{text}: no models in this folder ({', '.join(SUFFIXES)})")
    for name in pretrained_names():
        if name not in offered:
            offer(name, name)
    if not offered:
        raise ModelError("no model comes with this installation; give one with --model")
    return offered


def _in_folder(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (title, file) of possible models; of files that differ only in their suffix, the first by `SUFFIXES`."""
    found: dict[Path, Path] = {}
    for suffix in SUFFIXES:
        for path in sorted(folder.rglob(f"[!.]*{suffix}")):
            found.setdefault(path.with_suffix(""), path)
    for bare, path in sorted(found.items()):
        place = bare.relative_to(folder)
        if place.name != "model":
            yield place.as_posix(), path
        else:  # all runs name it so: take the folder's name
            yield (title_of(path) if place.parent == Path() else place.parent.as_posix()), path
