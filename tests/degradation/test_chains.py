"""BSRGAN's and Real-ESRGAN's degradation as wholes."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from adversaries import seeded
from torch import Tensor

from andfast.attack.base import bicubic_downsample
from andfast.data.photographs import held_out_photographs
from andfast.data.tensors import to_tensor
from andfast.degradation import BSRGANSettings, RealESRGANSettings, bsrgan, jpeg, real_esrgan
from andfast.degradation.chain import Draws
from andfast.degradation.real_esrgan import _blur_kernels, _final_kernels
from andfast.metrics import psnr

CHAINS = [bsrgan, real_esrgan]
# Every s-th pixel, without blur, noise, and compression.
SHARP = BSRGANSettings(
    halve_first=0, anisotropic=0, sigma=(0, 0), resize_down=0, strided_sigma=(0.5, 0), noise=(0, 0), noise_colour=1,
    noise_grey=0, jpeg_inside=0, jpeg_quality=(100, 100),
)  # fmt: skip


def photograph(size: tuple[int, int] = (64, 64)) -> Tensor:
    image = dict(held_out_photographs())["astronaut"]
    return to_tensor(np.ascontiguousarray(image[40 : 40 + size[0], 180 : 180 + size[1]]))


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize(
    ("scale", "size"),
    [(4, (64, 64)), (2, (36, 58)), (3, (33, 48)), (4, (8, 12)), (4, (4, 4)), (8, (64, 40)), (8, (8, 8)), (1, (33, 20)),
     (1, (2, 1))],
)  # fmt: skip
def test_any_draw_gives_lr_images(chain, scale, size):
    hr = photograph(size).repeat(3, 1, 1, 1)
    for seed in range(15):
        lr = chain(hr, scale, seeded(seed))
        assert lr.shape == (3, 3, size[0] // scale, size[1] // scale)
        assert lr.dtype == torch.float32
        assert lr.isfinite().all()
        assert lr.min() >= 0
        assert lr.max() <= 1
        torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("chain", CHAINS)
def test_draws_follow_the_generator_alone(chain):
    hr = photograph().repeat(2, 1, 1, 1)
    before = torch.get_rng_state()
    generator = seeded(3)
    first, second = chain(hr, 4, generator), chain(hr, 4, generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(chain(hr, 4, seeded(3)), first)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])  # every image its own
    torch.manual_seed(0)
    drawn = chain(hr, 4)
    torch.manual_seed(0)
    assert torch.equal(chain(hr, 4), drawn)


@pytest.mark.parametrize("chain", CHAINS)
def test_images_stay_where_they_are(chain):
    """A degradation that moved images by half a pixel would teach a generator to move them back."""
    hr = photograph((96, 96)).repeat(8, 1, 1, 1)
    mean = torch.stack([chain(hr, 4, seeded(seed)) for seed in range(24)]).mean(dim=(0, 1))
    clean = bicubic_downsample(hr[:1], 4)[0]
    # The mean of many draws is a blurred image, and lies nearest to the clean one where it is.
    shifted = {
        (down, right): psnr(mean[None, :, 4:-4, 4:-4], clean.roll((down, right), (1, 2))[None, :, 4:-4, 4:-4]).item()
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    }
    assert max(shifted, key=shifted.get) == (0, 0)
    for axis in ((1, 0), (0, 1)):
        forth, back = shifted[axis], shifted[tuple(-step for step in axis)]
        assert abs(forth - back) < 1.0


@pytest.mark.parametrize("chain", CHAINS)
def test_what_is_not_a_multiple_of_the_scale_is_refused(chain):
    with pytest.raises(ValueError, match=r"hr has shape \(1, 3, 62, 64\).* multiples of the scale, 4"):
        chain(photograph((62, 64)), 4)


def test_bsrgan_without_blur_and_noise_is_a_resized_jpeg():
    settings = dataclasses.replace(SHARP, jpeg_quality=(90, 90))
    flat = torch.tensor([0.2, 0.5, 0.7])[:, None, None].expand(1, 3, 32, 32)
    found = bsrgan(flat, 4, seeded(), settings)
    torch.testing.assert_close(found, jpeg(flat[:, :, :8, :8], torch.tensor([90])))


def test_bsrgan_s_taken_pixels_are_centred():
    """Every s-th pixel of blurred images: a ramp comes out as its means."""
    settings = dataclasses.replace(SHARP, strided_sigma=(0.5, 0.125))
    ramp = torch.linspace(0, 1, 128).expand(1, 3, 128, 128)
    for seed in range(4):
        lr = bsrgan(ramp, 4, seeded(seed), settings)
        expected = ramp.reshape(1, 3, 32, 4, 32, 4).mean(dim=(3, 5))
        torch.testing.assert_close(lr[..., 5:-5], expected[..., 5:-5], atol=1.5 / 255, rtol=0)


def test_real_esrgan_s_kernels_come_as_often_as_published():
    """Of many kernels: a sinc has negative weights, an isotropic one is its own transpose."""
    count = 4000
    draws = Draws(count, torch.device("cpu"), seeded())
    settings = RealESRGANSettings()
    kernels = _blur_kernels(settings.first, settings.ringing_cutoff, draws)
    torch.testing.assert_close(kernels.sum(dim=(1, 2)), torch.ones(count), atol=1e-4, rtol=0)
    rings = (kernels < -1e-6).any(dim=2).any(dim=1)
    assert rings.float().mean() == pytest.approx(0.1, abs=0.02)
    isotropic = (kernels - kernels.mT).abs().amax(dim=(1, 2)) < 1e-5
    # 0.9 of 0.69 isotropic ones, and the ringing ones, which are isotropic all.
    assert isotropic.float().mean() == pytest.approx(0.9 * 0.69 + 0.1, abs=0.04)
    widths = (kernels[:, 10] != 0).sum(dim=1)[rings]
    assert set(widths.tolist()) <= {7, 9, 11, 13, 15, 17, 19, 21}
    final = _final_kernels(settings, draws)
    untouched = final[:, 10, 10] == 1
    assert untouched.float().mean() == pytest.approx(0.2, abs=0.03)


def test_the_published_numbers_are_those_of_a_whole():
    first = RealESRGANSettings().first
    families = [value for name, value in dataclasses.asdict(first).items() if name.endswith("isotropic")]
    assert math.fsum(families) == pytest.approx(1)
    assert len(families) == 6


def test_host_draws_follow_the_generator_and_go_on_with_it():
    generator = seeded(1)
    first, second = (Draws(2, torch.device("cpu"), generator).host.random() for _ in range(2))
    assert first != second
    assert Draws(2, torch.device("cpu"), seeded(1)).host.random() == first


def test_whole_numbers_are_drawn_up_to_both_ends():
    drawn = Draws(3000, torch.device("cpu"), seeded()).integers(2, 5)
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == [2, 3, 4, 5]
    assert counts.min() > 650


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("chain", CHAINS)
def test_on_a_gpu_nothing_waits_for_it(chain):
    hr = photograph().repeat(4, 1, 1, 1).cuda()
    chain(hr, 4, torch.Generator("cuda").manual_seed(0))  # tables that are made once
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [chain(hr, 4, torch.Generator("cuda").manual_seed(seed)) for seed in range(10)]
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert all(lr.isfinite().all() for lr in results)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_jpeg_on_a_gpu_is_that_on_the_cpu():
    images, quality = photograph((64, 80)).repeat(3, 1, 1, 1), torch.tensor([20, 60, 95])
    assert (psnr(jpeg(images.cuda(), quality.cuda()).cpu(), jpeg(images, quality)) > 45).all()
