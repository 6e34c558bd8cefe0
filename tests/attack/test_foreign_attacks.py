"""What others train with as attacks, and the paper's random style shift."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adversaries import Upsampler, make, photographs, seeded
from torch import Tensor

from andfast.attack import BSRGAN, Bicubic, RealESRGAN, StyleShift
from andfast.attack.base import bicubic_downsample
from andfast.attack.pgd import xavier_deviation
from andfast.degradation import bsrgan, real_esrgan
from andfast.degradation.network import DegradationNetwork
from andfast.losses import l1_objective
from andfast.ops import scaled_norm
from andfast.ops.blur_pool import blur_pool
from andfast.ops.theta_layout import ScaleFactors


@pytest.mark.parametrize(("attack", "chain"), [(BSRGAN(), bsrgan), (RealESRGAN(), real_esrgan)])
def test_a_chain_as_an_attack_is_the_chain(attack, chain):
    hr = photographs()
    result = attack(make(2), hr, lambda lr, hr: pytest.fail("there is no pass through G"), seeded(5))
    assert torch.equal(result.lr, chain(hr, 2, seeded(5)))
    difference = (result.lr - bicubic_downsample(hr, 2)).double()
    np.testing.assert_allclose(result.distance, difference.flatten(1).norm(dim=1), rtol=1e-5)
    np.testing.assert_allclose(result.lr_psnr, -10 * difference.square().mean(dim=(1, 2, 3)).log10(), rtol=1e-5)
    assert result.delta is result.theta is result.loss_before is result.loss_after is None


@pytest.mark.parametrize("attack", [BSRGAN(), RealESRGAN(), Bicubic()])
def test_the_margin_does_not_change_them(attack):
    hr = photographs()
    one, other = (attack(make(), hr, lambda lr, hr: None, seeded(5), margin_db) for margin_db in (0.0, 20.0))
    assert torch.equal(one.lr, other.lr)


def kernels(network: DegradationNetwork, theta: Tensor) -> list[Tensor]:
    return [segment.view(theta).unflatten(-1, (3, 3)) for segment in network.layout.conv]


def test_a_style_s_kernels_are_xavier_s():
    network = make(3, channels=32)
    theta = network.theta_id + network.layout.to_taps(xavier_deviation(network, seeded(1)))
    for kernel in kernels(network, theta):
        out, into = kernel.shape[1:3]
        assert kernel.std().item() == pytest.approx((2 / (9 * (out + into))) ** 0.5, rel=0.06)
        # No identity: the centre is a tap as any other.
        assert kernel[..., 1, 1].std().item() == pytest.approx(kernel[..., 0, 2].std().item(), rel=0.25)
    for segment in network.layout.slope:
        assert (segment.view(theta) == 1).all()
    for segment in network.layout.noise:
        assert (segment.view(theta) == 0).all()


def test_a_style_s_images_are_those_of_plain_convolutions():
    network, hr = make(1), photographs()
    attack = StyleShift(steps=1, epsilon=1e-9)
    result = attack(network, hr, l1_objective(Upsampler(2)), seeded(1))
    x = hr
    convolutions = kernels(network, result.theta)
    for layer, kernel in enumerate(convolutions):
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel[0])
        if layer == network.blocks - 1:
            x = blur_pool(x, 2)
    torch.testing.assert_close(result.lr, x.clamp(0, 1), atol=1e-4, rtol=0)
    # "No longer visually similar" (Sec 4.5).
    assert result.lr_psnr.item() < 20


def test_a_style_climbs_in_a_ball_around_its_random_network():
    network, hr = make(2), photographs()
    attack = StyleShift(steps=4, epsilon=0.3)
    result = attack(network, hr, l1_objective(Upsampler(2)), seeded(1))
    assert (result.loss_after > 1.01 * result.loss_before).all()
    start = xavier_deviation(network, seeded(1))
    moved = scaled_norm(result.delta - start, attack.inv_scale(network))
    assert (moved <= 0.3 * 1.001).all()
    assert (moved > 0.05).all()
    assert (result.distance > 1).all()
    assert (result.budget_db == -torch.inf).all()


def test_a_style_keeps_the_factors():
    network, hr = make(1), photographs()
    attack = StyleShift(steps=2, scale_factors=ScaleFactors(noise=torch.inf))
    result = attack(network, hr, l1_objective(Upsampler(2)), seeded(1))
    for segment in network.layout.noise:
        assert (segment.view(result.delta) == 0).all()
