"""A training step of ANDNet: plain, with the exact adversary and with cheaper ones, beside plain PyTorch.

The baselines are in `bench.paper`: (a) written from the paper, (b) the same in the fast type, channels_last and
compiled. All variants of a group train the same generator on the same images.
"""

from __future__ import annotations

import pytest
import torch

from bench.steps import CHEAPER, EXACT_5, PLAIN, Case, Variant, bench_step
from bench.timing import DEVICE, SMALL, clock

pytestmark = pytest.mark.benchmark(timer=clock, warmup=False)

ALL = [
    Variant("andfast", PLAIN),
    Variant("paper", PLAIN),
    Variant("andfast", EXACT_5),
    Variant("paper", EXACT_5),
    Variant("paper compiled", PLAIN),
    Variant("paper compiled", EXACT_5),
    Variant("andfast", EXACT_5, "batch"),
    Variant("paper", EXACT_5, "batch"),
    *(Variant("andfast", method) for method in CHEAPER),
    Variant("reference", EXACT_5),
]
# Other sizes show the overhead, and the gain over (a).
FEW = [variant for variant in ALL if variant.method in (PLAIN, EXACT_5) and variant.who in ("andfast", "paper")]
FEWER = [variant for variant in FEW if variant.networks == 1]

# Cases, their variants and rounds.
if SMALL:
    tiny = {"features": 8, "depth": 1, "channels": 8, "blocks": 2}
    PLAN = [(Case("rrdbnet", 2, 16, **tiny), ALL, 1), (Case("compact", 2, 16, **tiny), ALL, 1)]
elif DEVICE.type == "cuda":
    PLAN = [
        (Case("compact", 8, 128, depth=16), ALL, 10),
        (Case("rrdbnet", 8, 128), ALL, 10),
        (Case("compact", 48, 256, depth=16), ALL, 5),
        (Case("rrdbnet", 48, 256), ALL, 5),
    ]
else:
    PLAN = [
        (Case("rrdbnet", 2, 128), ALL, 3),
        (Case("rrdbnet", 8, 128), FEWER, 1),
        (Case("compact", 2, 128, depth=16), ALL, 2),
        (Case("compact", 8, 128, depth=16), FEWER, 2),
    ]


@pytest.mark.parametrize(
    ("case", "variant", "rounds"),
    [
        pytest.param(case, variant, rounds, id=f"{case}-{variant}")
        for case, variants, rounds in PLAN
        for variant in variants
    ],
)
def test_step(benchmark, case, variant, rounds):
    try:
        bench_step(benchmark, case, variant, rounds)
    except torch.OutOfMemoryError as error:
        if variant.who.startswith("paper"):
            pytest.skip(f"out of memory: {str(error).splitlines()[0]}")
        raise
