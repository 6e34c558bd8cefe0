"""Which image goes where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from andfast.command_line import UsageError
from andfast.data.listing import list_images

#: What `--format` takes, and the suffix that it stands for.
FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}


def find_work(inputs: Sequence[Path], output: Path, kind: str = "png") -> list[tuple[Path, Path]]:
    """Which image goes where: (source, destination) pairs, each once, in the order of `inputs`.

    A file goes to `output`/NAME with the format's suffix; the images of a folder and below it keep their sub-folders.
    Where `output` is itself inside an input folder, the images in it are passed over: they are earlier results.

    Args:
        inputs: files and folders.
        output: a folder.
        kind: a key of `FORMATS`, or "same": that of each image, PNG for those of BMP and PPM.

    Raises:
        UsageError: an input does not exist, a folder holds no image, two images would be written to one file,
            or one would overwrite an input.
    """
    sources: dict[Path, Path] = {}  # by destination
    inside = output.resolve()
    for given in inputs:
        if given.is_dir():
            found = list_images(given)
            if inside != given.resolve():
                found = [path for path in found if inside not in path.resolve().parents]
            if not found:
                raise UsageError(f"{given}: no images in this folder")
            pairs = [(path, output / path.relative_to(given).with_suffix(_suffix(path, kind))) for path in found]
        elif given.exists():
            pairs = [(given, output / f"{given.stem}{_suffix(given, kind)}")]
        else:
            raise UsageError(f"{given}: no such file or folder")
        for source, target in pairs:
            other = sources.setdefault(target, source)
            if other.resolve() != source.resolve():
                raise UsageError(f"{other} and {source} would both be written to {target}; rename one")
    originals = {source.resolve(): source for source in sources.values()}
    for target in sources:
        if target.resolve() in originals:
            raise UsageError(f"{target} is an input and would be overwritten; choose another --output")
    return [(source, target) for target, source in sources.items()]


def _suffix(path: Path, kind: str) -> str:
    if kind != "same":
        return FORMATS[kind]
    return path.suffix if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp") else ".png"
