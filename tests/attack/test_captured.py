"""Searches as graphs: on the CPU, with a stand-in for CUDA's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from adversaries import IMAGES, Upsampler, make, photographs, psnr_in_numpy, seeded
from host_graph import HostGraph
from torch import Tensor

from andfast.attack import PGD, YOPO, StyleShift, SubsetPGD, pgd
from andfast.attack.base import SearchResult
from andfast.attack.budget import SearchInputs, within_budget
from andfast.attack.captured import TRIES, CapturedSearch
from andfast.losses import l1_objective


def captured(**options: Any) -> tuple[CapturedSearch, list[str]]:
    """A `CapturedSearch` by `HostGraph`, whose replay counts as faster, and what it reports."""
    reports: list[str] = []
    search = CapturedSearch(report=reports.append, graph=options.pop("graph", HostGraph), **options)
    search._seconds = lambda function, device: 1.0 if "recorded" in function.__code__.co_freevars else 2.0
    return search, reports


ATTACKS = {
    "pgd": PGD(steps=3, step_size=0.3, psnr_range=(24.0, 30.0)),
    "last": PGD(steps=2, step_ratio=0.7, return_iterate="last"),
    "random start": PGD(steps=1, step_ratio=1.0, random_start=0.5, psnr_range=(24.0, 30.0)),
    "no budget": PGD(steps=2, psnr_range=None),
    "yopo": YOPO(steps=2, inner_steps=2),
    "style": StyleShift(steps=2),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("num_networks", [1, IMAGES])
def test_a_replay_gives_what_the_search_gives(name: str, num_networks: int) -> None:
    """Of other images, networks and budgets, and after an update of G."""
    attack, generator = ATTACKS[name], Upsampler(2)
    gain = torch.ones((), requires_grad=True)
    objective = l1_objective(lambda lr: gain.detach() * generator(lr))
    search, reports = captured(budget=attack.psnr_range is not None)
    for step in range(5):
        network, hr = make(num_networks, seed=step, blocks=2), photographs().roll(step, 3)
        found = attack(network, hr, objective, seeded(step), runner=search)
        expected = attack(network, hr, objective, seeded(step), runner=bounded(search))
        for field in ("lr", "clean", "delta", "losses", "loss_after", "lr_psnr", "budget_db"):
            one, other = getattr(found, field), getattr(expected, field)
            assert (one is None and other is None) or torch.equal(one, other), (step, field)
        assert (found.lr_psnr >= found.budget_db).all()
        assert len(reports) == (step >= 3)
        with torch.no_grad():
            gain.mul_(0.98)
    assert reports == ["the attack runs as a CUDA graph, in 0.50 of the time"]


def bounded(search: CapturedSearch) -> Callable[..., SearchResult]:
    """Runs a search with as many tries as `search` takes, but without a graph."""
    return lambda run, inputs, objective: run(replace(inputs, tries=search._tries), objective)


def test_a_result_outlives_the_next_replay() -> None:
    attack, (search, _) = ATTACKS["pgd"], captured()
    results = [attack(make(2, seed), photographs(), OBJECTIVE, seeded(seed), runner=search) for seed in range(6)]
    again = attack(make(2, 4), photographs(), OBJECTIVE, seeded(4), runner=bounded(search))
    assert torch.equal(results[4].lr, again.lr)
    assert torch.equal(results[4].losses, again.losses)


OBJECTIVE = l1_objective(Upsampler(2))


def waiting(lr: Tensor, hr: Tensor) -> Tensor:
    return OBJECTIVE(lr, hr) * (1.0 if lr.mean().item() > 0 else 2.0)


class Forgetful(HostGraph):
    """Leaves out an operation of the recorded ones."""

    def record(self, function: Callable[[], SearchResult]) -> SearchResult:
        result = super().record(function)
        del self._operations[len(self._operations) // 2 :]
        return result


class Full(HostGraph):
    def record(self, function: Callable[[], SearchResult]) -> SearchResult:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


class Ending(HostGraph):
    """Fails as `torch.cuda.graph` does: at its end once more, with another message."""

    def record(self, function: Callable[[], SearchResult]) -> SearchResult:
        try:
            return super().record(function)
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


class Small(HostGraph):
    room = False


class Drifting:
    """An objective that changes from call to call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, lr: Tensor, hr: Tensor) -> Tensor:
        self.calls += 1
        return OBJECTIVE(lr, hr) * (1 + 0.01 * self.calls)


