"""Upscale images with a trained model: `python -m andfast.upscale INPUT... --output DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from andfast.data.images import DataError, list_images, read_image, write_png
from andfast.data.tensors import to_array, to_tensor
from andfast.devices import choose_device, choose_precision
from andfast.models import ModelError, load_model
from andfast.models.weights import SUFFIXES
from andfast.pretrained import DEFAULT, load_pretrained, pretrained_names

# Tiles with their context begin and end at multiples of this, so that a model that moves 2x2 or 4x4 pixels
# into channels groups the pixels of a tile as it groups those of the whole image.
_ALIGN = 4


class UsageError(Exception):
    """The command cannot begin; the message says why in one line."""


class NonFiniteError(ValueError):
    """The model's output holds NaN or infinity."""


def upscale_tensor(model: nn.Module, image: Tensor, tile: int = 256, overlap: int = 16) -> Tensor:
    """Upscale an image of any size tile by tile.

    Every tile is computed together with `overlap` more pixels of the image around it, and of the result only
    the tile is kept. Where `overlap` is at least the reach of the model's receptive field (18 pixels for a
    default Compact), the result equals that of the whole image at once up to rounding. What is computed at
    once is at most tile + 2 * overlap + 6 pixels high and wide.

    Args:
        model: has `scale` and maps (B, 3, h, w) to (B, 3, scale * h, scale * w).
        image: float (B, 3, H, W) in [0, 1], on any device; tiles move to the model's one by one.
        tile: height and width of a tile in pixels of the input; 0 takes the image whole.
        overlap: context on each side of a tile, in pixels of the input.

    Returns:
        float32 (B, 3, scale * H, scale * W), not clipped, on the device of `image`.

    Raises:
        ValueError: `tile` or `overlap` is negative, or the image is empty or of another shape.
        NonFiniteError: the model's output holds NaN or infinity.
    """
    height, width = image.shape[-2:]
    result = torch.empty(
        *image.shape[:-2], model.scale * height, model.scale * width, dtype=torch.float32, device=image.device
    )
    for rows, columns, part in upscaled_tiles(model, image, tile, overlap):
        result[..., rows, columns] = part.to(result)
    return result


