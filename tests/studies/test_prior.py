"""What the study does with the prior: that a case is what it says, and what a group alone does."""

import math

import pytest
import torch

from andfast.losses import l1_objective
from andfast.models import Compact
from andfast.theta import ScaleFactors
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


def test_no_case_is_there_twice():
    mixtures = [*GROUPS, Mixture("one"), Mixture("two", ScaleFactors(slope=2.0))]
    found = cases(mixtures, [24.0, 28.0], 28.0, {"two": (22.0, 36.0)}, [64], (16, 64))
    assert len({str(case) for case in found}) == len(found) == 8 * 6 + 2
