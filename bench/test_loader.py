"""The number of patches a second that one process loads, by where the decoded images are kept.

Everything is on the CPU. A time is that of one batch: random crops, flipped and turned, each of another image.
"""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from andfast.data.cache import CachedImage, cache_images
from andfast.data.patches import PatchBatches, scan_images
from andfast.data.photographs import held_out_photographs, training_photographs
from bench.timing import SMALL

pytestmark = pytest.mark.benchmark(warmup=False)

IMAGES, HEIGHT, WIDTH, PATCH = (4, 96, 128, 64) if SMALL else (36, 768, 1024, 256)
# "from disk": as in the first epoch, not in the operating system's memory, and not checked yet.
KEPT = ("eager decoding", "in memory", "in the cache, from disk", "in the cache")


def picture(photograph, random):
    """A random piece of `photograph`, enlarged, with a little noise, so that it is as hard to decode as a camera's."""
    image = Image.fromarray(photograph)
    factor = max(HEIGHT / image.height, WIDTH / image.width) * random.uniform(1, 1.5)
    image = image.resize((int(image.width * factor) + 1, int(image.height * factor) + 1), Image.Resampling.BICUBIC)
    top, left = random.integers(image.height - HEIGHT + 1), random.integers(image.width - WIDTH + 1)
    piece = np.asarray(image)[top : top + HEIGHT, left : left + WIDTH]
    noisy = piece + random.integers(-3, 4, piece.shape, np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module", params=["png", "jpg"])
def folder(request, tmp_path_factory):
    """A folder of files with that suffix."""
    folder = tmp_path_factory.mktemp("photographs") / request.param
    folder.mkdir()
    photographs = [array for _, array in training_photographs() + held_out_photographs()]
    random = np.random.default_rng(0)
    for index in range(IMAGES):
        image = picture(photographs[index % len(photographs)], random)
        image.save(folder / f"{index}.{request.param}", quality=95, compress_level=1)
    return folder


def forget(sources):
    """Remove cached images from the operating system's memory, and their mark that they were checked."""
    for source in sources:
        assert isinstance(source, CachedImage)
        source.states[:] = 0
        descriptor = os.open(source.stored, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@pytest.mark.parametrize("kept", KEPT)
def test_loader(benchmark, folder, kept):
    files = scan_images([folder], PATCH).sources
    sources = cache_images(folder.parent / "cache", files, 0) if "cache" in kept else files
    batches = PatchBatches(sources, patch=PATCH, batch=IMAGES, cache_mib=4096 if kept == "in memory" else 0)
    patches, failures = batches[0]
    assert not failures
    expected, _ = PatchBatches(files, patch=PATCH, batch=1)[0]
    assert torch.equal(patches[:1], expected)
    steps = iter(range(1, 1000))

    def prepare():
        if kept == "in the cache, from disk":
            forget(sources)
        return (next(steps),), {}

    benchmark.group = f"loader {IMAGES} patches {PATCH}x{PATCH} of {folder.name} {WIDTH}x{HEIGHT}"
    benchmark.extra_info |= {"variant": kept, "device": "cpu", "threads": 1, "bytes": patches.numel()}
    benchmark.pedantic(batches.__getitem__, setup=prepare, rounds=2 if SMALL or kept == "eager decoding" else 9)
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["patches_per_second"] = IMAGES / benchmark.stats.stats.median