@pytest.mark.parametrize(
    ("graph", "objective", "reason"),
    [
        (HostGraph, waiting, "operation not permitted when stream is capturing: _local_scalar_dense"),
        (Ending, waiting, "operation not permitted when stream is capturing: _local_scalar_dense"),
        (Forgetful, OBJECTIVE, "its replay does not give what the search gives"),
        (Full, OBJECTIVE, "CUDA out of memory. Tried to allocate 2 GiB"),
        (Small, OBJECTIVE, "its memory would be missing elsewhere"),
        (HostGraph, Drifting(), "the search does not give the same bits twice here"),
    ],
)
def test_what_speaks_against_a_graph_is_said_and_the_attack_goes_on(graph, objective, reason) -> None:
    attack, (search, reports) = ATTACKS["pgd"], captured(graph=graph)
    for step in range(6):
        result = attack(make(2, step), photographs(), objective, seeded(step), runner=search)
        if not isinstance(objective, Drifting):
            expected = attack(make(2, step), photographs(), objective, seeded(step), runner=bounded(search))
            assert torch.equal(result.lr, expected.lr)
    assert reports == [f"the attack runs without a CUDA graph: {reason}"]


def test_a_budget_that_few_tries_do_not_find_is_no_case_for_a_graph(monkeypatch) -> None:
    """Searches then go on with as many as it takes."""
    monkeypatch.setattr(pgd, "_probe", torch.ones_like)
    attack = PGD(steps=1, step_size=1e4, epsilon=torch.inf, psnr_range=(40.0, 40.0))
    search, reports = captured()
    for step in range(5):
        found = attack(make(2, step), photographs(), OBJECTIVE, seeded(step), runner=search)
    assert len(reports) == 1
    assert reports[0].startswith("the attack runs without a CUDA graph: with 3 tries for the budget it finds ")
    assert (found.lr_psnr <= found.budget_db + 1).all()


def test_a_slower_graph_is_not_used() -> None:
    attack, (search, reports) = ATTACKS["last"], captured()
    search._seconds = lambda function, device: 2.0 if "recorded" in function.__code__.co_freevars else 1.0
    for step in range(5):
        attack(make(2, step), photographs(), OBJECTIVE, seeded(step), runner=search)
    assert reports == ["the attack runs without a CUDA graph: it would take 2.00 times as long"]
    assert search._recorded is None


def test_another_size_is_another_graph() -> None:
    attack, (search, reports) = ATTACKS["last"], captured()
    for size in (24, 16):
        for step in range(6):
            network, hr = make(2, step), photographs()[..., :size, :size]
            network.reset_identity((size, size), seeded(step))
            found = attack(network, hr, OBJECTIVE, seeded(step), runner=search)
            assert torch.equal(found.lr, attack(network, hr, OBJECTIVE, seeded(step), runner=bounded(search)).lr)
    assert len(reports) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("random_start", [0.0, 0.5])
def test_without_asking_the_search_is_the_same(dtype: torch.dtype, random_start: float) -> None:
    """As the host's, with as many tries, always; as that with any number of them wherever that needed no more."""
    attack = PGD(steps=3, step_size=0.3, psnr_range=(24.0, 30.0), random_start=random_start)
    hr, equal = photographs(), 0
    for seed in range(3):
        results = [
            attack(make(IMAGES, seed, dtype=dtype), hr, OBJECTIVE, seeded(seed), runner=with_tries(*kind))
            for kind in ((TRIES, False), (TRIES, True), (None, True))
        ]
        assert torch.equal(results[0].lr, results[1].lr)
        assert torch.equal(results[0].losses, results[1].losses)
        equal += sum(map(torch.equal, results[0].losses.T, results[2].losses.T))
        for result in results:
            assert (result.lr_psnr >= result.budget_db).all()
    assert equal >= 0.9 * 3 * IMAGES


