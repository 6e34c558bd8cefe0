"""Whether there is room for the result of an image, found out before it is made."""

from __future__ import annotations

from pathlib import Path

import torch

from andfast.data.images import MAX_PIXELS, DataError
from andfast.inference.formats import Picture, check_size, read_picture
from andfast.inference.resize import resized_size
from andfast.utils.memory import free_memory


def read_to_upscale(source: Path, target: Path, factor: float, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read an image file that is to be upscaled.

    Args:
        source: the file.
        target: where the result is to be written.
        factor: of the result's size to the image's.
        max_pixels: see `read_picture`.

    Raises:
        DataError: it cannot be read, or the result needs more memory than there is.
        ValueError: the result is too large for its format.
    """
    picture = read_picture(source, max_pixels)
    height, width, channels = picture.pixels.shape
    large = resized_size((height, width), factor)
    check_size(target, *large)
    # The result is held whole, and once more while it is written.
    needed = 2 * large[0] * large[1] * channels * picture.pixels.itemsize
    free = free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        raise DataError(
            f"{source}: the result, {large[1]} x {large[0]} pixels, needs {needed / 2**30:.1f} GiB of "
            f"{free / 2**30:.1f} GiB free"
        )
    return picture
