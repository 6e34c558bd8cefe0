"""The kernel between an HR and an LR image: found again where it is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.degradation.camera import gaussian_blur
from andfast.ops.blur_pool import blur_pool
from studies.camera_kernels import MARGIN, Kernel, KernelFit, inside, pooling_kernel, skipped


def noise(size: int, seed: int = 0) -> Tensor:
    return torch.rand(3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def convolved(hr: Tensor, taps: Tensor, offset: float, scale: int) -> Tensor:
    """LR by SciPy-like definition: a padded convolution, sampled at the middles of the LR pixels."""
    margin = (len(taps) - scale) // 2
    padded = F.pad(hr[:, None], (margin,) * 4, mode="replicate")
    return F.conv2d(padded, taps[None, None], stride=scale)[:, 0] + offset


def gaussian(sigma: float, shift: tuple[float, float] = (0.0, 0.0), scale: int = 4) -> Tensor:
    places = torch.arange(scale + 2 * MARGIN, dtype=torch.float64) - (scale + 2 * MARGIN - 1) / 2
    column, row = (torch.exp(-0.5 * ((places - each) / sigma) ** 2) for each in (shift[1], shift[0]))
    taps = torch.outer(column, row)
    return taps / taps.sum()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_known_kernel_is_found_again(scale):
    taps = 1.1 * gaussian(1.5, (0.4, -0.2), scale)
    hr = noise(40 * scale)
    fit = KernelFit(scale, ridge=0)
    fit.add(hr, convolved(hr, taps, -0.02, scale))
    kernel = fit.solve()
    torch.testing.assert_close(kernel.taps, taps, rtol=0, atol=1e-9)
    assert kernel.offset == pytest.approx(-0.02, abs=1e-9)
    assert kernel.gain == pytest.approx(1.1)
    assert kernel.shift == pytest.approx((0.4, -0.2), abs=0.01)
    assert kernel.width == pytest.approx((1.5, 1.5), abs=0.02)


def test_images_that_share_a_kernel_are_pooled():
    """Each image alone has fewer equations than taps."""
    taps = gaussian(2.0)
    fit = KernelFit(4, ridge=1e-9)
    for seed in range(8):
        hr = noise(48, seed)
        assert 3 * (12 - 2 * skipped(4)) ** 2 < taps.numel()
        fit.add(hr, convolved(hr, taps, 0.0, 4))
    torch.testing.assert_close(fit.solve().taps, taps, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_clean_image_has_the_poolings_kernel(scale):
    hr, expected = noise(32 * scale), pooling_kernel(scale)
    fit = KernelFit(scale)
    fit.add(hr, blur_pool(hr[None], scale)[0])
    torch.testing.assert_close(fit.solve().taps, expected.taps, rtol=0, atol=1e-9)
    torch.testing.assert_close(expected(hr), inside(blur_pool(hr[None], scale)[0], scale))
    # Box of s and [1, 2, 1] / 4: their variances add.
    assert expected.width == pytest.approx([((scale**2 - 1) / 12 + 0.5) ** 0.5] * 2)


def test_what_smooth_images_do_not_show_stays_the_poolings():
    """Without the ridge their kernel is anything; with it, a kernel that explains as much, and no more."""
    smooth = torch.from_numpy(gaussian_blur(noise(128).permute(1, 2, 0).numpy(), 4.0)).permute(2, 0, 1)
    noisy = blur_pool(smooth[None], 4)[0] + 1e-3 * torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for ridge in (1e-12, 0.03):
        fit = KernelFit(4, ridge=ridge)
        fit.add(smooth, noisy)
        found.append((fit.solve().taps - pooling_kernel(4).taps).norm())
    assert found[1] < 0.02 < found[0]


def test_the_response_is_the_contrast_that_stripes_keep():
    kernel = Kernel(gaussian(1.5), 0.0, 4)
    for nyquist in (0.25, 0.5, 1.0):
        wave = torch.cos(torch.pi * nyquist / 4 * (torch.arange(256, dtype=torch.float64) - 1.5))
        stripes = kernel((0.5 + 0.5 * wave).expand(3, 256, 256))[0, 0]
        # LR pixels lie on crests and troughs: 0, 8, 16... on crests, as the wave begins at the middle of the first.
        assert kernel.response(nyquist) == pytest.approx(np.ptp(stripes.numpy()), rel=1e-3)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 64, 64\) is not 4 times"):
        KernelFit(4).add(noise(64), noise(32))
    with pytest.raises(ValueError, match="too small"):
        KernelFit(4).add(noise(16), noise(4))
    flat = KernelFit(4)
    flat.add(torch.full((3, 64, 64), 0.5), torch.full((3, 16, 16), 0.5))
    with pytest.raises(ValueError, match="contrast"):
        flat.solve()