def with_tries(tries: int | None, ask: bool) -> Callable[..., SearchResult]:
    return lambda run, inputs, objective: run(replace(inputs, tries=tries, ask=ask), objective)


@pytest.mark.parametrize("tries", [1, 2, 3])
@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0, 1e4])
def test_any_number_of_tries_stays_within_the_budget(tries: int, size: float) -> None:
    """And the images are those of the deviations, or the clean ones."""
    hr, network = photographs(), make(2)
    clean, budget_db = network.clean(hr), torch.tensor([24.0, 40.0])
    delta = size * 0.05 * torch.randn(network.delta.shape, generator=seeded())
    for ask in (False, True):
        inputs = SearchInputs(network, hr, hr, clean, budget_db, None, tries=tries, ask=ask)
        found, lr = within_budget(inputs, delta, graph=True)
        assert found.requires_grad
        assert found.is_leaf
        assert (torch.tensor(psnr_in_numpy(lr.detach(), clean, 2)) >= budget_db).all()
        torch.testing.assert_close(lr, network(hr, found), rtol=0, atol=1e-5)
        (gradient,) = torch.autograd.grad(lr.square().sum(), found)
        assert gradient.isfinite().all()
        if size < 1e4:  # or all pixels are clamped
            assert (gradient != 0).any(dim=1).all()
        if size <= 1e-3:  # nothing is shrunk: the gradient is that of the images returned
            leaf = delta.clone().requires_grad_()
            (expected,) = torch.autograd.grad(network(hr, leaf).square().sum(), leaf)
            assert torch.equal(found, delta)
            torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("tries", [None, 3])
def test_a_start_outside_the_budget_stays_where_it_is(tries: int | None) -> None:
    hr, network = photographs(), make(2)
    clean = network.clean(hr)
    start = (clean + 0.1).clamp(0, 1)
    inputs = SearchInputs(network, hr, hr, clean, torch.tensor([30.0, 30.0]), None, start=start, tries=tries)

    def constant(hr: Tensor, delta: Tensor) -> Tensor:
        assert delta.isfinite().all()
        return start

    for delta in (torch.zeros_like(network.delta), torch.full_like(network.delta, 0.01)):
        found, lr = within_budget(replace(inputs, network=constant), delta)
        assert found.isfinite().all()
        assert found.abs().max() <= 1e-4
        assert torch.equal(lr, start)


def test_a_subset_of_the_batch_is_captured_too() -> None:
    attack, (search, reports) = SubsetPGD(steps=2, share=0.5), captured()
    for step in range(6):
        found = attack(make(1, step), photographs(), OBJECTIVE, seeded(step), runner=search)
        expected = attack(make(1, step), photographs(), OBJECTIVE, seeded(step), runner=bounded(search))
        assert torch.equal(found.lr, expected.lr)
    assert reports == ["the attack runs as a CUDA graph, in 0.50 of the time"]


def test_the_stand_in_sees_stale_memory() -> None:
    """A replay of what read a copy made before gives the old values: the stand-in can fail."""
    x = torch.arange(3.0)
    graph, constant = HostGraph(), x.clone()
    result = graph.record(lambda: SimpleResult(x * 2 + constant))
    x.add_(1)
    graph.replay()
    assert result.value.tolist() == [2.0, 5.0, 8.0]
    with pytest.raises(RuntimeError, match="capturing: _local_scalar_dense"):
        HostGraph().record(lambda: x.sum().item())


class SimpleResult:
    def __init__(self, value: Tensor) -> None:
        self.value = value
