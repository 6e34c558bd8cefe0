"""Means over test images with their 95% confidence intervals.

Values are averaged over seeds first (and over strengths, if one photograph is tested under several); the interval is
Student's t over the images. Runs of several seeds are tested on the same images, and one image's results under two
seeds are much more alike than two images' under one seed: counted as independent values they would make intervals too
narrow by about the square root of the number of seeds. The interval shows how much the mean would change with other
images of the same kind, for these trained models; `spread` shows how much it changes with the training's seed. A
bootstrap's percentiles would be too narrow for few images.

Two models are compared by their differences, image by image and seed by seed (`paired`), so that the images'
difficulty cancels.
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
    """A mean and its confidence interval.

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
        values: (seeds, images).
        confidence: how often such an interval contains the true mean, in (0, 1).

    Raises:
        ValueError: another shape, no values, or NaN or infinity among them.
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
        others: (seeds, images) of the same seeds and images; or (1, images), for a method without a seed.

    Raises:
        ValueError: as `interval`, or the shapes do not fit.
    """
    values, others = np.asarray(values, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if values.ndim != 2 or others.ndim != 2 or values.shape[1] != others.shape[1]:
        raise ValueError(f"values of the same images, (seeds, images), are not {values.shape} and {others.shape}")
    if len(values) != len(others) and 1 not in (len(values), len(others)):
        raise ValueError(f"{len(values)} and {len(others)} seeds cannot be paired")
    return interval(values - others, confidence)
