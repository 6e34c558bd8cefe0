"""Calculate how training scales to 8, 64 and 512 GPUs: `python -m bench.scaling [--share SHARE]`.

Nothing is measured. bench/results/scaling.json holds the networks' parameters and multiply-adds ("counts") and the
assumptions about machines; this prints, as JSON, what docs/scaling.md says of steps and all-reduces, per GPU.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

RESULT = Path(__file__).parent / "results" / "scaling.json"
FAST, SLOW = "400 Gb/s a GPU", "100 Gb/s a machine"


def all_reduce(size: float, gpus: int, network: str, given: Any) -> float:
    """Seconds of one all-reduce: a ring in each machine; between machines the faster of a ring and a pair of trees."""
    machines = -(-gpus // given.machine)
    inside = gpus // machines
    part = size / inside / given.link_share  # each GPU exchanges its part with the same part's GPUs of other machines
    sent = part / (given.network if network == FAST else given.slow_network)
    ring = 2 * (machines - 1) * (sent / machines + given.network_hop)
    tree = 2 * (sent + math.ceil(math.log2(machines)) * given.network_hop)
    return 2 * (inside - 1) * (part / given.nvlink + given.nvlink_hop) + min(ring, tree)


def reduce_times(size: float, gpus: int, network: str, given: Any, backward: float) -> tuple[float, float]:
    """Seconds of DistributedDataParallel's all-reduces: all of them, and what remains after the backward pass.

    A bucket (1 MiB, then 25 MiB each) is sent when its gradients are known, which they are at an even pace during the
    `backward` seconds, and the bucket before it is sent.
    """
    total = known = sent = 0.0
    while known < size:
        bucket = min(2**20 * (25 if known else 1), size - known)
        known += bucket
        seconds = all_reduce(bucket, gpus, network, given)
        total, sent = total + seconds, max(sent, backward * known / size) + seconds
    return total, sent - backward


def busy(images: int, given: Any) -> float:
    """The share of the multiprocessors that G's convolutions keep busy: 64 x 64 pixels an image, in whole tiles."""
    tiles = math.ceil(images * 64**2 / given.tile)
    return tiles / (given.multiprocessors * math.ceil(tiles / given.multiprocessors))


def calculate(counts: dict[str, Any], given: Any) -> dict[str, Any]:
    """Steps, weak and strong scaling: bytes, seconds, multiply-adds for an image ("macs"), shares of a step's time."""
    g, f, vgg, d = (counts["macs"][name] for name in ("G", "F", "VGG19", "D vgg"))
    # In passes: forward 1, the input's gradient 1, the weights' (F: theta's) gradient 1 more. The attack passes F and G
    # forward `steps` + 1 times and backward `steps` times. ANDGAN uses VGG19 and the discriminator in all of these, in
    # the update, on HR images (VGG19), and 2 x 3 times for the discriminator's own update.
    andnet = (2 * given.steps + 1) * g + (3 * given.steps + 1) * f + 3 * g
    andgan = andnet + (2 * given.steps + 3) * (vgg + d) + vgg + 6 * d
    # Bytes of gradients, and the multiply-adds of the backward pass that they come from.
    of_g, of_d = (4 * counts["parameters"]["G"], 2 * g), (4 * counts["parameters"]["D vgg"], 4 * d)
    steps = {"plain": (3 * g, [of_g]), "ANDNet": (andnet, [of_g]), "ANDGAN": (andgan, [of_g, of_d])}
    rate = given.share * given.peak

    def times(kind: str, gpus: int, network: str, images: int, rate: float) -> tuple[float, float, float]:
        """Computing, all-reduces, and what of them the backward pass does not hide."""
        macs, reduced = steps[kind]
        each = [reduce_times(size, gpus, network, given, images * 2 * own / rate) for size, own in reduced]
        return images * 2 * macs / rate, *map(sum, zip(*each, strict=True))

    def weak(kind: str, gpus: int, network: str) -> dict[str, float]:
        cells = {}
        for suffix, speed in (("_at_peak", given.peak), ("", rate)):
            seconds, total, exposed = times(kind, gpus, network, given.images, speed)
            cells |= {f"share_bare{suffix}": total / (seconds + total), f"share{suffix}": exposed / (seconds + exposed)}
        return cells | {"reduce_seconds": total}

    def strong(gpus: int, rate: float) -> float:
        seconds, _, exposed = times("ANDNet", gpus, FAST, given.batch // gpus, rate)
        return seconds + exposed

    return {
        "steps": {
            kind: {
                "macs": macs,
                "reduced_bytes": sum(size for size, _ in reduced),
                "seconds": given.images * 2 * macs / rate,
                "seconds_at_peak": given.images * 2 * macs / given.peak,
            }
            for kind, (macs, reduced) in steps.items()
        },
        "weak": [
            {"gpus": gpus, "images": gpus * given.images, "network": network}
            | {kind: weak(kind, gpus, network) for kind in steps}
            for gpus, network in ((8, FAST), (64, FAST), (64, SLOW), (512, FAST), (512, SLOW))
        ],
        "strong": [
            {
                "gpus": gpus,
                "images": given.batch // gpus,
                "seconds": strong(gpus, rate),
                "speed_up": strong(1, rate) / strong(gpus, rate),
                "busy": (share := busy(given.batch // gpus, given)),
                "speed_up_in_tiles": strong(1, rate) / strong(gpus, rate * share / busy(given.batch, given)),
            }
            for gpus in (1, 8, 16, 24, 48)
        ],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, help="of the GPU's peak that a step sustains (default: as in the file)")
    options = parser.parse_args(arguments)
    if options.share is not None and not 0 < options.share <= 1:
        parser.error(f"--share is {options.share:g}; it must be in (0, 1]")
    record = json.loads(RESULT.read_text(encoding="utf-8"))
    changed = {} if options.share is None else {"share": options.share}
    print(json.dumps(calculate(record["counts"], SimpleNamespace(**record["assumptions"] | changed)), indent=1))


if __name__ == "__main__":
    main()
