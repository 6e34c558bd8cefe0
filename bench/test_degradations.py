"""The time of a batch of LR images: the degradations of other trainings, beside a forward pass of F.

An attack takes several such passes of F, and of G. BSRGAN's and Real-ESRGAN's chains are drawn anew in every round.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import count

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from andfast.attack.base import bicubic_downsample
from andfast.data.patches import ImageArray, PatchBatches
from andfast.data.photographs import training_photographs
from andfast.degradation import bsrgan, jpeg, real_esrgan
from andfast.degradation.network import DegradationNetwork
from bench.timing import DEVICE, SMALL, clock, measure
from bench.variants import FAST_TYPE

pytestmark = pytest.mark.benchmark(timer=clock, warmup=False)

SCALE, QUALITY = 4, 75
IMAGES, SIZE = (2, 32) if SMALL else (48, 256) if DEVICE.type == "cuda" else (8, 128)


def batch() -> Tensor:
    """HR images: crops of photographs, (IMAGES, 3, SIZE, SIZE) float32 in [0, 1]."""
    sources = [ImageArray(*image) for image in training_photographs()]
    patches, _ = PatchBatches(sources, patch=SIZE, batch=IMAGES)[0]
    return patches.to(DEVICE).float() / 255


def psnr(one: Tensor, other: Tensor) -> float:
    return -10 * (one - other).square().mean().log10().item()


def by_pillow(images: Tensor) -> Tensor:
    """JPEG of each image as a file in memory; from and to the GPU, if the batch is there."""
    results = []
    for image in (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=QUALITY)
        results.append(np.array(Image.open(file)))
    return torch.from_numpy(np.stack(results)).to(DEVICE).permute(0, 3, 1, 2).float() / 255


def network(channels: int) -> Callable[[Tensor], Tensor]:
    """F for the whole batch, at the identity."""
    made = DegradationNetwork(SCALE, channels=channels, dtype=FAST_TYPE, device=DEVICE)
    made.reset_identity((SIZE, SIZE), torch.Generator(DEVICE).manual_seed(0))
    return torch.no_grad()(made)


def drawn(chain: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """A chain that is drawn anew in each call."""
    seeds = count()
    return lambda hr: chain(hr, SCALE, torch.Generator(DEVICE).manual_seed(next(seeds)))


# With the least PSNR of a correct result, in dB, to the bicubic LR image, or for JPEG to Pillow's.
VARIANTS: dict[str, tuple[Callable[[], Callable[[Tensor], Tensor]], float]] = {
    "F, 64 channels": (lambda: network(64), 24),
    "F, 16 channels": (lambda: network(16), 24),
    "bicubic": (lambda: lambda hr: bicubic_downsample(hr, SCALE), 60),
    "BSRGAN": (lambda: drawn(bsrgan), 12),
    "Real-ESRGAN": (lambda: drawn(real_esrgan), 12),
    "JPEG": (lambda: lambda hr: jpeg(hr, torch.full((IMAGES,), QUALITY, device=DEVICE)), 40),
    "JPEG by Pillow": (lambda: by_pillow, 40),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_degradations(benchmark, variant):
    hr = batch()
    make, least = VARIANTS[variant]
    degrade = make()
    result = degrade(hr)
    expected = by_pillow(hr) if variant.startswith("JPEG") else bicubic_downsample(hr, SCALE)
    assert result.shape == expected.shape
    assert psnr(result.float(), expected) > least
    measure(
        benchmark,
        lambda: degrade(hr),
        group=f"degradations {IMAGES}x{SIZE}x{SIZE}",
        variant=variant,
        dtype=FAST_TYPE if variant.startswith("F,") else torch.float32,
        moved=4 * (hr.numel() + result.numel()),
        rounds=40,
    )
