"""Confidence intervals against scipy's tests, and against what they promise."""

import math

import numpy as np
import pytest
from scipy import stats

from studies.intervals import interval, paired


@pytest.fixture
def values():
    random = np.random.default_rng(0)
    images = random.normal(27, 3, (1, 29))
    return images + random.normal(0, 0.1, (3, 29)), images + 0.2 + random.normal(0, 0.1, (3, 29))


def test_an_interval_is_that_of_the_t_test_over_images(values):
    found = interval(values[0])
    expected = stats.ttest_1samp(values[0].mean(axis=0), 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.mean == pytest.approx(values[0].mean())
    assert found.half == pytest.approx((expected.high - expected.low) / 2)
    assert found.images == 29
    assert found.spread == pytest.approx(np.std([seed.mean() for seed in values[0]], ddof=1))


def test_a_paired_interval_is_that_of_the_paired_t_test(values):
    found = paired(*values, confidence=0.9)
    expected = stats.ttest_rel(*(both.mean(axis=0) for both in values)).confidence_interval(0.9)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    # What is common to both images drops out: the images differ by 3 dB, the models by 0.2.
    assert found.high < 0
    assert interval(values[0]).half > 10 * found.half


def test_what_has_no_seed_is_paired_with_every_seed(values):
    one = values[1][:1]
    assert paired(values[0], one) == paired(values[0], np.repeat(one, 3, axis=0))


def test_repeated_seeds_do_not_narrow_it(values):
    assert interval(np.repeat(values[0][:1], 5, axis=0)).half == pytest.approx(interval(values[0][:1]).half)


def test_it_holds_the_true_mean_as_often_as_it_says():
    random = np.random.default_rng(1)
    held = 0
    for _ in range(2000):
        images = random.normal(0, 1, (1, 12))
        found = interval(images + random.normal(0, 0.3, (3, 12)))
        held += found.low < 0 < found.high
    assert 0.93 < held / 2000 < 0.97


def test_a_single_image_or_seed():
    found = interval([[1.0], [3.0]])
    assert (found.mean, found.low, found.high) == (2.0, -math.inf, math.inf)
    assert math.isnan(interval([[1.0, 2.0]]).spread)


def test_what_is_no_table_of_numbers_is_refused(values):
    for wrong in ([1.0, 2.0], [[]]):
        with pytest.raises(ValueError, match="seeds, images"):
            interval(wrong)
    with pytest.raises(ValueError, match="no finite"):
        interval([[1.0, math.nan]])
    with pytest.raises(ValueError, match="same images"):
        paired(values[0], values[1][:, 1:])
    with pytest.raises(ValueError, match="3 and 2 seeds"):
        paired(values[0], values[1][:2])
