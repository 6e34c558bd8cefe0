"""Calculate how training scales to 8, 64 and 512 GPUs: `python -m bench.scaling [--share SHARE]`.

Nothing is measured. bench/results/scaling.json holds the networks' parameters and multiply-adds (counts) and what is
assumed of machines (assumptions); this prints, as JSON, the numbers of docs/scaling.md that follow from them. Bytes,
seconds, and multiply-adds for an image (macs), per GPU.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

RESULT = Path(__file__).parent / "results" / "scaling.json"
FAST, SLOW = "400 Gb/s a GPU", "100 Gb/s a machine"


def all_reduce(size: float, gpus: int, network: str, given: Any) -> float:
    """Seconds of one all-reduce: a ring in each machine; between machines the faster of a ring and a pair of trees."""
    machines = -(-gpus // given.machine)
    inside = gpus // machines
    nvlink = given.link_share * given.nvlink
    rate = given.link_share * (given.network if network == FAST else given.slow_network)
    part = size / inside  # each GPU exchanges its part with the GPUs of the other machines that have the same one
    ring = 2 * (machines - 1) * (part / machines / rate + given.network_hop)
    tree = 2 * (part / rate + math.ceil(math.log2(machines)) * given.network_hop) if machines > 1 else 0.0
    return 2 * (inside - 1) * (size / inside / nvlink + given.nvlink_hop) + min(ring, tree)


def buckets(size: float) -> Iterator[float]:
    """DistributedDataParallel's buckets: 1 MiB, so that sending begins early, then 25 MiB each."""
    bucket = 2**20
    while size > 0:
        yield min(bucket, size)
        size, bucket = size - bucket, 25 * 2**20


def reduce_times(size: float, gpus: int, network: str, given: Any, backward: float) -> tuple[float, float]:
    """Seconds of all buckets one after the other, and how many of them follow a backward pass of so many seconds.

    A bucket is sent when all of its gradients are known, which they are at an even pace, and the one before it is sent.
    """
    total = known = sent = 0.0
    for bucket in buckets(size):
        known += bucket
        seconds = all_reduce(bucket, gpus, network, given)
        total, sent = total + seconds, max(sent, backward * known / size) + seconds
    return total, sent - backward


def make_steps(counts: dict[str, Any], steps: int) -> dict[str, dict[str, Any]]:
    """A step's macs, and what is reduced: (bytes, macs of the backward pass that the gradients come from).

    In passes: forward 1, the input's gradient 1, the weights' (F: theta's) gradient 1 more. The attack passes F and G
    forward `steps` + 1 times and backward `steps` times. ANDGAN uses VGG19 and the discriminator in all of these, in
    the update, on HR images (VGG19), and 2 x 3 times for the discriminator's own update.
    """
    g, f, vgg, d = (counts["macs"][name] for name in ("G", "F", "VGG19", "D vgg"))
    g_bytes, d_bytes = (4 * counts["parameters"][name] for name in ("G", "D vgg"))
    andnet = (2 * steps + 1) * g + (3 * steps + 1) * f + 3 * g
    andgan = andnet + (2 * steps + 3) * (vgg + d) + vgg + 6 * d
    return {
        "plain": {"macs": 3 * g, "reduced": [(g_bytes, 2 * g)]},
        "ANDNet": {"macs": andnet, "reduced": [(g_bytes, 2 * g)]},
        "ANDGAN": {"macs": andgan, "reduced": [(g_bytes, 2 * g), (d_bytes, 4 * d)]},
    }


def busy(images: int, given: Any) -> float:
    """The share of the multiprocessors that G's convolutions keep busy: 64 x 64 pixels an image, in whole tiles."""
    tiles = math.ceil(images * 64**2 / given.tile)
    return tiles / (given.multiprocessors * math.ceil(tiles / given.multiprocessors))


