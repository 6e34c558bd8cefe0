"""Study the prior beside real cameras: `python -m studies.calibration --model FILE --data.hr DIR... --pairs DIR...`.

Measures how cameras degrade images, what each group of the degradation network's parameters does to them, and
how the two overlap. Writes all numbers to a JSON file, and the figures of docs/calibration.md; prints its tables. Reads
only the tuning part of the pairs.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from tqdm import tqdm

from andfast.attack import Lens
from andfast.data.images import DataError
from andfast.data.pairs import find_pairs, read_pair
from andfast.data.tensors import to_tensor
from andfast.losses import l1_objective
from andfast.metrics import psnr
from andfast.models import load_model
from andfast.ops.blur_pool import blur_pool
from andfast.ops.theta_layout import ScaleFactors
from andfast.training.images import Skipped, training_sources
from andfast.utils import command_line
from andfast.utils.charts import require_matplotlib
from andfast.utils.command_line import as_path
from andfast.utils.console import console
from andfast.utils.files import write_text
from andfast.utils.formatting import to_json
from andfast.utils.memory import keep_freed_memory
from bench.record import now, origin
from studies import calibration_report
from studies.camera_kernels import Kernel, KernelFit, inside, pooling_kernel
from studies.measures import FREQUENCIES, Measures, measure
from studies.prior import GROUPS, Case, Mixture, PriorResult, cases, run
from studies.testsets import camera_of, split_pairs

SCALE = 4
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
#: The measures that adversaries and cameras are compared by. (PSNR itself is set by the budget.)
COMPARED = (
    "dc_share",
    "gain",
    "response_half",
    "response_full",
    "residual_psnr",
    "tone_share",
    "neighbour_correlation",
    "colour_correlation",
    "gradient_correlation",
    "flat_noise",
)
DEFAULT = Mixture("default")
#: The scale factors of configs/andnet_compact_x4.yaml: noise is twice as cheap as by default.
TRAINED = Mixture("trained", ScaleFactors(noise=0.5))
#: The ranges of budgets that the mixtures are trained with; the second one of `TRAINED` is for use behind the lens.
RANGES = {"default": [(22.0, 36.0)], "trained": [(24.0, 40.0), (34.0, 50.0)]}
LENS = Lens()


def make_parser() -> ArgumentParser:
    """The command line of `python -m studies.calibration`."""
    parser = command_line.make_parser("studies.calibration", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--model", required=True, metavar="FILE", help="the x4 generator that the adversary attacks")
    add("--data.hr", nargs="+", required=True, metavar="DIR", help="photographs that are degraded")
    add("--pairs", nargs="+", required=True, metavar="DIR", help="camera-captured x4 pairs, HR/ and LR/ in each")
    add("--output", type=as_path, required=True, metavar="FILE", help="the JSON file")
    add("--figures", type=as_path, required=True, metavar="DIR", help="where the figures are written")
    add("--images", type=int, default=16, help="crops that are degraded; a multiple of --batch")
    add("--batch", type=int, default=4, help="crops an attack")
    add("--size", type=int, default=128, help="height and width of the HR crops, of cameras and prior alike")
    add("--at_most", type=int, default=None, metavar="N", help="pairs to read of each folder's tuning part; none: all")
    add("--budgets", type=float, nargs="+", default=[24.0, 28.0, 32.0, 36.0], help="LR-PSNR in dB")
    add("--middle", type=float, default=28.0, help="the budget at which everything else is compared")
    add("--channels", type=int, nargs=2, default=[16, 64], help="of the narrow F and of the wide one")
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="2 crops of 64, one budget, 2 pairs a folder, 6 and 12 channels: seconds")
    return parser


@console()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; returns its exit status: 0 done, 2 the options or files do not fit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.quick:
        options.images, options.batch, options.size = 2, 2, 64
        options.budgets, options.at_most, options.channels = [options.middle], 2, [6, 12]
    if options.size % SCALE or options.size < 16 * SCALE:
        parser.error(f"--size is {options.size}; it must be a multiple of {SCALE}, and at least {16 * SCALE}")
    if options.batch < 1 or options.images < 1 or options.images % options.batch:
        parser.error(f"--images is {options.images}; it must be a multiple of --batch, {options.batch}")
    if options.middle not in options.budgets:
        parser.error(f"--middle is {options.middle:g}; it must be one of --budgets")
    keep_freed_memory()
    try:
        require_matplotlib()
        generator = load_model(options.model).eval().requires_grad_(False)
        if generator.scale != SCALE:
            raise ValueError(f"{options.model}: a model for x{generator.scale}; the study is about x{SCALE}")
        hr = photographs(options.data.hr, options.images, options.size)
        taken = camera_images(options.pairs, options.at_most)
    except (ValueError, OSError) as error:  # among them ChartError, DataError and ModelError
        print(f"error: {error}", file=sys.stderr)
        return 2
    made = origin("studies.calibration", arguments)  # now: the commit may change while the study runs
    samples = {camera: camera_crops(pairs, options.size) for camera, pairs in taken.items()}
    ranges = common_ranges(samples)
    mixtures, smaller = [*GROUPS, DEFAULT, TRAINED], [options.size // 2]
    work = cases(mixtures, options.budgets, options.middle, RANGES, smaller, options.channels, LENS, TRAINED)
    objective = l1_objective(generator)
    prior = []
    for case in tqdm(work, unit="case", dynamic_ncols=True, disable=None):
        found = run(case, hr, objective, options.batch, options.seed)
        prior.append(describe(case) | findings(found) | {"inside": share_inside(found.measures, ranges)})
    record = {
        **made,
        "date": now(),
        "settings": {name: getattr(options, name) for name in ("images", "batch", "size", "budgets", "middle", "seed")},
        "quantiles": QUANTILES,
        "frequencies": FREQUENCIES,
        "ranges": ranges,
        "pooling": kernel_record(pooling_kernel(SCALE)),
        "cameras": {
            camera: camera_record(pairs, samples[camera], hr) | {"inside": share_inside(samples[camera], ranges)}
            for camera, pairs in taken.items()
        },
        "prior": prior,
    }
    write_text(options.output, json.dumps(to_json(record, digits=5), indent=1, allow_nan=False) + "\n")
    calibration_report.main([str(options.output), "--figures", str(options.figures)])
    return 0


def photographs(folders: Sequence[str], count: int, size: int) -> Tensor:
    """Crops of the middles, (count, 3, size, size), of images spread evenly over the folders.

    Raises:
        DataError: too few images are large enough.
    """
    sources = training_sources(folders, size, Skipped())
    if len(sources) < count:
        raise DataError(f"{', '.join(folders)}: {len(sources)} images of at least {size} x {size}; {count} are needed")
    crops = []
    for index in range(count):
        image = sources[index * len(sources) // count].read()
        y, x = ((side - size) // 2 for side in image.shape[:2])
        crops.append(to_tensor(image[y : y + size, x : x + size]))
    return torch.cat(crops)


def camera_images(folders: Sequence[str], at_most: int | None) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """(HR, LR) of the tuning pairs, `at_most` of each folder, by camera.

    Raises:
        DataError: a folder does not hold pairs.
    """
    found = defaultdict(list)
    for folder in folders:
        tuning, _ = split_pairs(find_pairs(folder, SCALE))
        for pair in tuning[:at_most]:
            hr, lr = (to_tensor(image)[0] for image in read_pair(pair.hr, pair.lr, SCALE))
            found[camera_of(pair.name)].append((hr, lr))
    return dict(found)


def camera_crops(pairs: Sequence[tuple[Tensor, Tensor]], size: int) -> list[Measures]:
    """Measures of all crops of `size` side by side, but for those of a single colour, which have no kernel."""
    found, low = [], size // SCALE
    for hr, lr in pairs:
        for y in range(0, lr.shape[1] - low + 1, low):
            for x in range(0, lr.shape[2] - low + 1, low):
                part = hr[:, SCALE * y : SCALE * y + size, SCALE * x : SCALE * x + size]
                if part.std() > 1 / 255:
                    found.append(measure(part, lr[:, y : y + low, x : x + low]))
    return found


def camera_record(
    pairs: Sequence[tuple[Tensor, Tensor]], crops: Sequence[Measures], photographs: Tensor
) -> dict[str, Any]:
    """A camera's measures of whole images and of crops, its kernel, and that kernel's effect on sharp photographs."""
    fit = KernelFit(SCALE)
    for hr, lr in pairs:
        fit.add(hr, lr)
    kernel = fit.solve()
    wide = photographs.double()
    clean = inside(blur_pool(wide, SCALE), SCALE)
    blurred = [psnr(kernel(hr), lr).item() for hr, lr in zip(wide, clean, strict=True)]
    return {
        "images": len(pairs),
        "crops": len(crops),
        "kernel": kernel_record(kernel),
        "kernel_on_photographs": np.quantile(blurred, QUANTILES).tolist(),
        "whole": statistics([measure(hr, lr) for hr, lr in pairs]),
        "measures": statistics(crops),
    }


def kernel_record(kernel: Kernel) -> dict[str, Any]:
    return {
        "gain": kernel.gain,
        "offset": kernel.offset,
        "shift": kernel.shift,
        "width": kernel.width,
        "profile": kernel.profile.tolist(),
        "response": [kernel.response(frequency) for frequency in FREQUENCIES],
    }


def common_ranges(samples: dict[str, list[Measures]]) -> dict[str, list[float]]:
    """The 10 and 90% quantiles of all cameras' crops by measure; each camera has the same weight."""
    weights = np.concatenate([np.full(len(crops), 1 / len(crops)) for crops in samples.values()])
    ranges = {}
    for name in COMPARED:
        values = np.array([getattr(each, name) for crops in samples.values() for each in crops])
        order = values.argsort()
        reached = weights[order].cumsum() / weights.sum()
        ranges[name] = [float(values[order][np.searchsorted(reached, edge)]) for edge in (0.1, 0.9)]
    return ranges


