"""How training scales to 8, 64 and 512 GPUs, by calculation: `python -m bench.scaling [--output FILE]`.

Nothing is measured. What the networks hold and compute is counted (`bench.counts`), what machines do is assumed
(`Assumptions`), and how long messages take follows (`bench.allreduce`). Prints the tables of docs/scaling.md; with
--output also writes them all as numbers, with the assumptions.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from andfast.attack.budget import SHRINK_TRIES
from andfast.evaluation.environment import commit, machine
from andfast.utils.console import console
from andfast.utils.files import write_text
from bench.allreduce import Network, all_reduce, exposed, reduced
from bench.counts import PATCH, SCALE, Counts, count

GPUS = (8, 64, 512)
STRONG = (1, 8, 16, 24, 48)
#: The steps that are compared: ESRGAN's loss is L1, VGG and a discriminator, for which its own is taken.
PLAIN, ANDNET, ANDGAN = "plain", "ANDNet", "ANDGAN"
DISCRIMINATOR = "D vgg"
_FLOAT = 4


@dataclass(frozen=True)
class Assumptions:
    """What is taken as given. Bytes and seconds, all of one GPU where nothing else is said.

    Attributes:
        batch, steps, save_every: of configs/andnet_x4.yaml.
        images: on each GPU where the batch grows with the GPUs.
        peak: floating-point operations a second of a large matrix product in half types (H200).
        share: of that, what a training step sustains.
        multiprocessors, tile: those of an H100 or H200, and the pixels for which one computes a convolution at a time.
        machine: GPUs of a machine.
        nvlink, network, slow_network: what links carry in a direction: NVLink; 400 Gb/s for each GPU; 100 Gb/s
            for a whole machine.
        link_share: what of that an all-reduce gets.
        nvlink_hop, network_hop, gloo_hop: a message's way to the next GPU, GPU of another machine, process.
        normals: normal numbers drawn a second.
        image: a 2K image, decoded.
        disk: written a second.
        failure_hours: GPU hours for each interruption.
        copies: of a row of theta, at most at once: the identity, the bank's own deviation (zero), the attack's before
            and after a step, its gradient, the worst so far.
    """

    batch: int = 48
    steps: int = 5
    save_every: int = 1000
    images: int = 6
    peak: float = 790e12
    share: float = 0.35
    multiprocessors: int = 132
    tile: int = 128
    machine: int = 8
    nvlink: float = 450e9
    network: float = 50e9
    slow_network: float = 12.5e9 / 8
    link_share: float = 0.8
    nvlink_hop: float = 4e-6
    network_hop: float = 20e-6
    gloo_hop: float = 30e-6
    normals: float = 50e9
    image: float = 9e6
    disk: float = 2e9
    failure_hours: float = 54 * 24 * 16384 / 419
    copies: int = 6

    def networks(self) -> dict[str, Network]:
        """By name: between machines fast and slow."""
        inside = self.link_share * self.nvlink
        return {
            name: Network(self.machine, inside, self.link_share * rate, self.nvlink_hop, self.network_hop)
            for name, rate in (("400 Gb/s a GPU", self.network), ("100 Gb/s a machine", self.slow_network))
        }


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        macs: multiply-adds for an image.
        reductions: what is reduced over the GPUs: bytes, and the multiply-adds for an image of the backward pass
            that they come from.
    """

    macs: int
    reductions: list[tuple[int, int]]

    def seconds(self, images: float, rate: float) -> float:
        """Of computation, at so many floating-point operations a second."""
        return images * 2 * self.macs / rate

    def waits(self, images: float, rate: float, gpus: int, network: Network) -> float:
        """Seconds that the all-reduces last beyond the backward passes that they hide behind."""
        return sum(exposed(size, gpus, network, images * 2 * macs / rate) for size, macs in self.reductions)


def make_steps(counts: Counts, steps: int) -> dict[str, Step]:
    """The compared steps, in passes: forward 1, the gradient of the input 1, that of the weights (F: theta) 1 more.

    The attack passes through F and the objective forward once for each step and once at last, and back each time; no
    try for the LR-PSNR budget is refused. The discriminator is updated on restored and on HR images, which are there.
    """
    generator, degradation, judge = counts.macs["G"], counts.macs["F"], counts.macs[DISCRIMINATOR]
    perceptual = counts.macs["VGG19"]
    size, judge_size = (_FLOAT * counts.parameters[name] for name in ("G", DISCRIMINATOR))
    forward_and_back = 2 * steps + 1
    attack = forward_and_back * generator + (3 * steps + 1) * degradation
    andnet = attack + 3 * generator
    # The attack's passes, the update's two, the features of HR images once a step; the discriminator's own update.
    looks = (forward_and_back + 2) * (perceptual + judge) + perceptual + 2 * 3 * judge
    reduction = (size, 2 * generator)
    return {
        PLAIN: Step(3 * generator, [reduction]),
        ANDNET: Step(andnet, [reduction]),
        ANDGAN: Step(andnet + looks, [reduction, (judge_size, 2 * 2 * judge)]),
    }