def calculate(counts: dict[str, Any], assumptions: dict[str, Any]) -> dict[str, Any]:
    """All numbers that follow: steps, weak and strong scaling, what grows with the GPUs, and one GPU's."""
    given = SimpleNamespace(**assumptions)
    steps, rate = make_steps(counts, given.steps), given.share * given.peak

    def compute(kind: str, images: float, rate: float) -> float:
        return images * 2 * steps[kind]["macs"] / rate

    def reduce(kind: str, gpus: int, network: str, images: float, rate: float) -> tuple[float, float]:
        pairs = steps[kind]["reduced"]
        times = [reduce_times(size, gpus, network, given, images * 2 * macs / rate) for size, macs in pairs]
        return sum(total for total, _ in times), sum(exposed for _, exposed in times)

    def weak(kind: str, gpus: int, network: str) -> dict[str, float]:
        cells = {}
        for suffix, speed in (("", rate), ("_at_peak", given.peak)):
            seconds = compute(kind, given.images, speed)
            total, exposed = reduce(kind, gpus, network, given.images, speed)
            cells |= {"reduce_seconds": total, f"share_bare{suffix}": total / (seconds + total)}
            cells[f"share{suffix}"] = exposed / (seconds + exposed)
        return cells

    def strong(gpus: int) -> dict[str, float]:
        images, alone = given.batch // gpus, compute("ANDNet", given.batch, rate)
        slower = busy(images, given) / busy(given.batch, given)
        seconds, in_tiles = (
            compute("ANDNet", images, speed) + (reduce("ANDNet", gpus, FAST, images, speed)[1] if gpus > 1 else 0.0)
            for speed in (rate, rate * slower)
        )
        speed_ups = {"speed_up": alone / seconds, "busy": busy(images, given), "speed_up_in_tiles": alone / in_tiles}
        return {"gpus": gpus, "images": images, "seconds": seconds, **speed_ups}

    seconds = compute("ANDNet", given.images, rate)
    theta, macs = 4 * counts["parameters"]["F"], steps["ANDNet"]["macs"]

    def growth(gpus: int) -> dict[str, float]:
        images = gpus * given.images
        return {
            "gpus": gpus,
            "images": images,
            "images_per_second": images / seconds,
            "centres": images * counts["centres"],
            "centres_bytes": 4 * images * counts["centres"],
            "centres_share": images * counts["centres"] / given.normals / seconds,
            "starts_bytes": images * theta,
            "starts_share": images * theta / 4 / given.normals / seconds,
            "gloo_seconds": 2 * (gpus - 1) * given.gloo_hop,  # one number goes round the ring of processes twice
            "metrics_seconds": all_reduce(48, gpus, FAST, given),
            "failure_hours": given.failure_hours / gpus,
        }

    weights, patches = 4 * counts["parameters"]["G"], given.images / seconds
    save_seconds = 7 * weights / given.disk  # the state, and the average as .safetensors and as .pth
    return {
        "steps": {
            kind: {
                "macs": step["macs"],
                "reduced_bytes": sum(size for size, _ in step["reduced"]),
                "seconds": compute(kind, given.images, rate),
                "seconds_at_peak": compute(kind, given.images, given.peak),
            }
            for kind, step in steps.items()
        },
        "weak": [
            {"gpus": gpus, "images": gpus * given.images, "network": network}
            | {kind: weak(kind, gpus, network) for kind in steps}
            for gpus, network in ((8, FAST), (64, FAST), (64, SLOW), (512, FAST), (512, SLOW))
        ],
        "strong": [strong(gpus) for gpus in (1, 8, 16, 24, 48)],
        "growth": [growth(gpus) for gpus in (8, 64, 512)],
        "one_gpu": {
            "patch_bytes": 3 * 256**2,
            "patches_per_second": patches,
            "patch_bytes_per_second": patches * 3 * 256**2,
            "decoded_bytes_per_second": patches * given.image,
            "theta_bytes": theta,
            "theta_copies_bytes": given.copies * theta,
            "state_bytes": 5 * weights,
            "save_seconds": save_seconds,
            "save_share": save_seconds / (given.save_every * seconds),
            "lost_seconds": given.save_every * seconds,
            "try_share": counts["macs"]["F"] / macs,
            "tries_share": 10 * given.steps * counts["macs"]["F"] / macs,  # ten tries in every step of the attack
        },
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, help="of the GPU's peak that a step sustains (default: as in the file)")
    options = parser.parse_args(arguments)
    if options.share is not None and not 0 < options.share <= 1:
        parser.error(f"--share is {options.share:g}; it must be in (0, 1]")
    record = json.loads(RESULT.read_text(encoding="utf-8"))
    changed = {} if options.share is None else {"share": options.share}
    print(json.dumps(calculate(record["counts"], record["assumptions"] | changed), indent=1))


if __name__ == "__main__":
    main()