def share_inside(measures: Sequence[Measures], ranges: dict[str, list[float]]) -> dict[str, float]:
    """The share of samples within the cameras' range, by measure."""
    return {
        name: float(np.mean([low <= getattr(each, name) <= high for each in measures]))
        for name, (low, high) in ranges.items()
    }


def statistics(measures: Sequence[Measures]) -> dict[str, list[float]]:
    """`QUANTILES` by measure; of measures with several values, the median of each."""
    found = {}
    for name in Measures.__dataclass_fields__:
        values = np.array([getattr(each, name) for each in measures])
        found[name] = np.quantile(values, QUANTILES if values.ndim == 1 else 0.5, axis=0).tolist()
    return found


def describe(case: Case) -> dict[str, Any]:
    return {
        "name": case.mixture.name,
        "factors": vars(case.mixture.factors),
        "noise": case.mixture.noise,
        "method": case.method,
        "lr_psnr": case.lr_psnr,
        "channels": case.channels,
        "per_image": case.per_image,
        "size": case.size,
        "lens": case.lens and vars(case.lens),
    }


def findings(found: PriorResult) -> dict[str, Any]:
    """Means and medians of a case; the identity has no distance and no shares."""
    return {
        "loss_ratio": float(np.mean(found.loss_ratio)),
        "distance": float(np.median(found.distance)) if found.distance else 0.0,
        "shares": {group: float(np.median(values)) for group, values in found.shares.items() if values},
        "measures": statistics(found.measures),
    }


if __name__ == "__main__":
    sys.exit(main())
