"""What the study does with the prior: that a case is what it says, and what a group alone does."""

import math

import pytest
import torch

from andfast.attack import Lens
from andfast.losses import l1_objective
from andfast.models import Compact
from andfast.ops.blur_pool import blur_pool
from andfast.ops.theta_layout import ScaleFactors
from studies.measures import measure
from studies.prior import GROUPS, Case, Mixture, cases, run

BY_NAME = {mixture.name: mixture for mixture in GROUPS}


@pytest.fixture(scope="module")
def objective():
    torch.manual_seed(0)
    return l1_objective(Compact(scale=4, features=8, convs=1).requires_grad_(False))


def images(count: int = 2, size: int = 64) -> torch.Tensor:
    coarse = torch.rand(count, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("method", ["pgd", "random"])
@pytest.mark.parametrize("name", list(BY_NAME))
def test_a_group_alone_reaches_the_budget_and_is_all_of_the_difference(objective, name, method):
    found = run(Case(BY_NAME[name], method, (28.0, 28.0), channels=16), images(), objective, batch=2, seed=0)
    group = next(group for group, value in vars(BY_NAME[name].factors).items() if math.isfinite(value))
    assert len(found.measures) == len(found.loss_ratio) == 2
    for each in found.measures:
        assert 28 <= each.psnr <= 29.1  # the budget's slack is a decibel
    for other, shares in found.shares.items():
        assert shares == pytest.approx([1 if other == group else 0] * 2, abs=1e-5)


def test_dc_moves_the_mean_and_nothing_else_does(objective):
    def dc_shares(name: str) -> list[float]:
        case = Case(BY_NAME[name], "pgd", (28.0, 28.0), channels=16)
        return [each.dc_share for each in run(case, images(), objective, batch=2, seed=0).measures]

    assert min(dc_shares("conv DC")) > 0.5
    assert max(dc_shares("conv AC")) < 0.1
    assert max(dc_shares("noise map")) < 0.1


def test_images_of_a_batch_share_a_network_or_not(objective):
    case = Case(Mixture("mixed", ScaleFactors()), "pgd", (24.0, 30.0), channels=16, per_image=False)
    assert len(run(case, images(4), objective, batch=2, seed=0).distance) == 2
    alone = Case(case.mixture, "pgd", (24.0, 30.0), channels=16)
    assert len(run(alone, images(4), objective, batch=2, seed=0).distance) == 4


def test_smaller_crops_are_the_middles(objective):
    whole = images(2, 128)
    case = Case(Mixture("mixed"), "pgd", (28.0, 28.0), channels=16, size=64)
    middle = Case(case.mixture, "pgd", (28.0, 28.0), channels=16)
    expected = run(middle, whole[..., 32:96, 32:96], objective, batch=2, seed=0)
    assert run(case, whole, objective, batch=2, seed=0) == expected


FIXED = Lens(blur=(3.0, 3.0), sharpen=(1.0, 1.0))


def test_the_lens_alone_is_what_it_makes_of_images_and_is_measured_against_these(objective):
    hr = images()
    found = run(Case(Mixture("lens"), "none", None, channels=16, lens=FIXED), hr, objective, batch=2, seed=0)
    lr = blur_pool(FIXED(hr, 2), 4)
    assert found.measures == [measure(image, each) for image, each in zip(hr, lr, strict=True)]
    assert found.loss_ratio == pytest.approx((objective(lr, hr) / objective(blur_pool(hr, 4), hr)).tolist())
    assert found.distance == []
    assert all(shares == [] for shares in found.shares.values())


@pytest.mark.parametrize("per_image", [False, True])
def test_the_adversary_behind_a_lens_is_judged_by_the_images_as_they_are(objective, per_image):
    hr, targets = images(), []

    def watched(lr: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        targets.append(target)
        return objective(lr, target)

    case = Case(BY_NAME["conv AC"], "pgd", (34.0, 34.0), channels=16, per_image=per_image, lens=FIXED)
    found = run(case, hr, watched, batch=2, seed=0)
    alone = run(Case(Mixture("lens"), "none", None, channels=16, lens=FIXED), hr, objective, batch=2, seed=0)
    assert len(targets) > 2
    assert all(torch.equal(target, hr) for target in targets)
    assert sum(found.loss_ratio) > sum(alone.loss_ratio) > 2
    # Shares count from what is behind the lens, so that the only group is still all of it.
    assert found.shares["conv"] == pytest.approx([1, 1], abs=1e-5)


def test_images_share_a_lens_where_they_share_a_network(objective):
    same = images(1).repeat(2, 1, 1, 1)

    def blurs(per_image: bool) -> list[float]:
        case = Case(Mixture("lens"), "none", None, channels=16, per_image=per_image, lens=Lens())
        return [each.response_half for each in run(case, same, objective, batch=2, seed=0).measures]

    shared, own = blurs(False), blurs(True)
    assert shared[0] == shared[1]
    assert own[0] != own[1]


def test_no_case_is_there_twice():
    mixtures = [*GROUPS, Mixture("one"), Mixture("two", ScaleFactors(slope=2.0))]
    ranges = {"two": [(22.0, 36.0), (34.0, 50.0)]}
    found = cases(mixtures, [24.0, 28.0], 28.0, ranges, [64], (16, 64), Lens(), mixtures[-1])
    assert len({str(case) for case in found}) == len(found) == 8 * 6 + (2 * 2 + 1) + (1 + 3 * 2)
    assert sum(case.lens is not None for case in found) == 1 + 3 * 2
