"""Means over test images with their 95% confidence intervals.

The unit is the image. Runs of several seeds see the same images, and restorations of one image by two seeds are far
more alike than those of two images by one seed: seeds x images values taken as so many independent ones would make
intervals too narrow by about the square root of the number of seeds. So values are averaged over seeds first (and over
strengths, where one photograph is tested under several), which leaves one value an image, and the interval is
Student's t over images. It says how far the mean would move with other images of the same kind, for these trained
models; how far training moves it is told apart, by the `spread` over seeds. A t interval and no bootstrap: it is exact
for normal values, near enough for the mean of 20 and more, needs no random numbers, and with few images a bootstrap's
percentiles are too narrow.

Two models are compared by the differences image by image, under the same seed (`paired`): what makes an image hard is
common to both and drops out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and what it may be.

    Attributes:
        mean: over all values.
        low, high: ends of the interval; infinite for a single image.
        images: how many images it is over.
        spread: standard deviation of the seeds' means; NaN for a single seed.
    """

    mean: float
    low: float
    high: float
    images: int
    spread: float

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


def interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """The mean over images, after that over seeds.

    Args:
        values: (seeds, images); no seed or image without a value.
        confidence: how often such an interval holds the true mean, in (0, 1).

    Raises:
        ValueError: another shape, nothing, or values that are no numbers.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"values are (seeds, images), not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("some values are no finite numbers")
    seeds, images = values.shape
    means = values.mean(axis=0)
    mean = float(means.mean())
    spread = float(values.mean(axis=1).std(ddof=1)) if seeds > 1 else math.nan
    half = math.inf
    if images > 1:
        error = means.std(ddof=1) / math.sqrt(images)
        half = float(stdtrit(images - 1, (1 + confidence) / 2) * error)
    return Interval(mean, mean - half, mean + half, images, spread)


def paired(values: ArrayLike, others: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """`interval` of values - others, paired by seed and image.

    Args:
        values: (seeds, images).
        others: (seeds, images) of the same seeds and images; or (1, images), of what has no seed.

    Raises:
        ValueError: as `interval`, or the shapes do not fit.
    """
    values, others = np.asarray(values, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if values.ndim != 2 or others.ndim != 2 or values.shape[1] != others.shape[1]:
        raise ValueError(f"values of the same images, (seeds, images), are not {values.shape} and {others.shape}")
    if len(values) != len(others) and 1 not in (len(values), len(others)):
        raise ValueError(f"{len(values)} and {len(others)} seeds cannot be paired")
    return interval(values - others, confidence)
