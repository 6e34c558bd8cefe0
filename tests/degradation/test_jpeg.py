"""JPEG against Pillow's, which is libjpeg's.

Over the larger cases below ours lies 42.9 to 58.0 dB from Pillow's result, and its distance to the original differs by
at most 0.07 dB: Pillow computes the DCT and colours in whole numbers, which tips coefficients that lie halfway between
two steps. In 16 x 9 pixels one such coefficient is a noticeable part; there the least is 39.1 dB.
"""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from andfast.data.tensors import to_array, to_tensor
from andfast.degradation.jpeg import jpeg, quantisation_tables


def encoded(image: np.ndarray, quality: int) -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=quality)
    return Image.open(file)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.mean((one.astype(float) - other) ** 2), 1e-9))


QUALITIES = [10, 30, 50, 75, 90, 95, 100]


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
@pytest.mark.parametrize("size", [(128, 128), (77, 93), (16, 9)])
def test_it_is_pillow_s(name, size):
    image = np.ascontiguousarray(getattr(data, name)()[100 : 100 + size[0], 100 : 100 + size[1]])
    found = jpeg(to_tensor(image).repeat(len(QUALITIES), 1, 1, 1), torch.tensor(QUALITIES))
    for one, quality in zip(found, QUALITIES, strict=True):
        expected, ours = np.asarray(encoded(image, quality).convert("RGB")), to_array(one)
        large = min(size) > 64
        assert psnr(ours, expected) > (40 if large else 37)
        if large:
            assert abs(psnr(ours, image) - psnr(expected, image)) < 0.1


@pytest.mark.parametrize("quality", [1, 10, 29, 49, 50, 51, 75, 90, 100])
def test_tables_are_pillow_s(quality):
    tables = encoded(np.zeros((8, 8, 3), np.uint8), quality).quantization
    for found, expected in zip(quantisation_tables(torch.tensor([quality])), tables.values(), strict=True):
        assert found[0].tolist() == list(expected)


def test_results_are_whole_levels_and_fractions_of_quality_are_dropped():
    image = torch.rand(2, 3, 20, 20)
    found = jpeg(image, torch.tensor([40.0, 40.9]))
    torch.testing.assert_close(found * 255, (found * 255).round(), atol=1e-4, rtol=0)
    assert torch.equal(found, jpeg(image, torch.tensor([40, 40])))


def test_gradients_pass_as_if_nothing_was_rounded():
    """Without rounding all of it but the subsampling of chroma is the identity, so a grey image's gradient is too."""
    image = torch.full((1, 3, 16, 16), 0.5).requires_grad_()
    weights = torch.randn(1, 1, 16, 16)
    found = jpeg(image, torch.tensor([80]))
    (gradient,) = torch.autograd.grad((found * weights).sum(), image)
    # The same weight on all channels asks for brightness alone.
    torch.testing.assert_close(gradient.sum(dim=1, keepdim=True), 3 * weights, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.detach(), jpeg(image.detach(), torch.tensor([80])), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("shape", "count", "message"),
    [
        ((3, 8, 8), 1, "images have shape (3, 8, 8); wanted (B, 3, H, W)"),
        ((1, 1, 8, 8), 1, "images have shape (1, 1, 8, 8)"),
        ((1, 3, 0, 8), 1, "images have shape (1, 3, 0, 8)"),
        ((2, 3, 8, 8), 1, "quality has shape (1,); wanted one an image, (2,)"),
    ],
)
def test_what_does_not_fit_is_named(shape, count, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jpeg(torch.rand(shape), torch.full((count,), 50.0))
