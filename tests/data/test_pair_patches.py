"""Patches of pairs: aligned, each pair once an epoch, a function of the seed and the step."""

import numpy as np
import pytest
import torch
from PIL import Image

from andfast.data.images import DataError
from andfast.data.pair_patches import PairPatches
from andfast.data.pairs import find_pairs

SCALE = 4


@pytest.fixture
def pairs(tmp_path):
    """Three pairs whose HR image repeats each pixel of the LR image; red says which pair it is."""
    random = np.random.default_rng(0)
    for folder in ("HR", "LR"):
        (tmp_path / folder).mkdir()
    for index, (height, width) in enumerate([(10, 14), (8, 8), (9, 20)]):
        low = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        low[..., 0] = index
        Image.fromarray(low).save(tmp_path / "LR" / f"{index}.png")
        Image.fromarray(low.repeat(SCALE, axis=0).repeat(SCALE, axis=1)).save(tmp_path / "HR" / f"{index}.png")
    return find_pairs(tmp_path, SCALE)


def make(pairs, **options):
    return PairPatches(pairs, **({"scale": SCALE, "patch": 32, "batch": 2, "seed": 1} | options))


def test_both_patches_are_of_one_place_flipped_and_turned_alike(pairs):
    patches = make(pairs)
    seen = set()
    for step in range(24):
        hr, lr = patches(step)
        assert hr.shape == (2, 3, 32, 32)
        assert lr.shape == (2, 3, 8, 8)
        assert hr.dtype == lr.dtype == torch.uint8
        assert torch.equal(hr, lr.repeat_interleave(SCALE, dim=2).repeat_interleave(SCALE, dim=3))
        seen |= {patch.numpy().tobytes() for patch in lr}
    # The one of 8 x 8 pixels has 8 views; the others have more.
    assert len(seen) > 24


def test_every_pair_is_seen_once_an_epoch(pairs):
    patches = make(pairs, batch=3)
    for step in range(4):
        _, lr = patches(step)
        assert sorted(lr[:, 0].float().mean(dim=(1, 2)).tolist()) == [0, 1, 2]


def test_a_batch_is_a_function_of_the_seed_and_the_step(pairs):
    one, other, third = make(pairs), make(pairs, cache_mib=0), make(pairs, seed=2)
    for step in (5, 0, 3):
        assert all(torch.equal(*both) for both in zip(one(step), other(step), strict=True))
    assert not torch.equal(one(0)[1], third(0)[1])


def test_without_flips_and_turns_patches_lie_in_their_images(pairs):
    patches = make(pairs, flip=False, rotate=False)
    images = [np.asarray(Image.open(pair.lr)) for pair in pairs]
    for step in range(6):
        for patch in patches(step)[1].permute(0, 2, 3, 1).numpy():
            windows = np.lib.stride_tricks.sliding_window_view(images[patch[0, 0, 0]], (8, 8, 3))
            assert (windows == patch).all(axis=(-1, -2, -3)).any()


def test_pairs_of_rounded_sizes_are_aligned_too(pairs):
    whole = make(pairs)
    for pair, (more, less) in zip(pairs, [((3, 2), (0, 0)), ((0, 1), (0, 0)), ((0, 0), (1, 3))], strict=True):
        hr = np.array(Image.open(pair.hr))
        hr = np.pad(hr, ((0, more[0]), (0, more[1]), (0, 0)))[: len(hr) + more[0] - less[0], : -less[1] or None]
        Image.fromarray(hr).save(pair.hr)
    cut = find_pairs(pairs[0].hr.parents[1], SCALE)
    assert [pair.cut for pair in cut] == [True] * 3
    patches = make(cut)
    for step in range(12):
        hr, lr = patches(step)
        assert torch.equal(hr, lr.repeat_interleave(SCALE, dim=2).repeat_interleave(SCALE, dim=3))
    # The one whose LR image was rounded up shows a row and a column less; the others are as they were.
    assert [patches._read(2 * index + 1).shape[:2] for index in range(3)] == [(10, 14), (8, 8), (8, 19)]
    assert all((patches._read(index) == whole._read(index)).all() for index in range(1, 4, 2))


def test_pairs_smaller_than_a_patch_are_named(pairs):
    with pytest.raises(DataError, match=r"1\.png: 32 x 32 pixels, smaller than the 36 x 36 wanted"):
        make(pairs, patch=36)


def test_a_pair_that_cannot_be_read_is_named(pairs):
    patches = make(pairs, batch=3)
    pairs[2].lr.write_bytes(pairs[2].lr.read_bytes()[:60])
    with pytest.raises(DataError, match=r"LR.2\.png"):
        patches(0)
