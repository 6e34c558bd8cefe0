"""The cheaper attacks, and the exact one without waste: what they find, against loops written out, and their cost."""

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from adversaries import (
    IMAGES,
    Upsampler,
    check_consistent,
    check_equal,
    make,
    photographs,
    psnr_in_numpy,
    scale_in_numpy,
    scaled_norms,
    seeded,
    squared_error,
)
from torch import Tensor, nn

from andfast.attack import PGD, YOPO, FreeAT, SubsetPGD, pgd
from andfast.attack.budget import SearchInputs, draw_budget, within_budget
from andfast.attack.pgd import loss_and_grad_lr
from andfast.degradation.network import DegradationNetwork
from andfast.losses import Objective, l1_objective
from andfast.ops import projected_step
from andfast.ops.theta_layout import ScaleFactors

BUDGETS = [(24.0, 30.0), None]


class Passes:
    """Counts the passes of a module: forward, and backward from its output."""

    def __init__(self) -> None:
        self.forward = self.backward = self.images = self.graphs = 0

    def hook(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.forward += 1
        self.images += len(output)
        if output.requires_grad:
            self.graphs += 1
            output.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        self.backward += 1


@contextmanager
def counted(module: nn.Module) -> Iterator[Passes]:
    passes = Passes()
    handle = module.register_forward_hook(passes.hook)
    yield passes
    handle.remove()


@contextmanager
def first_tries() -> Iterator[list[Tensor]]:
    """What the steps inside try first, in their order: a matter of time, which loops written out cannot know."""
    tries: list[Tensor] = []

    def spy(inputs: SearchInputs, delta: Tensor, first: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
        tries.append(first)
        return within_budget(inputs, delta, first, graph)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pgd, "within_budget", spy)
        yield tries


def ascend_by_hand(
    attack: PGD,
    network: DegradationNetwork,
    hr: Tensor,
    objective: Objective,
    random: torch.Generator,
    first: list[Tensor],
    inner: int = 1,
) -> tuple[list[Tensor], list[Tensor]]:
    """The ascent with every pass written out for itself: the iterates that go through G, and their losses."""
    first = list(first)
    count, clean = network.num_networks, network.clean(hr)
    budget_db = draw_budget(attack.psnr_range, count, 0.0, hr.device, random)
    inputs = SearchInputs(network, hr, hr, clean, budget_db, None)
    inv_scale = 1 / network.layout.scale_vector(attack.scale_factors)
    delta = torch.zeros_like(network.theta_id)
    deltas, losses = [], []
    for _ in range(attack.steps):
        lr = network(hr, delta).requires_grad_()
        loss = objective(lr, hr).reshape(count, -1).mean(dim=1)
        (grad_lr,) = torch.autograd.grad(loss.sum(), lr)
        deltas, losses = [*deltas, delta], [*losses, loss.detach()]
        grad_lr = grad_lr.reshape(count, -1)
        grad_lr = (grad_lr * (1024 / grad_lr.abs().sum(dim=1, keepdim=True))).view_as(lr)
        for _ in range(inner):
            leaf = delta.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(network(hr, leaf), leaf, grad_lr)
            delta = projected_step(delta, gradient, inv_scale, attack.step_length, attack.epsilon)
            delta, _ = within_budget(inputs, delta, first.pop(0))
    with torch.no_grad():
        return [*deltas, delta], [*losses, objective(network(hr, delta), hr).reshape(count, -1).mean(dim=1)]


def check_ascent(attack: PGD, network: DegradationNetwork, inner: int) -> tuple[Passes, Passes]:
    """The attack finds what the loop written out finds, bit for bit; returned are the passes of F in both."""
    hr, objective = photographs(), l1_objective(Upsampler(2))
    with counted(network) as passes, first_tries() as first:
        result = attack(network, hr, objective, seeded())
    with counted(network) as plain:
        deltas, losses = ascend_by_hand(attack, network, hr, objective, seeded(), first, inner)
    assert torch.equal(result.losses, torch.stack(losses))
    worst = result.losses.argmax(dim=0)
    assert torch.equal(result.delta, torch.stack(deltas)[worst, torch.arange(network.num_networks)])
    assert (worst > 0).all()
    check_consistent(result, network, hr, Upsampler(2))
    return passes, plain


@pytest.mark.parametrize("psnr_range", BUDGETS)
@pytest.mark.parametrize("num_networks", [1, 2, IMAGES])
@pytest.mark.parametrize("attack", [PGD(steps=3, step_size=0.3), YOPO(steps=2, inner_steps=3, step_size=0.2)])
def test_a_step_takes_its_gradient_from_the_pass_that_the_budget_accepted(attack, num_networks, psnr_range):
    attack = replace(attack, psnr_range=psnr_range)
    inner = getattr(attack, "inner_steps", 1)
    passes, plain = check_ascent(attack, make(num_networks), inner)
    steps = attack.steps * inner
    assert passes.backward == plain.backward == steps
    # Written out, G's image and F's gradient cost a pass each, and the last image one more.
    assert passes.forward == plain.forward - attack.steps - steps - 1 + 1
    if psnr_range is None:
        assert passes.forward == steps + 1
        assert passes.graphs == steps  # the last image needs none
    else:
        assert passes.forward > steps + 1  # the budget has bound


def test_what_the_last_step_learned_of_the_budget_saves_tries():
    """And changes nothing about where the search may end."""
    hr, objective = photographs(), l1_objective(Upsampler(2))
    attack = PGD(steps=5, step_ratio=0.5, psnr_range=(26.0, 32.0))
    warm = cold = 0
    for seed in range(3):
        network = make(IMAGES, seed, blocks=5)
        with counted(network) as passes, first_tries() as first:
            result = attack(network, hr, objective, seeded(seed))
        warm += passes.forward
        assert all(((multiple > 0) & (multiple <= 1)).all() for multiple in first)
        assert (first[0] == 1).all()
        assert (torch.stack(first[1:]) < 1).any()
        assert (result.lr_psnr >= result.budget_db).all()
        with counted(network) as passes:
            ascend_by_hand(attack, network, hr, objective, seeded(seed), [None] * attack.steps)
        cold += passes.forward - 2 * attack.steps  # those that the loop written out wastes
    assert warm < 0.85 * cold


@pytest.mark.parametrize("multiple", [1e-6, 0.01, 0.5, 0.99, 1.0])
def test_any_first_try_ends_at_the_budget(multiple):
    hr, network = photographs(), make(2)
    clean, budget_db = network.clean(hr), torch.tensor([24.0, 40.0])
    inputs = SearchInputs(network, hr, hr, clean, budget_db, None)
    delta = 0.05 * torch.randn(network.delta.shape, generator=seeded())
    first = torch.full((2,), multiple)
    for size in (1.0, 1e-3, 1e-9):  # far outside, near, and not even there as a whole
        found, lr = within_budget(inputs, size * delta, first)
        psnr = torch.tensor(psnr_in_numpy(lr, clean, 2))
        whole = torch.tensor(psnr_in_numpy(network(hr, size * delta), clean, 2))
        assert (psnr >= budget_db).all()
        assert ((psnr <= budget_db + 1.001) | (found == size * delta).all(dim=1)).all()
        assert ((found == size * delta).all(dim=1) == (whole >= budget_db)).all()
        assert torch.equal(lr, network(hr, found))


def test_no_two_graphs_of_f_live_at_a_time():
    """Activations are most of an attack's memory."""
    network, alive = make(2), []

    def begin(module: nn.Module, inputs: tuple) -> None:
        assert not any(reference() is not None for reference in alive)

    def end(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if output.requires_grad:
            alive.append(weakref.ref(output))

    network.register_forward_pre_hook(begin)
    network.register_forward_hook(end)
    PGD(steps=3, step_size=0.5, psnr_range=(28.0, 30.0))(network, photographs(), l1_objective(Upsampler(2)), seeded())
    assert len(alive) > 4  # tries that were not accepted, too


@pytest.mark.parametrize("return_iterate", ["worst", "last"])
@pytest.mark.parametrize(("attack", "steps"), [(PGD(steps=3), 3), (YOPO(steps=2, inner_steps=2), 2)])
def test_passes_through_g(attack, steps, return_iterate):
    generator = Upsampler(2).requires_grad_(False)
    attack = replace(attack, return_iterate=return_iterate)
    with counted(generator) as passes:
        attack(make(2), photographs(), l1_objective(generator), seeded())
    assert (passes.forward, passes.backward) == (steps + (return_iterate == "worst"), steps)


def test_the_last_iterate_comes_without_its_loss():
    network, hr, objective = make(2), photographs(), l1_objective(Upsampler(2))
    settings = {"steps": 3, "step_size": 0.4, "psnr_range": (24.0, 30.0)}
    with first_tries() as first:
        result = PGD(return_iterate="last", **settings)(network, hr, objective, seeded())
    deltas, losses = ascend_by_hand(PGD(**settings), network, hr, objective, seeded(), first)
    assert torch.equal(result.delta, deltas[-1])
    assert torch.equal(result.losses, torch.stack(losses[:-1]))
    assert result.loss_after is None
    assert torch.equal(result.lr, network(hr, deltas[-1]))


@pytest.mark.parametrize("psnr_range", BUDGETS)
@pytest.mark.parametrize("return_iterate", ["worst", "last"])
def test_yopo_with_one_inner_step_is_pgd(psnr_range, return_iterate):
    network, hr, objective = make(2), photographs(), l1_objective(Upsampler(2))
    settings = {"steps": 3, "psnr_range": psnr_range, "return_iterate": return_iterate}
    exact = PGD(**settings)(network, hr, objective, seeded())
    check_equal(YOPO(inner_steps=1, **settings)(network, hr, objective, seeded()), exact)


def test_more_inner_steps_find_more():
    """For as many passes through G: steps that PGD has no gradient for."""
    hr, objective = photographs(), l1_objective(Upsampler(2))
    settings = {"steps": 2, "step_size": 0.05, "psnr_range": None}
    gained = []
    for attack in (PGD(**settings), YOPO(inner_steps=4, **settings)):
        results = [attack(make(2, seed), hr, objective, seeded(seed)) for seed in range(3)]
        gained.append(sum((result.loss_after - result.loss_before).sum().item() for result in results))
    assert gained[1] > 1.5 * gained[0]


@pytest.mark.parametrize("psnr_range", BUDGETS)
def test_free_on_a_frozen_g_is_pgd_s_last_iterate(psnr_range):
    generator = Upsampler(2).requires_grad_(False)
    network, hr, objective = make(2), photographs(), l1_objective(generator)
    settings = {"step_size": 0.4, "psnr_range": psnr_range}
    with counted(generator) as passes:
        result = FreeAT(replays=4, **settings)(network, hr, objective, seeded())
    assert (passes.forward, passes.backward) == (4, 3)
    exact = PGD(steps=3, return_iterate="last", **settings)(network, hr, objective, seeded())
    worst = PGD(steps=3, **settings)(network, hr, objective, seeded())
    assert torch.equal(result.losses, worst.losses)
    assert torch.equal(result.loss_after, worst.losses[-1])
    for name in ("lr", "delta", "theta", "distance", "lr_psnr", "budget_db"):
        assert torch.equal(getattr(result, name), getattr(exact, name)), name


def small_generator() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))


