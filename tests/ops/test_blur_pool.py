"""The anti-aliased pooling, against SciPy in float64."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from andfast.ops.blur_pool import blur_pool, pooling_taps

SCALES = (2, 3, 4, 8)


pytestmark = pytest.mark.usefixtures("default_and_reference")


def expected_taps(scale: int) -> np.ndarray:
    return np.convolve(np.full(scale, 1 / scale), np.array([1.0, 2.0, 1.0]) / 4)


def pool(image: np.ndarray, scale: int) -> np.ndarray:
    """Blur the rows and columns of (..., H, W) at full resolution in float64, then keep one pixel in `scale`.

    SciPy's "mirror" is the reflection that does not repeat the border. Its centre of an even kernel lies at
    index n // 2, so that the window of output i, which starts at pixel i * scale - 1, has its centre at
    i * scale - 1 + (scale + 2) // 2.
    """
    result = np.asarray(image, dtype=np.float64)
    for axis in (-2, -1):
        result = ndimage.correlate1d(result, expected_taps(scale), axis=axis, mode="mirror")
    first = (scale + 2) // 2 - 1
    return result[..., first::scale, first::scale]


def random_image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", SCALES)
def test_taps(scale):
    np.testing.assert_allclose(pooling_taps(scale), expected_taps(scale), rtol=1e-15)
    assert sum(pooling_taps(scale)) == pytest.approx(1, abs=1e-15)


def test_scale_2_is_the_published_kernel():
    assert pooling_taps(2) == (1 / 8, 3 / 8, 3 / 8, 1 / 8)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("blocks", [(1, 1), (1, 4), (3, 5), (8, 7)])
def test_is_scipy_s(scale, blocks):
    image = random_image(2, 3, blocks[0] * scale, blocks[1] * scale)
    expected = pool(image.numpy(), scale)
    assert expected.shape == (2, 3, *blocks)
    double, single = blur_pool(image, scale), blur_pool(image.float(), scale)
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    np.testing.assert_allclose(double.numpy(), expected, atol=1e-14)
    np.testing.assert_allclose(single.numpy(), expected, atol=3e-7)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("axis", [-2, -1])
def test_a_ramp_keeps_its_place(scale, axis):
    """The value of an LR pixel is that of the ramp in the middle of the HR pixels it stands for."""
    blocks = 6
    ramp = torch.arange(blocks * scale, dtype=torch.float64)
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    pooled = blur_pool(ramp.view(shape).expand(1, 1, blocks * scale, blocks * scale), scale)
    middles = np.arange(blocks) * scale + (scale - 1) / 2
    found = pooled.movedim(axis, -1)[0, 0].numpy()
    np.testing.assert_allclose(found[:, 1:-1], np.broadcast_to(middles[1:-1], (blocks, blocks - 2)), atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_a_constant_stays_one_up_to_the_border(scale):
    pooled = blur_pool(torch.full((1, 2, 3 * scale, 4 * scale), 0.7, dtype=torch.float64), scale)
    np.testing.assert_allclose(pooled.numpy(), 0.7, rtol=1e-14)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_rounded_once(scale, dtype):
    image = random_image(1, 3, 8 * scale, 8 * scale).to(dtype)
    pooled = blur_pool(image, scale)
    assert pooled.dtype == dtype
    expected = pool(image.double().numpy(), scale)
    # Half a unit in the last place, and float32's error where a value lies on the edge between two.
    half_ulp = expected * torch.finfo(dtype).eps / 2 + 1e-6
    assert (np.abs(pooled.double().numpy() - expected) <= half_ulp).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_format_is_kept(dtype):
    image = random_image(2, 4, 12, 8).to(dtype)
    last = image.contiguous(memory_format=torch.channels_last)
    assert blur_pool(image, 4).is_contiguous()
    assert blur_pool(last, 4).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(blur_pool(last, 4), blur_pool(image, 4))


@pytest.mark.parametrize("scale", SCALES)
def test_gradient(scale):
    image = random_image(1, 2, 2 * scale, 3 * scale).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: blur_pool(x, scale), image)


@pytest.mark.parametrize("size", [(9, 8), (8, 10)])
def test_sizes_that_do_not_divide_are_named(size):
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]}.*multiples of the scale, 4"):
        blur_pool(torch.zeros(1, 1, *size), 4)


def test_a_scale_of_one_changes_nothing():
    image = random_image(1, 3, 1, 5)
    assert blur_pool(image, 1) is image


def test_a_scale_of_zero_is_refused():
    with pytest.raises(ValueError, match="scale is 0; it must be at least 1"):
        blur_pool(torch.zeros(1, 3, 8, 8), 0)
