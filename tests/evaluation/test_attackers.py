"""Adversaries that measure a model: within their budgets, and as strong as can be calculated."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.attack import AdversarialNoise
from andfast.attack.base import bicubic_downsample
from andfast.degradation.network import DegradationNetwork
from andfast.evaluation.attackers import ATTACKERS, FOUND, RANDOM, SHORT, Effort, luma_error
from andfast.metrics import psnr, psnr_y

SCALE = 4
EFFORT = Effort(steps=6, restarts=2, generations=2, population=4)


def nearest(lr: Tensor) -> Tensor:
    return F.interpolate(lr, scale_factor=SCALE, mode="nearest")


def photographs(count: int = 2, side: int = 32) -> Tensor:
    """Smooth images with an edge, which all cameras change."""
    torch.manual_seed(3)
    images = F.interpolate(torch.rand(count, 3, 6, 6), (side, side), mode="bicubic").clamp(0.2, 0.8)
    images[:, :, :, side // 2 :] *= 0.6
    return images


def found(name: str, budget: float, hr: Tensor, effort: Effort = EFFORT, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return ATTACKERS[name]()(luma_error(nearest, SCALE), hr, SCALE, budget, effort, rng)


@pytest.mark.parametrize("name", ATTACKERS)
@pytest.mark.parametrize("budget", [26.0, 40.0])
def test_images_are_within_the_budget_and_used_it(name: str, budget: float) -> None:
    hr = photographs()
    assert ATTACKERS[name]().name == name
    clean = bicubic_downsample(hr, SCALE) if name == "noise" else None
    if name.startswith("F"):
        network = DegradationNetwork(SCALE)
        network.reset_identity((32, 32))
        clean = network.clean(hr)
    elif clean is None:
        clean = F.avg_pool2d(hr, SCALE)
    images = found(name, budget, hr)
    assert images.keys() == {FOUND, SHORT, RANDOM}
    objective = luma_error(nearest, SCALE)
    for search, lr in images.items():
        assert lr.shape == clean.shape
        assert not lr.requires_grad
        assert 0 <= lr.min() <= lr.max() <= 1
        distance = psnr(lr, clean)
        assert (distance >= budget - 0.01).all()
        if name != "camera":  # whose settings may not reach it
            assert (distance < budget + 1.5).all()
        assert search != FOUND or (objective(lr, hr) > objective(clean, hr)).all()


def test_the_error_is_that_of_psnr_y() -> None:
    hr = (255 * photographs()).round() / 255
    lr = (255 * bicubic_downsample(hr, SCALE)).round() / 255
    error = luma_error(nearest, SCALE)(lr, hr)
    torch.testing.assert_close(
        (10 * torch.log10(255**2 / error)).double(), psnr_y(nearest(lr), hr, SCALE), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("restarts", [1, 2])
def test_noise_on_enlarged_pixels_is_the_worst_there_is(restarts: int) -> None:
    """It moves every pixel along luma's weights w: the error is then |w|^2 times its mean square norm."""
    lr = torch.full((2, 3, 8, 8), 0.5)
    hr = nearest(lr)
    objective = luma_error(nearest, 0)
    lr_worst = ATTACKERS["noise"]()(
        objective, hr, SCALE, 34.0, Effort(steps=20, restarts=restarts), torch.Generator().manual_seed(0)
    )[FOUND]
    weights = torch.tensor([65.481, 128.553, 24.966])
    most = weights.square().sum() * 3 * 10 ** (-34.0 / 10)  # the square norm a pixel of three channels
    assert (objective(lr_worst, hr) <= 1.0001 * most).all()
    # From the clean image, whose gradient is zero, there is no way; only a random start finds one.
    if restarts > 1:
        assert (objective(lr_worst, hr) > 0.98 * most).all()


def test_a_random_start_of_noise_uses_its_share() -> None:
    hr, network = photographs(), DegradationNetwork(SCALE)
    seen: list[Tensor] = []

    def objective(lr: Tensor, hr: Tensor) -> Tensor:
        seen.append(lr.detach())
        return lr.square().mean(dim=(1, 2, 3))

    attack = AdversarialNoise(1, (30.0, 30.0), random_start=0.25)
    result = attack(network, hr, objective, torch.Generator().manual_seed(0))
    error = (seen[0] - result.clean).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(error, torch.full_like(error, 0.25 * 10**-3.0), rtol=1e-3, atol=0)
    assert (result.lr_psnr >= 30 - 1e-3).all()
    with pytest.raises(ValueError, match=r"random_start is 1\.0; it must be in \[0, 1\)"):
        AdversarialNoise(random_start=1.0)


def test_a_camera_evolves() -> None:
    """More generations find more; the same random numbers give the same images."""
    hr = photographs(4)
    objective = luma_error(nearest, SCALE)
    errors = [
        objective(found("camera", 28.0, hr, Effort(generations=count, population=6))[FOUND], hr).mean()
        for count in (1, 8)
    ]
    assert errors[1] > 1.05 * errors[0]
    again = [found("camera", 28.0, hr)[FOUND] for _ in range(2)]
    assert torch.equal(*again)


def test_a_group_leaves_the_others_alone() -> None:
    """Slopes alone change a flat image nowhere that noise maps do not: F:slope keeps it, F:noise does not."""
    hr = torch.full((1, 3, 32, 32), 0.5)
    flat = found("F:conv", 30.0, hr)[FOUND]
    assert float((flat - flat.mean(dim=(2, 3), keepdim=True)).abs().max()) < 2e-3
    noisy = found("F:noise", 30.0, hr)[FOUND]
    assert float((noisy - noisy.mean(dim=(2, 3), keepdim=True)).abs().max()) > 2e-2
