"""The Gaussian field, value by value."""

import pytest
import torch
import triton
import triton.language as tl

from andfast.ops.backends.triton.noise import cosine_of, gaussian_field, radius_of
from andfast.ops.noise import gaussian_field as reference


@pytest.mark.parametrize(("images", "size"), [(1, (1, 1)), (3, (3, 3)), (2, (1, 9)), (1, (40, 33))])
def test_field(images, size, device):
    seeds = torch.tensor([0x0123_4567_89AB_CDEF, 2**63 - 1], device=device)
    for layer in (1, 9):
        field = gaussian_field(seeds, layer, images, size)
        assert field.dtype == torch.float32
        expected = torch.cat([reference(seed, layer, images, size) for seed in seeds])
        torch.testing.assert_close(field, expected.squeeze(1), rtol=0, atol=2e-6)
    assert torch.equal(field, gaussian_field(seeds, 9, images, size))


def _parts(words_ptr, radius_ptr, cosine_ptr, COUNT: tl.constexpr):  # noqa: N803
    index = tl.arange(0, COUNT)
    word = tl.load(words_ptr + index).to(tl.uint32)
    tl.store(radius_ptr + index, radius_of(word))
    tl.store(cosine_ptr + index, cosine_of(word, 0))
    tl.store(cosine_ptr + COUNT + index, cosine_of(word, 3))


def test_parts_of_extreme_words(device):
    """The radius keeps its digits at both ends, the angle at all turns of the quadrant."""
    corners = torch.tensor([i * 2**29 for i in range(9)])
    words = (corners[:, None] + torch.tensor([-70000, -300, -3, -2, -1, 0, 1, 2, 3, 300])).flatten().clamp(0, 2**32 - 1)
    words = torch.nn.functional.pad(words, (0, 128 - len(words)), value=12345).to(device)
    radius, cosine = (torch.empty(count, 128, device=device) for count in (1, 2))
    triton.jit(_parts)[(1,)](words, radius, cosine, COUNT=128)
    turn = (words.double() + 0.5) / 2**32
    torch.testing.assert_close(radius[0].double(), (-2 * turn.log()).sqrt(), rtol=4e-7, atol=0)
    angle = 2 * torch.pi * turn
    torch.testing.assert_close(cosine.double(), torch.stack([angle.cos(), angle.sin()]), rtol=0, atol=1.5e-7)


def test_no_pixels(device):
    assert gaussian_field(torch.zeros(2, dtype=torch.int64, device=device), 0, 0, (2, 2)).shape == (0, 2, 2)
