"""The Gaussian field: published test vectors, an implementation in Python's own integers, and statistics."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from andfast.ops.noise import gaussian_field, philox

# Random123's kat_vectors for philox4x32, 10 rounds: counter, key, result.
PUBLISHED = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
SEED = torch.tensor(0x0123_4567_89AB_CDEF)


pytestmark = pytest.mark.usefixtures("default_and_reference")


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


def philox_of_ints(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Salmon et al., Sec 3.3, in Python's unbounded integers."""
    left0, right0, left1, right1 = counter
    for turn in range(10):
        key0 = (key[0] + turn * 0x9E3779B9) % 2**32
        key1 = (key[1] + turn * 0xBB67AE85) % 2**32
        high0, low0 = divmod(0xD2511F53 * left0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * left1, 2**32)
        left0, right0, left1, right1 = high1 ^ right0 ^ key0, low1, high0 ^ right1 ^ key1, low0
    return left0, right0, left1, right1


def field_of_ints(seed: int, layer: int, images: int, pixels: int) -> np.ndarray:
    """(images, pixels) float64, pixel by pixel."""
    field = np.empty((images, pixels))
    for image in range(images):
        for pixel in range(pixels):
            drawn = philox_of_ints((pixel // 4, image, layer, 0), (seed % 2**32, seed // 2**32))
            pair = drawn[:2] if pixel % 4 < 2 else drawn[2:]
            u, v = ((word + 0.5) / 2**32 for word in pair)
            turned = math.sin if pixel % 2 else math.cos
            field[image, pixel] = math.sqrt(-2 * math.log(u)) * turned(2 * math.pi * v)
    return field


@pytest.mark.parametrize(("counter", "key", "result"), PUBLISHED)
def test_philox_is_the_published_one(counter, key, result):
    assert tuple(int(word) for word in philox(words(counter), words(key))) == words(result)
    assert philox_of_ints(words(counter), words(key)) == words(result)


def test_philox_of_tensors_is_that_of_integers():
    drawn = torch.randint(0, 2**32, (6, 50), generator=torch.Generator().manual_seed(0))
    found = torch.stack(philox(tuple(drawn[:4]), tuple(drawn[4:])), dim=1)
    expected = [philox_of_ints(tuple(row[:4]), tuple(row[4:])) for row in drawn.T.tolist()]
    assert found.tolist() == [list(row) for row in expected]


def test_philox_broadcasts():
    left, right = torch.arange(3)[:, None], torch.arange(4)
    found = philox((left, right, 7, 0), (1, 2))
    assert all(word.shape == (3, 4) for word in found)
    assert tuple(int(word[2, 3]) for word in found) == philox_of_ints((2, 3, 7, 0), (1, 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 3), (5, 7), (4, 4)])
@pytest.mark.parametrize("seed", [0, 0x0123_4567_89AB_CDEF, 2**63 - 1])
def test_field_is_box_and_muller_s_of_philox(size, seed):
    field = gaussian_field(torch.tensor(seed), 3, 2, size)
    assert field.dtype == torch.float32
    assert field.shape == (2, 1, *size)
    expected = field_of_ints(seed, 3, 2, size[0] * size[1])
    # Compiled code turns the words into float32 angles, which round to 4e-7 at most, times a radius of up to 6.7.
    np.testing.assert_allclose(field.flatten(1).numpy(), expected, rtol=1e-6, atol=3e-6)


def test_field_is_a_pure_function_of_its_arguments():
    first = gaussian_field(SEED, 2, 3, (9, 5))
    torch.rand(7)
    assert torch.equal(gaussian_field(SEED.clone(), 2, 3, (9, 5)), first)
    # An image's values depend on its number alone, a pixel's on its row-major number alone: not on how many follow.
    assert torch.equal(gaussian_field(SEED, 2, 1, (9, 5)), first[:1])
    assert torch.equal(gaussian_field(SEED, 2, 3, (4, 5)), first[:, :, :4])
    assert torch.equal(gaussian_field(SEED, 2, 3, (1, 7)).flatten(1), first.flatten(1)[:, :7])
    # So a narrower field is no crop of a wider one.
    assert not torch.equal(gaussian_field(SEED, 2, 3, (9, 4)), first[..., :4])


def test_fields_of_other_layers_images_and_seeds_are_unrelated():
    pixels = (64, 64)
    fields = [
        *gaussian_field(SEED, 0, 3, pixels),
        gaussian_field(SEED, 1, 1, pixels),
        gaussian_field(SEED, 9, 1, pixels),
        gaussian_field(SEED + 1, 0, 1, pixels),  # the seed's lower word
        gaussian_field(SEED + 2**32, 0, 1, pixels),  # and its upper one
    ]
    correlation = np.corrcoef(torch.stack([field.flatten() for field in fields]).numpy())
    assert np.abs(correlation - np.eye(len(fields))).max() < 5 / 64  # five standard deviations


def test_field_is_normal_and_white():
    field = gaussian_field(SEED, 4, 2, (255, 257)).double().numpy()
    values = field.ravel()
    assert stats.kstest(values, "norm").pvalue > 0.01
    count = values.size
    assert abs(values.mean()) < 4 / count**0.5
    assert abs(values.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs(stats.kurtosis(values)) < 4 * (24 / count) ** 0.5
    for lag in (1, 2, 3, 4):  # the four values of one draw, and the next draw
        assert abs((field[..., lag:] * field[..., :-lag]).mean()) < 4 / count**0.5
    squares = values**2 - 1  # Box and Muller's pairs share a radius
    for lag in (1, 2, 3):
        assert abs((squares[lag:] * squares[:-lag]).mean()) < 4 * 2 / count**0.5


def test_everything_happens_on_the_device_of_the_seed():
    field = gaussian_field(torch.zeros((), dtype=torch.int64, device="meta"), 0, 2, (3, 5))
    assert field.device.type == "meta"
    assert field.shape == (2, 1, 3, 5)
