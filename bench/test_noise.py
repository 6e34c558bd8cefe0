"""The Gaussian field of the noise injection, beside torch's random numbers, which cannot be reproduced later."""

from functools import partial

import pytest
import torch

from andfast.ops.noise import gaussian_field, gaussian_field_reference
from bench.passes import settings
from bench.timing import DEVICE, SMALL, clock, measure
from bench.variants import Variant, backend_variants, check, skip_unavailable

pytestmark = pytest.mark.benchmark(timer=clock, warmup=False)

IMAGES, SIZE = (2, 16) if SMALL else (48, 256) if DEVICE.type == "cuda" else (2, 128)
# The backend is chosen by the seed, which is an integer; the field is float32.
BACKENDS = [Variant(variant.name, torch.float32) for variant in backend_variants("gaussian_field", torch.int64)]


@pytest.mark.parametrize("variant", [Variant("eager torch.randn", torch.float32), *BACKENDS], ids=str)
def test_gaussian_field(benchmark, variant):
    skip_unavailable(variant)
    seed = torch.tensor(2**40 + 1, device=DEVICE)
    arguments = (seed, 3, IMAGES, (SIZE, SIZE))
    with settings(variant):
        if variant.name == "eager torch.randn":
            run = partial(torch.randn, IMAGES, 1, SIZE, SIZE, device=DEVICE)
            run()
        else:
            run = partial(gaussian_field, *arguments)
            check("field", run(), gaussian_field_reference(*arguments).double(), variant)
        measure(
            benchmark,
            run,
            group=f"gaussian_field {IMAGES}x{SIZE}x{SIZE}",
            variant=str(variant),
            dtype=variant.dtype,
            moved=4 * IMAGES * SIZE**2,
            rounds=30,
        )