@pytest.mark.parametrize("psnr_range", BUDGETS)
@pytest.mark.parametrize("replays", [1, 2, 4])
def test_free_trains_g_as_the_loop_written_out_does(replays, psnr_range):
    """Two minibatches, each replayed: the documented loop, and one of plain PyTorch in which nothing is shared."""
    attack = FreeAT(replays=replays, step_size=0.3, psnr_range=psnr_range)
    batches = [photographs(), photographs().flip(3)]

    driven = small_generator()
    optimizer, objective = torch.optim.Adam(driven.parameters(), lr=1e-2), l1_objective(driven)
    losses = []
    with first_tries() as first:
        for step, hr in enumerate(batches):
            replay = attack.begin(make(2, step), hr, seeded(step))
            for _ in range(attack.replays):
                loss = objective(replay.lr, hr).mean()
                losses.append(loss.item())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if not replay.done:
                    replay.advance(replay.lr.grad)
            assert replay.done

    plain = small_generator()
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    expected = []
    for step, hr in enumerate(batches):
        network = make(2, step)
        inv_scale = 1 / network.layout.scale_vector(attack.scale_factors)
        budget_db = draw_budget(psnr_range, 2, 0.0, hr.device, seeded(step))
        inputs = SearchInputs(network, hr, hr, network.clean(hr), budget_db, None)
        delta = torch.zeros_like(network.theta_id)
        for turn in range(replays):
            leaf = delta.clone().requires_grad_()
            optimizer.zero_grad()
            loss = (plain(network(hr, leaf)) - hr).abs().mean()  # one backward pass for G and theta
            expected.append(loss.item())
            loss.backward()
            optimizer.step()
            if turn < replays - 1:
                delta = projected_step(delta, leaf.grad, inv_scale, 0.3, attack.epsilon)
                delta, _ = within_budget(inputs, delta, first.pop(0))

    assert not first
    assert losses == pytest.approx(expected, rel=1e-4)
    start = small_generator()
    for found, wanted, before in zip(driven.parameters(), plain.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
        assert not torch.equal(found, before)


def test_one_replay_is_a_plain_step_on_the_identity_s_images():
    network, hr = make(2), photographs()
    with counted(network) as passes:
        replay = FreeAT(replays=1).begin(network, hr, seeded())
    assert replay.done
    assert torch.equal(replay.lr, network(hr))
    assert replay.lr.is_leaf
    assert replay.lr.requires_grad
    assert (passes.forward, passes.graphs) == (1, 0)
    with pytest.raises(RuntimeError, match="all replays of this minibatch are done"):
        replay.advance(torch.ones_like(replay.lr))


def test_a_replay_keeps_its_budget_and_its_ball_and_does_not_mind_a_scaled_loss():
    hr, objective = photographs(), l1_objective(Upsampler(2))
    found = []
    for factor in (1.0, 2.0**40, 2.0**-60):
        network = make(2)
        attack = FreeAT(replays=3, step_size=2.0, psnr_range=(26.0, 34.0))
        replay = attack.begin(network, hr, seeded(), margin_db=1.0)
        assert ((replay.budget_db >= 27) & (replay.budget_db <= 35)).all()
        while not replay.done:
            (factor * objective(replay.lr, hr).mean()).backward()
            replay.advance(replay.lr.grad)
            assert (psnr_in_numpy(replay.lr.detach(), replay.clean, 2) >= replay.budget_db.numpy() - 0.01).all()
            norms = scaled_norms(replay.delta, scale_in_numpy(network, attack.scale_factors))
            assert (norms <= attack.epsilon * (1 + 1e-5)).all()
            assert (norms > 0).all()
        assert torch.equal(replay.lr, network(hr, replay.delta))
        found.append(replay.delta)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_images_that_do_not_fit_a_replay_are_named():
    with pytest.raises(ValueError, match="the batch size of hr, 3, must be"):
        FreeAT().begin(make(2), photographs(3))


@pytest.mark.parametrize("psnr_range", BUDGETS)
def test_a_subset_of_everything_is_pgd(psnr_range):
    network, hr, objective = make(1), photographs(), l1_objective(Upsampler(2))
    settings = {"steps": 2, "psnr_range": psnr_range}
    exact = PGD(**settings)(network, hr, objective, seeded())
    check_equal(SubsetPGD(share=1.0, **settings)(network, hr, objective, seeded()), exact)


@pytest.mark.parametrize(("share", "images"), [(0.5, 2), (0.74, 3), (0.01, 1)])
def test_a_subset_finds_theta_on_the_first_images_and_degrades_all(share, images):
    generator = Upsampler(2).requires_grad_(False)
    network, hr, objective = make(1), photographs(), l1_objective(generator)
    with counted(generator) as passes:
        result = SubsetPGD(share=share, steps=2, psnr_range=None)(network, hr, objective, seeded())
    assert passes.images == 3 * images
    part = PGD(steps=2, psnr_range=None)(network, hr[:images], objective, seeded())
    assert torch.equal(result.delta, part.delta)
    assert torch.equal(result.lr, network(hr, part.delta))
    assert torch.equal(result.losses, part.losses)
    assert torch.equal(result.loss_after, part.loss_after)


def test_the_budget_of_the_whole_batch_binds():
    """The first image has little contrast: blur and ringing that fill its budget move the others further."""
    hr, objective = photographs(), l1_objective(Upsampler(2))
    hr[0] = 0.5 + 0.1 * (hr[0] - 0.5)
    shrunk, factors = 0, ScaleFactors(noise=math.inf)
    for seed in range(4):
        network = make(1, seed)
        attack = SubsetPGD(share=0.25, steps=2, epsilon=math.inf, scale_factors=factors, psnr_range=(26.0, 34.0))
        result = attack(network, hr, objective, seeded(seed))
        found = psnr_in_numpy(result.lr, network.clean(hr), 1)
        np.testing.assert_allclose(result.lr_psnr.numpy(), found, rtol=1e-5)
        assert (found >= result.budget_db.numpy() - 0.01).all()
        assert torch.equal(result.lr, network(hr, result.delta))
        settings = {name: value for name, value in vars(attack).items() if name != "share"}
        part = PGD(**settings)(network, hr[:1], objective, seeded(seed))
        shrunk += not torch.equal(part.delta, result.delta)
    assert shrunk


def test_a_subset_wants_one_network():
    with pytest.raises(ValueError, match="bank of 2; SubsetPGD needs num_networks 1"):
        SubsetPGD()(make(2), photographs(), l1_objective(Upsampler(2)))


def test_a_step_can_be_given_relative_to_epsilon():
    network, hr, objective = make(2), photographs(), l1_objective(Upsampler(2))
    relative = PGD(steps=2, epsilon=0.25, step_ratio=0.5, step_size=7.0)
    assert relative.step_length == 0.125
    exact = PGD(steps=2, epsilon=0.25, step_size=0.125)(network, hr, objective, seeded())
    check_equal(relative(network, hr, objective, seeded()), exact)


class Half(torch.autograd.Function):
    """What a G in float16 does to the gradient of its output: it is one of float16's normal numbers, or lost."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        kind = torch.finfo(torch.float16)
        size = gradient.abs()
        return torch.where(size < kind.tiny, 0, torch.where(size > kind.max, math.inf, gradient))


@pytest.mark.parametrize("size", [32, 512])
@pytest.mark.parametrize("num_networks", [1, 2])
def test_a_generator_in_float16_loses_nothing_of_the_costate(num_networks, size):
    hr = torch.rand(2, 3, size, size, generator=seeded())
    lr = torch.nn.functional.avg_pool2d(hr, 2)
    up = nn.Upsample(scale_factor=2, mode="bilinear")

    def flushing(lr: Tensor, hr: Tensor) -> Tensor:
        return (Half.apply(up(lr)) - hr).abs().mean(dim=(1, 2, 3))

    def half(lr: Tensor, hr: Tensor) -> Tensor:
        return (up(lr.half()).float() - hr).abs().mean(dim=(1, 2, 3))

    leaf = lr.double().requires_grad_()
    (exact,) = torch.autograd.grad((up(leaf) - hr.double()).abs().mean(dim=(1, 2, 3)).sum(), leaf)
    for objective, tolerance in ((flushing, 1e-5), (half, 0.05)):
        loss, grad_lr = loss_and_grad_lr(lr, hr, objective, num_networks)
        assert loss.shape == (num_networks,)
        grad_lr = grad_lr.double() * (exact.norm() / grad_lr.double().norm())
        assert (grad_lr - exact).norm() < tolerance * exact.norm()

    # Without the scaled loss nothing of it is left for large images.
    leaf = lr.clone().requires_grad_()
    (lost,) = torch.autograd.grad(flushing(leaf, hr).sum(), leaf)
    assert lost.any() == (size == 32)


@pytest.mark.parametrize("num_networks", [1, 3])
def test_the_costate_is_the_loss_s_gradient_to_the_bit(num_networks):
    """In float32 the scaled loss, a power of two, changes nothing but the exponent."""
    hr = photographs(3)
    lr, objective = make(1).clean(hr), squared_error(Upsampler(2))
    loss, grad_lr = loss_and_grad_lr(lr, hr, objective, num_networks)
    leaf = lr.clone().requires_grad_()
    expected = objective(leaf, hr).reshape(num_networks, -1).mean(dim=1)
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    assert torch.equal(loss, expected.detach())
    factor = grad_lr.abs().max() / gradient.abs().max()
    assert math.frexp(factor)[0] == 0.5
    assert torch.equal(grad_lr, gradient * factor)


def test_the_scale_vector_is_built_once():
    first, again = PGD().inv_scale(make(2, seed=0)), PGD().inv_scale(make(2, seed=1))
    assert first is again
    other = PGD(scale_factors=ScaleFactors(slope=7.0)).inv_scale(make(2))
    slope = make(2).layout.slope[0].start
    assert (first[slope:] == torch.tensor(1 / 50.0)).all()
    assert (other[slope:] == torch.tensor(1 / 7.0)).all()


@pytest.mark.parametrize("attack", [YOPO(steps=1), FreeAT(replays=2), SubsetPGD(steps=1)])
def test_half_types(attack):
    hr, network = photographs(), make(1, dtype=torch.float16, channels=16)
    result = attack(network, hr, l1_objective(Upsampler(2)), seeded())
    assert (result.lr_psnr >= result.budget_db - 0.01).all()
    assert (result.loss_after > 1.05 * result.loss_before).all()
