"""One layer of the degradation network, against naive NumPy and SciPy in float64."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from andfast.ops.degradation_block import degradation_block, split_conv


def convolve(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(B, in, H, W) and (out, in, 3, 3) -> (B, out, H, W), the border replicated, one image plane at a time."""
    y = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:]))
    for image, planes in enumerate(x):
        for out, kernels in enumerate(weight):
            for plane, kernel in zip(planes, kernels, strict=True):
                y[image, out] += ndimage.correlate(plane, kernel, mode="nearest")
    return y


def summed(centre: Tensor, deviation: Tensor) -> np.ndarray:
    weight = deviation.detach().double().numpy().copy()
    weight[:, :, 1, 1] += centre.detach().double().numpy()
    return weight


def make(
    size: tuple[int, int] = (6, 5), channels: tuple[int, int] = (3, 4), seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, centre, deviation and bend in float64; x of both signs."""
    generator = torch.Generator().manual_seed(seed)
    into, out = channels
    x = torch.randn(2, into, *size, generator=generator, dtype=torch.float64)
    centre = torch.randn(out, into, generator=generator, dtype=torch.float64) * 0.5
    deviation = torch.randn(out, into, 3, 3, generator=generator, dtype=torch.float64) * 0.2
    return x, centre, deviation, torch.tensor(-0.3, dtype=torch.float64)


def make_noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 0.3


# A map (one value a pixel), and strength times field (a value of its own everywhere).
NOISE_SHAPES = [(1, 6, 5), (2, 4, 6, 5)]


@pytest.mark.parametrize("size", [(6, 5), (1, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("channels", [(3, 4), (4, 3), (1, 1)])
def test_split_conv_is_scipy_s(size, channels):
    x, centre, deviation, _ = make(size, channels)
    expected = convolve(x.numpy(), summed(centre, deviation))
    np.testing.assert_allclose(split_conv(x, centre, deviation).numpy(), expected, atol=1e-13)
    single = split_conv(x.float(), centre.float(), deviation.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, atol=3e-6)


@pytest.mark.parametrize("shape", NOISE_SHAPES)
@pytest.mark.parametrize("bend", [0.0, -0.3, -1.0, -1.5, 0.4])
def test_block_is_conv_then_leaky_relu_then_noise(shape, bend):
    x, centre, deviation, _ = make()
    noise = make_noise(shape)
    y = convolve(x.numpy(), summed(centre, deviation))
    expected = np.where(y < 0, (1 + bend) * y, y) + noise.numpy()
    assert (y < 0).any()
    assert (y > 0).any()
    found = degradation_block(x, centre, deviation, torch.tensor(bend, dtype=torch.float64), noise)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-13)


def test_arguments_are_left_alone():
    x, centre, deviation, bend = make()
    arguments = (x, centre, deviation, bend, make_noise((1, 6, 5)))
    before = [argument.clone() for argument in arguments]
    degradation_block(*arguments)
    for argument, copy in zip(arguments, before, strict=True):
        assert torch.equal(argument, copy)


def test_memory_format_is_kept():
    x, centre, deviation, bend = make()
    last = x.contiguous(memory_format=torch.channels_last)
    found = degradation_block(last, centre, deviation, bend, make_noise((1, 6, 5)))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, degradation_block(x, centre, deviation, bend, make_noise((1, 6, 5))))


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 2, 3, 4)])
def test_gradients_of_all_arguments(shape):
    x, centre, deviation, bend = make((3, 4), (3, 2))
    arguments = [argument.requires_grad_() for argument in (x, centre, deviation, bend, make_noise(shape))]
    assert torch.autograd.gradcheck(degradation_block, arguments)
    bend_zero = torch.zeros((), dtype=torch.float64, requires_grad=True)  # where every attack starts
    assert torch.autograd.gradcheck(degradation_block, [x, centre, deviation, bend_zero, arguments[4]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_keep_small_deviations(dtype):
    """A deviation far below the centre's resolution survives beside the centre; added to it, it is lost.

    The centres are +1/8 and -1/8 and all channels of x are equal, so that the centre's part of the result is exactly
    zero and what the deviation alone does can be seen. Its taps sum to zero: on a flat image it must do nothing.
    """
    into, out, size = 16, 8, 12
    generator = torch.Generator().manual_seed(0)
    centre = torch.full((out, into), 0.125)
    centre[:, ::2] *= -1
    deviation = torch.randn(out, into, 3, 3, generator=generator)
    deviation -= deviation.mean(dim=(2, 3), keepdim=True)
    deviation *= 0.02 * torch.finfo(dtype).eps  # a centre of 1/8 has steps of eps / 8
    flat, edge = torch.ones(1, into, size, size), torch.ones(1, into, size, size)
    edge[..., : size // 2] = 0
    exact = convolve(edge.double().numpy(), deviation.double().numpy())
    size_of_effect = np.abs(exact).max()

    split = [split_conv(x.to(dtype), centre.to(dtype), deviation.to(dtype)).double().numpy() for x in (edge, flat)]
    assert np.abs(split[0] - exact).max() < 0.02 * size_of_effect
    assert np.abs(split[1]).max() < 0.02 * size_of_effect

    rounded = torch.from_numpy(summed(centre, deviation)).to(dtype).double().numpy()
    lossy = [convolve(x.double().numpy(), rounded) for x in (edge, flat)]
    assert np.abs(lossy[0] - exact).max() > 0.2 * size_of_effect
    assert np.abs(lossy[1]).max() > 0.2 * size_of_effect
