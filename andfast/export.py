"""Write a trained model for other programs: `python -m andfast.export MODEL --output FILE...`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from andfast.inference.models import find_model
from andfast.models import ModelError, save_model
from andfast.models.foreign import ForeignModel
from andfast.models.generators import describe_model
from andfast.models.onnx_files import check_packages, least_size, load_onnx, write_onnx
from andfast.models.own_models import OwnModel, load_own
from andfast.models.weights import READABLE, SUFFIXES, portable, read_weights
from andfast.ops import use_backend
from andfast.pretrained import find_file, pretrained_names
from andfast.utils.command_line import as_path, failure_line, make_parser
from andfast.utils.console import console
from andfast.utils.files import written_whole
from andfast.utils.formatting import dtype_name

ONNX = ".onnx"

# The largest difference between a file's results and the model's, relative to the largest value.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02}
# Metadata that is not copied, as the writer records it itself.
_OWN = ("architecture", "scale", "andfast", "activation", "options")


class ExportError(ValueError):
    """A file could not be exported; the message says why."""


def export(model: nn.Module, path: Path, metadata: dict[str, str], dtype: torch.dtype = torch.float32) -> float:
    """Write a generator to a file, and compare the file's results with the model's before it takes its place.

    Args:
        model: an `RRDBNet` or a `Compact` with float32 weights on the CPU.
        path: a `.safetensors`, `.pth`, `.pt` or `.onnx` file.
        metadata: recorded in the file.
        dtype: of the weights, float32 or float16; also of the images of an ONNX file.

    Returns:
        The largest difference between the file's results and the model's, for images in [0, 1].

    Raises:
        ExportError: weights overflow the type, a package for ONNX is missing, or the file is refused or gives other
            results than the model. Then nothing is written.
        OSError: the file cannot be written.
    """
    model.eval()
    if not all(weight.isfinite().all() for weight in portable(model, dtype).values()):
        raise ExportError(f"weights are no finite numbers in {dtype_name(dtype)}")
    with written_whole(path) as temporary:
        try:
            return _compare(_write(model, temporary, metadata, dtype), model, dtype)
        except ModelError as error:  # its message names the temporary file
            raise ExportError(str(error).replace(str(temporary), str(path))) from error


def _write(model: nn.Module, path: Path, metadata: dict[str, str], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Write a file and load it again."""
    if path.suffix.lower() == ONNX:
        write_onnx(model, path, describe_model(model, metadata), dtype)
        return load_onnx(path)
    save_model(model, path, metadata, dtype)
    return load_own(path, model.architecture) if isinstance(model, OwnModel) else find_model(str(path))


@torch.no_grad()
def _compare(reloaded: Callable[[Tensor], Tensor], model: nn.Module, dtype: torch.dtype) -> float:
    """The largest difference between the results of two generators for several sizes, also odd ones."""
    random = torch.Generator().manual_seed(0)
    least = least_size(model)
    worst = 0.0
    # Some architectures take single images alone.
    several = 1 if isinstance(model, ForeignModel) else 2
    for batch, height, width in ((1, 24, 24), (several, 13, 18), (1, 7, least)):
        image = torch.rand(batch, 3, height, width, generator=random)
        with use_backend("reference"):
            expected, found = model(image), reloaded(image)
        if found.shape != expected.shape:
            raise ExportError(f"it makes {tuple(found.shape)} where the model makes {tuple(expected.shape)}")
        difference = (found - expected).abs().max().item()
        allowed = _TOLERANCE[dtype] * max(1.0, expected.abs().max().item())
        if not difference <= allowed:  # also for NaN
            raise ExportError(f"its results differ from the model's by {difference:g}; {allowed:g} would be rounding")
        worst = max(worst, difference)
    return worst


def _parse(arguments: Sequence[str] | None) -> Namespace:
    parser = make_parser(
        "andfast.export",
        description="Write a trained model for other programs: .safetensors or .pth for ComfyUI and spandrel, .pth for "
        "chaiNNer and Real-ESRGAN, .onnx for onnxruntime and what is built on it. Each file is loaded "
        "again and compared with the model before it takes its place; what was there before is replaced.",
        epilog="Exit status: 0 if all files were written, 1 if some could not be, 2 if nothing was begun.",
    )
    parser.add_argument(
        "model", metavar="MODEL",
        help=f"one that comes with andfast ({', '.join(pretrained_names()) or 'none here'}), or a file with an RRDBNet "
        f"or Compact, or with spandrel what it knows: {', '.join(READABLE)}",
    )  # fmt: skip
    parser.add_argument(
        "--output", required=True, nargs="+", type=as_path, metavar="FILE",
        help=f"what to write; the suffix is the format: {', '.join((*SUFFIXES, ONNX))}",
    )  # fmt: skip
    parser.add_argument(
        "--half", action="store_true",
        help="round the weights to float16: files of half the size; an .onnx file then takes and makes float16, too",
    )  # fmt: skip
    return parser.parse_args(arguments)


def _check(outputs: Sequence[Path], source: Path) -> None:
    """Raise a ValueError if a file cannot be written: a wrong or repeated path, or a missing package."""
    for path in outputs:
        if path.suffix.lower() not in (*SUFFIXES, ONNX):
            raise ValueError(f"--output {path}: a file ends in {', '.join(SUFFIXES)} or {ONNX}")
        if path.is_dir():
            raise ValueError(f"--output {path}: a folder; give a file")
        if path.resolve() == source.resolve():
            raise ValueError(f"--output {path} is the model itself and would be overwritten; choose another name")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise ValueError("--output names a file twice")
    if any(path.suffix.lower() == ONNX for path in outputs):
        check_packages()


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; `arguments` default to those of the process. Returns the exit status."""
    options = _parse(arguments)
    dtype = torch.float16 if options.half else torch.float32
    try:
        source = find_file(options.model)
        _check(options.output, source)
        model = find_model(options.model)
        metadata = {key: value for key, value in read_weights(source)[1].items() if key not in _OWN}
    except (ValueError, OSError) as error:  # among them ModelError
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = 0
    for path in options.output:
        try:
            difference = export(model, path, metadata, dtype)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            failed += 1
            reason = str(error).partition("\n")[0] or type(error).__name__
            print(failure_line(path, reason), file=sys.stderr)
        else:
            print(f"{path}: {dtype_name(dtype)}, {path.stat().st_size / 1e6:.1f} MB, {_describe(difference)}")
    return 1 if failed else 0


def _describe(difference: float) -> str:
    if difference == 0:
        return "loaded again: the same results"
    digits = 1 - math.floor(math.log10(255 * difference))
    return f"loaded again: results differ by at most {difference:.1e} ({255 * difference:.{max(digits, 0)}f} of 255)"


if __name__ == "__main__":
    sys.exit(main())
