"""Upscale images with a trained model: `python -m andfast.upscale INPUT... --output DIR`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jsonargparse import Namespace
from tqdm import tqdm

from andfast.data.listing import skipped_message
from andfast.inference.formats import (
    MAX_PIXELS,
    Picture,
    check_memory,
    losses,
    memory_is_free,
    read_to_upscale,
    write_picture,
)
from andfast.inference.models import find_model, precision_for
from andfast.inference.output_paths import (
    FORMATS,
    OutputPlan,
    is_file_name,
    plan_file,
    plan_outputs,
    record_results,
)
from andfast.inference.pipeline import pipeline
from andfast.inference.tiles import NonFiniteError
from andfast.inference.upscaler import Upscaler
from andfast.models.compilation import CompileTimer
from andfast.pretrained import DEFAULT, describe_pretrained
from andfast.utils.command_line import UsageError, add_upscaling, as_path, failure_line, make_parser, one_line, whole
from andfast.utils.console import console
from andfast.utils.devices import choose_device
from andfast.utils.files import check_name, make_folder
from andfast.utils.formatting import counted
from andfast.utils.memory import is_out_of_memory, keep_freed_memory


def _parse(arguments: Sequence[str] | None) -> Namespace:
    parser = make_parser(
        "andfast.upscale",
        description="Upscale images with a trained model. 16 bits, gray, transparency, colour profiles and EXIF data "
        "are kept where the format can hold them; images are turned upright. More: docs/upscaling.md.",
        epilog="Exit status: 0 if all images are upscaled now, 1 if some could not be, 2 if nothing was begun, 130 "
        "after Ctrl-C.",
    )
    add = parser.add_argument
    add("inputs", nargs="+", type=as_path, metavar="INPUT", help="image, or folder of images (searched recursively)")
    add(
        "--output", required=True, type=as_path, metavar="DIR",
        help="folder for the results; sub-folders are kept, results that are there already are not made again; or, for "
        "one image, its file, such as large.jpg",
    )  # fmt: skip
    add("--overwrite", action="store_true", help="make them again")
    add(
        "--format", choices=(*FORMATS, "same"), default="png",
        help="of the results; same: of each image, PNG for those that are not written (default: %(default)s)",
    )  # fmt: skip
    add(
        "--quality", type=whole(1, 100), default=95, metavar="1..100",
        help="of JPEG, WebP and AVIF (default: %(default)s)",
    )  # fmt: skip
    add(
        "--model", default=DEFAULT, metavar="NAME_OR_FILE",
        help=f"one that comes with andfast ({'; '.join(describe_pretrained()) or 'none here'}), or a file "
        "(.safetensors, .pth, .ckpt ...): RRDBNet and Compact of any program, and with spandrel what it knows "
        "(default: %(default)s)",
    )  # fmt: skip
    add(
        "--output-scale", type=_factor, metavar="FACTOR",
        help="of the results' size to the images'; resized from the model's, with antialiasing (default: the model's)",
    )  # fmt: skip
    add_upscaling(parser, MAX_PIXELS)
    add(
        "--overlap", type=whole(0), metavar="PIXELS",
        help="context around each tile, against seams (default: the receptive field of the model)",
    )  # fmt: skip
    add("--compile", choices=("on", "off"), default="off", help="compile the model first: for many images, on CUDA")
    add(
        "--workers", type=whole(0), default=min(os.cpu_count() or 1, 4), metavar="N",
        help="threads that read images, and as many that write, while the device computes (default: %(default)s)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def _factor(text: str) -> float:
    value = float(text)
    if not 0 < value <= 64:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 64")
    return value


# Images of so few pixels are done before a bar could be read.
_QUICK = 128 * 128


class _Job:
    """The steps of `pipeline` for each image."""

    def __init__(self, upscaler: Upscaler, options: Namespace) -> None:
        self.upscaler, self.options = upscaler, options
        self.factor = options.output_scale or upscaler.scale
        self.first = CompileTimer("the model", options.compile == "on")

    def load(self, item: tuple[Path, Path]) -> Picture:
        check_name(item[1])
        return read_to_upscale(*item, self.factor, self.options.max_pixels)

    def ready(self, item: tuple[Path, Path], picture: Picture) -> bool:
        return memory_is_free(picture, item[1], self.factor)

    def make(self, item: tuple[Path, Path], picture: Picture) -> Picture:
        check_memory(item[0], picture, item[1], self.factor)
        height, width = picture.pixels.shape[:2]
        passes = 2 if picture.pixels.shape[2] in (2, 4) else 1  # alpha is upscaled separately
        total = passes * height * width
        # On terminals, and from the start: what the image needs is measured before its first tile.
        bar = tqdm(
            total=total, desc=item[0].name, unit="pixel", unit_scale=True, leave=False,
            disable=None if total > _QUICK else True,
        )  # fmt: skip
        with bar, self.first():
            return replace(picture, pixels=self.upscaler.pixels(picture.pixels, self.options.output_scale, bar.update))

    def store(self, item: tuple[Path, Path], picture: Picture) -> None:
        source, target = item
        write_picture(target, picture, self.options.quality)
        for note in (*picture.notes, *losses(target, picture)):
            tqdm.write(f"warning: {source}: {note}", file=sys.stderr)


def _prepare(options: Namespace) -> tuple[OutputPlan, Upscaler]:
    """Check the options, load the model and plan the results; raises UsageError."""
    try:
        single = is_file_name(options.output)
        if options.output.exists() and not options.output.is_dir() and not single:
            raise ValueError(f"--output {options.output}: not a folder")
        device = choose_device(options.device)
        model = find_model(options.model, device)
        precision = precision_for(model, options.precision)
        deep = precision_for(model, options.precision, "deep upscaling")
        upscaler = Upscaler(model, precision, options.tile, options.overlap, options.compile == "on", deep)
        factor = options.output_scale or upscaler.scale
        if single:
            work = plan_file(options.inputs, options.output, options.overwrite)
        else:
            work = plan_outputs(options.inputs, options.output, options.format, factor, options.overwrite)
        wanted = _wanted(work, options)
        if wanted:
            make_folder(options.output.parent if single else options.output)
        record_results(work.beside & {target for _, target in wanted}, options.output)
    except (ValueError, OSError) as error:  # among them DataError and ModelError
        raise UsageError(str(error)) from error
    return work, upscaler


def _wanted(work: OutputPlan, options: Namespace) -> list[tuple[Path, Path]]:
    return [item for item in work.pairs if options.overwrite or not os.path.exists(item[1])]


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; `arguments` default to those of the process. Returns the exit status."""
    options = _parse(arguments)
    try:
        work, upscaler = _prepare(options)
    except UsageError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"model {options.model}: x{upscaler.scale}, on {upscaler.device} in {upscaler.types}")
    wanted = _wanted(work, options)

    made = failed = 0
    begin = time.perf_counter()
    job = _Job(upscaler, options)
    interrupted = False
    # Shown on terminals only, and not for a single image.
    with tqdm(total=len(wanted), unit="image", disable=None if len(wanted) > 1 else True) as bar:
        try:
            for (source, _), error in pipeline(wanted, job.load, job.make, job.store, options.workers, job.ready):
                if error is None:
                    made += 1
                else:
                    failed += 1
                    tqdm.write(_failure(source, error, upscaler), file=sys.stderr)
                bar.update()
        except KeyboardInterrupt:
            interrupted = True
    seconds = time.perf_counter() - begin
    done = "restored" if upscaler.scale == 1 else "upscaled"
    parts = [f"{made} of {counted(len(work.pairs), 'image')} {done} to {options.output}"]
    if made:
        parts.append(f"{seconds:.1f} s, {made / seconds:.2g} images/s")
    if len(wanted) < len(work.pairs):
        parts.append(f"{len(work.pairs) - len(wanted)} there already (--overwrite makes them again)")
    if failed:
        parts.append(f"{failed} failed")
    if interrupted:
        parts.append("interrupted: the same command goes on from here")
    if work.passed_over:
        print(skipped_message(work.passed_over), file=sys.stderr)
    print("; ".join(parts))
    # 130 is the convention of shells.
    return 130 if interrupted else 1 if failed else 0


def _failure(source: Path, error: Exception, upscaler: Upscaler) -> str:
    reason = one_line(error)
    if is_out_of_memory(error):
        reason = "out of memory; try a smaller --tile, or fewer --workers"
    if isinstance(error, NonFiniteError) and upscaler.precision != torch.float32:
        reason += f" in {upscaler.types}; try --precision float32"
    return failure_line(source, reason)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
