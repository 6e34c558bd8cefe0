"""Each of several processes draws its part of what a single one draws."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from andfast.attack import BSRGAN, Lens
from andfast.attack.budget import draw_budget
from andfast.attack.pgd import random_direction, xavier_deviation
from andfast.degradation.network import DegradationNetwork
from andfast.utils.rng import batch_positions, step_generator

CPU = torch.device("cpu")


def bank(networks: int, generator: torch.Generator) -> DegradationNetwork:
    network = DegradationNetwork(2, networks, channels=4, blocks=1)
    network.reset_identity((8, 8), generator)
    return network


def through_lenses(networks: int, generator: torch.Generator) -> Tensor:
    image = torch.arange(12 * 12).remainder(7).view(1, 1, 12, 12) / 7
    return Lens()(image.expand(2 * networks, 3, 12, 12), networks, generator)


DRAWS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "centres": lambda networks, generator: bank(networks, generator).theta_id,
    "noise": lambda networks, generator: bank(networks, generator).noise_seed,
    "budgets": lambda networks, generator: draw_budget((22, 36), networks, 0, CPU, generator),
    "lenses": through_lenses,
    "directions": lambda networks, generator: random_direction(
        network := bank(networks, torch.Generator()), torch.ones(network.layout.size), generator
    ),
    "styles": lambda networks, generator: xavier_deviation(
        bank(networks, step_generator(1, 2, CPU, rank=generator.rank, size=generator.size))
        if hasattr(generator, "rank")
        else bank(networks, step_generator(1, 2, CPU)),
        generator,
    ),
}


@pytest.mark.parametrize("what", DRAWS)
@pytest.mark.parametrize("size", [2, 3])
def test_processes_draw_together_what_one_draws(what: str, size: int) -> None:
    whole = DRAWS[what](2 * size, step_generator(3, 5, CPU))
    parts = [DRAWS[what](2, step_generator(3, 5, CPU, rank=rank, size=size)) for rank in range(size)]
    assert not torch.equal(parts[0], parts[1])
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=1e-6)


def test_choices_of_the_host_differ_between_processes() -> None:
    images = torch.rand(2, 3, 32, 32)
    found = [BSRGAN().degrade(images, 4, step_generator(0, 1, CPU, rank=rank, size=2)) for rank in (0, 1, 0)]
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_every_part_of_a_batch_is_divided_evenly() -> None:
    assert batch_positions(4, 1, 0, 1) == [0, 1, 2, 3]
    assert [batch_positions(4, 1, rank, 2) for rank in (0, 1)] == [[0, 1, 2, 6], [3, 4, 5, 7]]
    assert batch_positions(2, 0, 2, 3) == [4, 5]
