"""The adversary that begins at a random deviation within its budget."""

import pytest
import torch
from adversaries import IMAGES, Upsampler, check_consistent, l1_in_numpy, make, photographs, psnr_in_numpy, seeded

from andfast.attack import PGD, YOPO, Lens, RandomDeviation, SubsetPGD
from andfast.attack.pgd import random_direction
from andfast.losses import l1_objective
from andfast.ops import scaled_norm
from andfast.ops.theta_layout import ScaleFactors

OBJECTIVE = l1_objective(Upsampler(2))
# So near that no search moves.
STILL = {"steps": 1, "step_size": 1e-9}


def test_a_direction_has_norm_1_and_leaves_alone_what_may_not_move():
    network = make(3)
    inv_scale = PGD(scale_factors=ScaleFactors(noise=torch.inf)).inv_scale(network)
    direction = random_direction(network, inv_scale, seeded())
    torch.testing.assert_close(scaled_norm(direction, inv_scale), torch.ones(3))
    assert (direction[:, inv_scale == 0] == 0).all()
    assert (direction[:, inv_scale > 0] != 0).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("num_networks", [1, IMAGES])
@pytest.mark.parametrize("noise", ["map", "gaussian"])
def test_the_start_takes_its_share_of_the_error(share, num_networks, noise):
    network, hr = make(num_networks, noise=noise), photographs()
    attack = PGD(**STILL, psnr_range=(30.0, 30.0), random_start=share)
    result = attack(network, hr, OBJECTIVE, seeded())
    allowed, found = 10**-3.0, 10 ** (-psnr_in_numpy(result.lr, network.clean(hr), num_networks) / 10)
    # As near as a search for a budget comes: a decibel.
    assert (found <= allowed * share * 1.001).all()
    assert (found >= allowed * share * 10**-0.1).all()


def test_the_start_is_the_random_attack_s():
    """The same direction and, at the same budget, the same images."""
    network, hr = make(IMAGES), photographs()
    start = PGD(**STILL, psnr_range=(30.0, 30.0), random_start=0.5)(network, hr, OBJECTIVE, seeded(5))
    budget = 30 + 10 * torch.tensor(2.0).log10().item()
    random = RandomDeviation(epsilon=30.0, psnr_range=(budget, budget))(network, hr, OBJECTIVE, seeded(5))
    torch.testing.assert_close(start.lr, random.lr, rtol=0, atol=1e-5)
    torch.testing.assert_close(start.delta, random.delta, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=3, random_start=0.3),
        PGD(steps=2, step_ratio=0.7, return_iterate="last", random_start=0.5, lens=Lens()),
        YOPO(steps=1, inner_steps=2, random_start=0.5),
    ],
    ids=["worst", "last", "yopo"],
)
@pytest.mark.parametrize("num_networks", [1, IMAGES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_search_goes_on_from_there_within_ball_and_budget(attack, num_networks, dtype):
    network, hr = make(num_networks, dtype=dtype), photographs()
    result = attack(network, hr, OBJECTIVE, seeded(1))
    assert (psnr_in_numpy(result.lr, result.clean, num_networks) >= result.budget_db.numpy() - 0.01).all()
    # Of the lens's and the budgets' draws nothing changes where the search does not move: what it begins at.
    still = {name: getattr(attack, name) for name in ("random_start", "lens")} | STILL
    start = PGD(**still)(network, hr, OBJECTIVE, seeded(1))
    torch.testing.assert_close(start.budget_db, result.budget_db)
    moved = scaled_norm(result.delta - start.delta, attack.inv_scale(network))
    assert (moved <= attack.epsilon * 1.001).all()
    assert (moved > 0.005).all()
    after = l1_in_numpy(Upsampler(2), result.lr, hr).reshape(num_networks, -1).mean(axis=1)
    assert (after > 1.005 * start.losses[0].numpy()).all()


def test_what_is_returned_goes_together():
    network, hr = make(2), photographs()
    result = PGD(steps=2, random_start=0.5)(network, hr, OBJECTIVE, seeded())
    check_consistent(result, network, hr, Upsampler(2))


def test_no_share_is_the_identity():
    network, hr = make(2), photographs()
    with_zero, without = (attack(network, hr, OBJECTIVE, seeded()) for attack in (PGD(random_start=0.0), PGD()))
    assert torch.equal(with_zero.lr, without.lr)


def test_a_part_of_the_batch_may_search_from_a_random_start():
    network, hr = make(1), photographs()
    result = SubsetPGD(steps=2, share=0.5, random_start=0.5)(network, hr, OBJECTIVE, seeded())
    assert (psnr_in_numpy(result.lr, result.clean, 1) >= result.budget_db.numpy() - 0.01).all()
    torch.testing.assert_close(network(hr, result.delta), result.lr, rtol=0, atol=1e-6)
