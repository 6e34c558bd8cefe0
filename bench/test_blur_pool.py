"""The anti-aliased pooling of the widest activations at full resolution."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops.blur_pool import blur_pool, blur_pool_reference, pooling_taps
from bench.passes import settings
from bench.timing import DEVICE, SMALL, clock, measure
from bench.variants import check, network_variants, skip_unavailable

pytestmark = pytest.mark.benchmark(timer=clock, warmup=False)

SCALE = 4
SHAPE = (2, 8, 16, 16) if SMALL else (48, 64, 256, 256) if DEVICE.type == "cuda" else (2, 64, 128, 128)
VARIANTS = network_variants("blur_pool")


def eager(image: Tensor, kernel: Tensor) -> Tensor:
    """A strided convolution a channel, all in the image's own type."""
    return F.conv2d(F.pad(image, (1, 1, 1, 1), mode="reflect"), kernel, stride=SCALE, groups=len(kernel))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_blur_pool(benchmark, variant):
    skip_unavailable(variant)
    image = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(DEVICE, variant.dtype)
    # One image at a time, because float64 takes much memory.
    exact = torch.cat([blur_pool_reference(part.double(), SCALE) for part in image.split(1)])
    image = image.contiguous(memory_format=variant.memory_format if variant.name == "eager" else torch.channels_last)
    taps = torch.tensor(pooling_taps(SCALE), device=DEVICE)
    kernel = torch.outer(taps, taps).expand(SHAPE[1], 1, -1, -1).to(variant.dtype).contiguous()
    with settings(variant):
        run = partial(eager, image, kernel) if variant.name == "eager" else partial(blur_pool, image, SCALE)
        check("result", run(), exact, variant)
        measure(
            benchmark,
            run,
            group=f"blur_pool {'x'.join(map(str, SHAPE))}",
            variant=str(variant),
            dtype=variant.dtype,
            moved=(image.numel() + exact.numel()) * variant.dtype.itemsize,
            rounds=30,
        )