def busy(images: int, given: Assumptions) -> float:
    """The share of the multiprocessors' time in which those that G's convolutions on LR images occupy have a tile."""
    tiles = math.ceil(images * (PATCH // SCALE) ** 2 / given.tile)
    return tiles / (given.multiprocessors * math.ceil(tiles / given.multiprocessors))


def calculate(counts: Counts, given: Assumptions) -> dict[str, Any]:
    """All numbers of the page."""
    steps, networks = make_steps(counts, given.steps), given.networks()
    rate = given.share * given.peak
    fast = next(iter(networks.values()))
    return {
        "steps": {
            name: {
                "macs": step.macs,
                "reduced_bytes": sum(size for size, _ in step.reductions),
                "seconds": step.seconds(given.images, rate),
                "seconds_at_peak": step.seconds(given.images, given.peak),
            }
            for name, step in steps.items()
        },
        "weak": [
            _weak(steps, given, gpus, name, network)
            for gpus in GPUS
            for name, network in networks.items()
            if gpus > given.machine or network is fast
        ],
        "strong": [_strong(steps[ANDNET], given, gpus, fast) for gpus in STRONG],
        "growth": [_growth(counts, steps[ANDNET], given, gpus, fast) for gpus in GPUS],
        "one_gpu": _one_gpu(counts, steps[ANDNET], given),
    }


def _weak(steps: dict[str, Step], given: Assumptions, gpus: int, name: str, network: Network) -> dict[str, Any]:
    row: dict[str, Any] = {"gpus": gpus, "images": gpus * given.images, "network": name}
    for kind, step in steps.items():
        whole = sum(reduced(size, gpus, network) for size, _ in step.reductions)
        row[kind] = {"reduce_seconds": whole}
        for suffix, rate in (("", given.share * given.peak), ("_at_peak", given.peak)):
            seconds, waits = step.seconds(given.images, rate), step.waits(given.images, rate, gpus, network)
            row[kind][f"share_bare{suffix}"] = whole / (seconds + whole)
            row[kind][f"share{suffix}"] = waits / (seconds + waits)
    return row


def _strong(step: Step, given: Assumptions, gpus: int, network: Network) -> dict[str, Any]:
    images, rate = given.batch // gpus, given.share * given.peak
    alone = step.seconds(given.batch, rate)
    tiles = busy(images, given) / busy(given.batch, given)
    times = [
        step.seconds(images, now) + (step.waits(images, now, gpus, network) if gpus > 1 else 0)
        for now in (rate, rate * tiles)
    ]
    return {
        "gpus": gpus,
        "images": images,
        "seconds": times[0],
        "speed_up": alone / times[0],
        "busy": busy(images, given),
        "speed_up_in_tiles": alone / times[1],
    }


def _growth(counts: Counts, step: Step, given: Assumptions, gpus: int, network: Network) -> dict[str, Any]:
    images = gpus * given.images
    seconds = step.seconds(given.images, given.share * given.peak)
    centres, starts = images * counts.centres, images * counts.parameters["F"]
    return {
        "gpus": gpus,
        "images": images,
        "images_per_second": images / seconds,
        "centres": centres,
        "centres_bytes": _FLOAT * centres,
        "centres_share": centres / given.normals / seconds,
        "starts_bytes": _FLOAT * starts,
        "starts_share": starts / given.normals / seconds,
        # One number goes round the ring of processes twice.
        "gloo_seconds": 2 * (gpus - 1) * given.gloo_hop,
        "metrics_seconds": all_reduce(12 * _FLOAT, gpus, network),
        "failure_hours": given.failure_hours / gpus,
    }


def _one_gpu(counts: Counts, step: Step, given: Assumptions) -> dict[str, Any]:
    seconds = step.seconds(given.images, given.share * given.peak)
    weights = _FLOAT * counts.parameters["G"]
    patches = given.images / seconds
    return {
        "patch_bytes": 3 * PATCH**2,
        "patches_per_second": patches,
        "patch_bytes_per_second": patches * 3 * PATCH**2,
        "decoded_bytes_per_second": patches * given.image,
        "theta_bytes": _FLOAT * counts.parameters["F"],
        "theta_copies_bytes": given.copies * _FLOAT * counts.parameters["F"],
        "state_bytes": 5 * weights,
        # The state, and the average twice: as .safetensors and as .pth.
        "save_seconds": 7 * weights / given.disk,
        "save_share": 7 * weights / given.disk / (given.save_every * seconds),
        "lost_seconds": given.save_every * seconds,
        "try_share": counts.macs["F"] / step.macs,
        # Ten tries and a last pass instead of one, in every step of the attack.
        "tries_share": given.steps * SHRINK_TRIES * counts.macs["F"] / step.macs,
    }


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|---|{'--:|' * (len(head) - 1)}", *lines[1:]])


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.{0 if seconds >= 0.1 else 1 if seconds >= 0.001 else 2}f}"


def _both(kind: dict[str, float], suffix: str = "") -> str:
    return f"{kind[f'share_bare{suffix}']:.1%} / {kind[f'share{suffix}']:.1%}"


def counts_table(record: dict[str, Any]) -> str:
    """What is counted."""
    parameters, macs = record["counts"]["parameters"], record["counts"]["macs"]
    learns = {"G", *(name for name in parameters if name.startswith("D "))}
    rows = [
        [name, f"{number:,}", f"{_FLOAT * number / 1e6:.1f}" if name in learns else "", f"{macs[name] / 1e9:.1f}"]
        for name, number in parameters.items()
    ]
    return _table(["network", "parameters", "gradients, MB", "GMAC an image, forward"], rows)


def steps_table(record: dict[str, Any]) -> str:
    """What a step computes."""
    given, steps = record["assumptions"], record["steps"]
    rows = [
        [
            name,
            f"{step['macs'] / 1e9:,.0f}",
            f"{step['macs'] / steps[PLAIN]['macs']:.2f}",
            _milliseconds(step["seconds"]),
            _milliseconds(step["seconds_at_peak"]),
            f"{step['reduced_bytes'] / 1e6:.1f}",
        ]
        for name, step in steps.items()
    ]
    ms = [f"ms for {given['images']} images at {share:.0%}" for share in (given["share"], 1)]
    return _table(["step", "GMAC an image", "x plain", *ms, "reduced, MB"], rows)


def weak_table(record: dict[str, Any]) -> str:
    """The all-reduce beside the step, with as many images on each GPU."""
    rows = [
        [
            str(row["gpus"]),
            str(row["images"]),
            "NVLink" if row["gpus"] <= record["assumptions"]["machine"] else row["network"],
            _milliseconds(row[ANDNET]["reduce_seconds"]),
            *(_both(row[kind]) for kind in (PLAIN, ANDNET, ANDGAN)),
            _both(row[ANDNET], "_at_peak"),
        ]
        for row in record["weak"]
    ]
    head = ["GPUs", "images", "network", "all-reduce of G, ms", PLAIN, ANDNET, ANDGAN, f"{ANDNET} at the limit"]
    return _table(head, rows)


def strong_table(record: dict[str, Any]) -> str:
    """The paper's batch on more and more GPUs."""
    rows = [
        [
            str(row["gpus"]),
            str(row["images"]),
            _milliseconds(row["seconds"]),
            f"{row['speed_up']:.1f}",
            f"{row['busy']:.0%}",
            f"{row['speed_up_in_tiles']:.1f}",
        ]
        for row in record["strong"]
    ]
    head = ["GPUs", "images on each", "ms a step", "speed-up", "multiprocessors busy", "speed-up, if that binds"]
    return _table(head, rows)


def growth_table(record: dict[str, Any]) -> str:
    """What else grows with the GPUs."""
    lines: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("images a step", lambda row: str(row["images"])),
        ("images a second, all GPUs", lambda row: f"{row['images_per_second']:,.0f}"),
        ("normal numbers for identities, a GPU: MB", lambda row: f"{row['centres_bytes'] / 1e6:,.0f}"),
        ("their time, of a step", lambda row: f"{row['centres_share']:.1%}"),
        ("for random starts: GB", lambda row: f"{row['starts_bytes'] / 1e9:.2f}"),
        ("their time, of a step", lambda row: f"{row['starts_share']:.0%}"),
        ("the processes' agreement, ms", lambda row: _milliseconds(row["gloo_seconds"])),
        ("the metrics' all-reduce, ms", lambda row: _milliseconds(row["metrics_seconds"])),
        ("hours from failure to failure", lambda row: f"{row['failure_hours']:,.0f}"),
    ]
    rows = [[name, *map(show, record["growth"])] for name, show in lines]
    return _table(["", *(f"{row['gpus']} GPUs" for row in record["growth"])], rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "counts": counts_table,
    "steps": steps_table,
    "weak": weak_table,
    "strong": strong_table,
    "growth": growth_table,
}
"""The tables of docs/scaling.md by their names there."""


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share in (0, 1]")
    return share


@console()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--share", type=_share, default=Assumptions.share, help="of the GPU's peak that a step sustains"
    )
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    counts, given = count(), Assumptions(share=options.share)
    words = ["FILE" if word == str(options.output) else word for word in arguments or sys.argv[1:]]
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": " ".join(["python -m bench.scaling", *words]),
        "measured": "nothing: the machine only did the sums",
        "machine": machine(),
        "assumptions": asdict(given),
        "counts": asdict(counts),
        **calculate(counts, given),
    }
    print("\n\n".join(table(record) for table in TABLES.values()))
    if options.output is not None:
        write_text(options.output, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