def upscaled_tiles(
    model: nn.Module, image: Tensor, tile: int = 256, overlap: int = 16
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Like `upscale_tensor`, but yields its parts: (rows, columns, result[..., rows, columns]).

    Nothing of the size of the result is allocated.
    """
    if tile < 0 or overlap < 0:
        raise ValueError(f"tile and overlap must not be negative, as {tile} and {overlap}")
    if image.ndim != 4 or image.numel() == 0:
        raise ValueError(f"an image batch is (B, 3, H, W) and not empty, not {tuple(image.shape)}")
    parameter = next(model.parameters())
    height, width = image.shape[-2:]
    for top, bottom, above, below in _spans(height, tile, overlap):
        for left, right, before, behind in _spans(width, tile, overlap):
            patch = image[..., above:below, before:behind].to(parameter.device, parameter.dtype)
            with torch.inference_mode():
                large = model(patch.contiguous(memory_format=torch.channels_last)).float()
            if not large.isfinite().all():
                raise NonFiniteError("the model's output is not finite")
            rows, columns = _scaled(top, bottom, model.scale), _scaled(left, right, model.scale)
            inner_rows = _scaled(top - above, bottom - above, model.scale)
            inner_columns = _scaled(left - before, right - before, model.scale)
            yield rows, columns, large[..., inner_rows, inner_columns]


def _spans(size: int, tile: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Cut `size` pixels into tiles: (begin, end, begin with context, end with context) of each."""
    step = tile or size
    spans = []
    for begin in range(0, size, step):
        end = min(begin + step, size)
        context_begin = max(begin - overlap, 0) // _ALIGN * _ALIGN
        context_end = min(-(-(end + overlap) // _ALIGN) * _ALIGN, size)
        spans.append((begin, end, context_begin, context_end))
    return spans


def _scaled(begin: int, end: int, factor: int) -> slice:
    return slice(begin * factor, end * factor)


def find_work(inputs: Sequence[Path], output: Path) -> list[tuple[Path, Path]]:
    """Which image goes where: (source, destination) pairs, each once, in the order of `inputs`.

    A file goes to `output`/NAME.png; the images of a folder and below it keep their sub-folders. Where
    `output` is itself inside an input folder, the images in it are passed over: they are earlier results.

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
            pairs = [(path, output / path.relative_to(given).with_suffix(".png")) for path in found]
        elif given.exists():
            pairs = [(given, output / f"{given.stem}.png")]
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


def upscale_array(
    model: nn.Module,
    image: np.ndarray,
    tile: int = 256,
    overlap: int = 16,
    precision: torch.dtype = torch.float32,
) -> np.ndarray:
    """Upscale an 8-bit image: uint8 (H, W, 3) -> uint8 (scale * H, scale * W, 3), rounded and clipped.

    Like `upscale_tensor`, under autocast where `precision` is not float32; the whole result never exists in
    floating point.
    """
    device = next(model.parameters()).device
    pixels = to_tensor(image)
    result = np.empty((image.shape[0] * model.scale, image.shape[1] * model.scale, 3), np.uint8)
    tiles = len(_spans(image.shape[0], tile, overlap)) * len(_spans(image.shape[1], tile, overlap))
    reduced = torch.autocast(device.type, precision) if precision != torch.float32 else nullcontext()
    with reduced, _bar(tiles, "tile", leave=False) as bar:
        for rows, columns, part in upscaled_tiles(model, pixels, tile, overlap):
            result[rows, columns] = to_array(part)
            bar.update()
    return result


def _bar(total: int, unit: str, leave: bool) -> tqdm:
    # None: shown on terminals only. One step needs no bar.
    return tqdm(total=total, unit=unit, leave=leave, disable=None if total > 1 else True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m andfast.upscale",
        description="Upscale images with a trained model. The results are PNG files, 8-bit RGB and upright: "
        "the EXIF orientation is applied, gray and palette images become RGB, 16-bit values are scaled to "
        "8 bits, and transparent pixels are laid over white.",
        epilog="Exit status: 0 if all images were upscaled, 1 if some could not be, 2 if nothing was begun.",
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="image, or folder of images")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR",
        help="folder for the results, NAME.png each; sub-folders are kept, existing results replaced",
    )  # fmt: skip
    parser.add_argument(
        "--model", default=DEFAULT, metavar="NAME_OR_FILE",
        help=f"one that comes with andfast ({', '.join(pretrained_names()) or 'none here'}), or a file with an RRDBNet "
        "or Compact: .safetensors, .pth or .pt (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--tile", type=int, default=256, metavar="PIXELS",
        help="compute in squares of this size, to bound the memory; 0: all at once (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--overlap", type=int, default=16, metavar="PIXELS",
        help="how much of its surroundings each tile sees, against seams (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one"
    )
    parser.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
        help="auto: float16 on CUDA, on CPUs bfloat16 where they have it in hardware, else float32",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.tile < 0 or options.overlap < 0:
        parser.error("--tile and --overlap must not be negative")
    return options


def find_model(name_or_file: str, device: str | torch.device = "cpu") -> nn.Module:
    """The pretrained model of that name, or the one in that file, which names never clash with: files have a suffix.

    Raises:
        ModelError: there is neither, or the file is no model.
        OSError: it cannot be read.
    """
    if name_or_file in pretrained_names():
        return load_pretrained(name_or_file, device)
    if not Path(name_or_file).exists():
        raise ModelError(
            f"{name_or_file}: no such file ({', '.join(SUFFIXES)}), nor a pretrained model; "
            f"those are {', '.join(pretrained_names()) or 'none'}"
        )
    return load_model(name_or_file, device)


def _prepare(options: argparse.Namespace) -> tuple[list[tuple[Path, Path]], nn.Module]:
    """All that can go wrong before the first image; raises UsageError."""
    if options.output.exists() and not options.output.is_dir():
        raise UsageError(f"--output {options.output}: not a folder")
    try:
        device = choose_device(options.device)
        work = find_work(options.inputs, options.output)
        model = find_model(options.model, device).to(memory_format=torch.channels_last)
        options.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:  # among them DataError and ModelError
        raise UsageError(str(error)) from error
    return work, model


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; `arguments` default to those of the process. Returns the exit status."""
    options = _parse(arguments)
    try:
        work, model = _prepare(options)
    except UsageError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    device = next(model.parameters()).device
    precision = choose_precision(options.precision, device)
    print(f"model {options.model}: x{model.scale}, on {device} in {str(precision).removeprefix('torch.')}")

    failed = 0
    with _bar(len(work), "image", leave=True) as bar:
        for source, target in work:
            try:
                image = read_image(source)
                large = upscale_array(model, image, options.tile, options.overlap, precision)
                write_png(target, large)
            except (DataError, NonFiniteError, OSError, MemoryError, RuntimeError) as error:
                failed += 1
                tqdm.write(_failure(source, error, precision), file=sys.stderr)
            bar.update()
    print(f"{len(work) - failed} of {len(work)} images upscaled to {options.output}", end="")
    print(f", {failed} failed" if failed else "")
    return 1 if failed else 0


def _failure(source: Path, error: Exception, precision: torch.dtype) -> str:
    reason = _one_line(error)
    # The CPU's allocator raises a plain RuntimeError.
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate" in reason:
        reason = "out of memory; try a smaller --tile"
    if isinstance(error, NonFiniteError) and precision != torch.float32:
        reason += f" in {precision}; try --precision float32"
    return f"failed: {reason}" if str(source) in reason else f"failed: {source}: {reason}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
