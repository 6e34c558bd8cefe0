"""The adversary, against the formulas of Sec 3.3 and 4.3 in float64 with autograd's own gradients."""

import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from adversaries import (
    IMAGES,
    SIZE,
    Upsampler,
    check_consistent,
    check_equal,
    l1_in_numpy,
    make,
    photographs,
    psnr_in_numpy,
    scale_in_numpy,
    scaled_norms,
    seeded,
    squared_error,
)
from PIL import Image
from torch import Tensor, nn

import andfast
from andfast.attack import (
    BSRGAN,
    PGD,
    YOPO,
    AdversarialNoise,
    Attack,
    AttackResult,
    Bicubic,
    FreeAT,
    RandomDeviation,
    RealESRGAN,
    StyleShift,
    SubsetPGD,
)
from andfast.attack.base import bicubic_upsample
from andfast.degradation.lens import Lens
from andfast.degradation.network import DegradationNetwork
from andfast.losses import Objective, l1_objective
from andfast.ops import dispatch, use_backend
from andfast.ops.theta_layout import ScaleFactors

NOISES = ("map", "gaussian")
ALL_FREE = ScaleFactors(conv_dc=1.0, conv_shift=1.0)


def ascend(
    network: DegradationNetwork, hr: Tensor, objective: Objective, attack: PGD, scale: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """PGD to the letter in float64, without an LR-PSNR budget: the iterates and their losses."""
    exact = DegradationNetwork(
        network.scale, network.num_networks, network.channels, network.blocks, network.noise, torch.float64
    )
    exact.reset_identity(SIZE)
    exact.theta_id, exact.noise_seed = network.theta_id, network.noise_seed
    free = np.isfinite(scale)
    delta = np.zeros(network.theta_id.shape)
    iterates, losses = [], []
    for turn in range(attack.steps + 1):
        leaf = torch.from_numpy(delta.copy()).requires_grad_()
        loss = objective(exact(hr.double(), leaf), hr.double()).reshape(network.num_networks, -1).mean(dim=1)
        iterates.append(delta)
        losses.append(loss.detach().numpy())
        if turn == attack.steps:
            return iterates, losses
        gradient = torch.autograd.grad(loss.sum(), leaf)[0].numpy()[:, free]
        moved = np.zeros_like(delta)
        step = gradient / scale[free] ** 2 / np.linalg.norm(gradient / scale[free], axis=1, keepdims=True)
        moved[:, free] = delta[:, free] + attack.step_size * step
        norm = np.linalg.norm(moved[:, free] * scale[free], axis=1, keepdims=True)
        delta = moved * np.minimum(1, attack.epsilon / norm)
    raise AssertionError


@pytest.mark.parametrize(("noise", "seed"), [("map", 0), ("gaussian", 1)])
@pytest.mark.parametrize(
    ("num_networks", "dtype"),
    [(1, torch.float32), (2, torch.float32), (IMAGES, torch.float32), (2, torch.bfloat16)],
)
def test_finds_something_worse_on_every_network(num_networks, noise, seed, dtype):
    hr, generator = photographs(), Upsampler(2)
    network = make(num_networks, seed, noise=noise, blocks=5, dtype=dtype)
    result = PGD(psnr_range=(24.0, 36.0))(network, hr, l1_objective(generator), seeded(seed))
    assert result.losses.shape == (6, num_networks)
    assert result.lr.shape == (IMAGES, 3, 12, 16)
    check_consistent(result, network, hr, generator)
    # Images that share a network share its loss.
    clean = l1_in_numpy(generator, network(hr), hr).reshape(num_networks, -1).mean(axis=1)
    np.testing.assert_allclose(result.loss_before.numpy(), clean, rtol=1e-5)
    assert (result.loss_after > 1.1 * result.loss_before).all()


@pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))
@pytest.mark.parametrize("noise", NOISES)
def test_a_forced_backend_has_all_that_an_attack_needs(noise):
    hr, objective = photographs(), l1_objective(Upsampler(2))
    results = []
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            results.append(PGD(steps=1)(make(2, noise=noise), hr, objective, seeded()))
    torch.testing.assert_close(results[0].losses, results[1].losses, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("num_networks", [1, 2, IMAGES])
@pytest.mark.parametrize("factors", [ScaleFactors(), ScaleFactors(conv_dc=2.0, conv_shift=3.0)], ids=["default", "all"])
def test_first_step_is_the_formula(num_networks, noise, factors):
    """delta = step_size * s^-2 g / ||s^-1 g||, with autograd's gradient in float64."""
    hr, objective = 0.2 + 0.6 * photographs(), squared_error(nn.Upsample(scale_factor=2, mode="bilinear"))
    network = make(num_networks, noise=noise)
    attack = PGD(steps=1, step_size=0.01, epsilon=math.inf, scale_factors=factors, psnr_range=None)
    result = attack(network, hr, objective)
    scale = scale_in_numpy(network, factors)
    (_, expected), losses = ascend(network, hr, objective, attack, scale)
    assert (losses[1] > losses[0]).all()
    # The gradients of brightness and shifts are sums that nearly cancel.
    allowed = 1e-4 if math.isinf(factors.conv_dc) else 1e-3
    for row in range(num_networks):
        size = np.linalg.norm(expected[row])
        assert np.linalg.norm(result.delta[row].double().numpy() - expected[row]) < allowed * size
    np.testing.assert_allclose(scaled_norms(result.delta, scale), 0.01, rtol=1e-5)
    np.testing.assert_allclose(result.losses.numpy(), losses, rtol=3 * allowed)
    assert (result.budget_db == -math.inf).all()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("num_networks", [1, IMAGES])
def test_all_steps_are_the_formula_s(num_networks, noise):
    """With a ball that binds from the second step on."""
    hr, objective = 0.2 + 0.6 * photographs(), squared_error(nn.Upsample(scale_factor=2, mode="bilinear"))
    network = make(num_networks, noise=noise)
    attack = PGD(steps=4, step_size=0.1, epsilon=0.15, psnr_range=None)
    result = attack(network, hr, objective)
    scale = scale_in_numpy(network, attack.scale_factors)
    iterates, losses = ascend(network, hr, objective, attack, scale)
    np.testing.assert_allclose(result.losses.numpy(), losses, rtol=1e-3)
    best = np.argmax(losses, axis=0)
    for row in range(num_networks):
        expected = iterates[best[row]][row]
        assert np.linalg.norm(result.delta[row].double().numpy() - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("num_networks", [1, 2, IMAGES])
@pytest.mark.parametrize(
    "attack", [PGD(step_size=1.0, epsilon=0.05, psnr_range=None), RandomDeviation(epsilon=0.05, psnr_range=None)]
)
@pytest.mark.parametrize("factors", [ScaleFactors(), ALL_FREE])
def test_result_lies_in_the_ball(num_networks, attack, factors):
    hr, generator = photographs(), Upsampler(2)
    network = make(num_networks)
    attack = replace(attack, scale_factors=factors)
    result = attack(network, hr, l1_objective(generator), seeded())
    norms = scaled_norms(result.delta, scale_in_numpy(network, factors))
    np.testing.assert_allclose(norms, 0.05, rtol=1e-5)  # on its surface, for the steps are larger than the ball
    np.testing.assert_allclose(result.distance.numpy(), norms, rtol=1e-5)
    check_consistent(result, network, hr, generator)


@pytest.mark.parametrize("attack", [PGD(psnr_range=(24.0, 30.0)), RandomDeviation(psnr_range=(24.0, 30.0))])
def test_infinite_factors_forbid(attack):
    network = make(2)
    layout = network.layout
    result = attack(network, photographs(), l1_objective(Upsampler(2)), seeded())
    y, x = np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij")
    for segment in layout.conv:
        assert not segment.view(result.delta)[..., :3].any()
        exact, rounded = layout.to_taps(result.delta), result.theta - network.theta_id
        largest = exact.abs().max().item()
        assert largest > 0.001
        for taps, tolerance in ((exact, 1e-6 * largest), (rounded, 1e-6)):  # of the centre's size, theta's rounding
            kernels = segment.view(taps).double().numpy()
            for moment in (np.ones(9), x.ravel(), y.ravel()):
                assert np.abs(kernels @ moment).max() < tolerance

    only_slopes = ScaleFactors(conv=math.inf, noise=math.inf)
    attack = replace(attack, scale_factors=only_slopes)
    result = attack(network, photographs(), l1_objective(Upsampler(2)), seeded())
    start = layout.slope[0].start
    assert not result.delta[:, :start].any()
    assert result.delta[:, start:].any()


# Step sizes up to the absurd: the ball is infinite, so that the LR-PSNR budget alone holds the deviation.
HARSH = [
    PGD(steps=3, step_size=step_size, epsilon=math.inf, scale_factors=factors, psnr_range=psnr_range)
    for step_size, factors, psnr_range in [
        (0.3, ScaleFactors(), (20.0, 40.0)),
        (5.0, ALL_FREE, (24.0, 36.0)),
        (100.0, ScaleFactors(), (30.0, 31.0)),
        (1e4, ALL_FREE, (15.0, 45.0)),
        (1e30, ScaleFactors(), (24.0, 40.0)),
    ]
] + [PGD(), RandomDeviation(), RandomDeviation(epsilon=100.0, scale_factors=ALL_FREE), RandomDeviation(epsilon=1e30)]


@pytest.mark.parametrize(
    ("num_networks", "dtype", "seeds"),
    [(1, torch.float32, range(4)), (IMAGES, torch.float32, range(4)), (IMAGES, torch.bfloat16, (0, 3))],
)
@pytest.mark.parametrize("attack", HARSH, ids=lambda attack: repr(attack).partition(", scale")[0])
def test_no_image_moves_further_than_its_budget(attack, num_networks, dtype, seeds):
    hr, low, high = photographs(), *attack.psnr_range
    budgets = []
    for seed in seeds:
        network = make(num_networks, seed, noise=NOISES[seed % 2], dtype=dtype, blocks=1 + 2 * (seed // 2))
        result = attack(network, hr, l1_objective(Upsampler(2)), seeded(seed))
        budgets += result.budget_db.tolist()
        # The image returned, and the one its deviation gives.
        for lr in (result.lr, network(hr, result.delta)):
            found = psnr_in_numpy(lr, network.clean(hr), num_networks)
            assert (found >= result.budget_db.numpy() - 0.01).all()
    assert all(low <= budget <= high for budget in budgets)
    assert max(budgets) - min(budgets) > 0.3 * (high - low)


@pytest.mark.parametrize("step_size", [1.0, 100.0])
@pytest.mark.parametrize(("dtype", "seeds"), [(torch.float32, 3), (torch.bfloat16, 1)])
def test_the_budget_is_used_up(step_size, dtype, seeds):
    """Where a deviation would leave its budget it is shrunk to within a decibel of it, not to nothing."""
    hr = photographs()
    for seed in range(seeds):
        network = make(IMAGES, seed, blocks=5, dtype=dtype)
        attack = RandomDeviation(epsilon=20 * step_size, psnr_range=(24.0, 40.0))
        result = attack(network, hr, l1_objective(Upsampler(2)), seeded(seed))
        assert (result.lr_psnr <= result.budget_db + 1.0).all()
        attack = PGD(step_size=step_size, epsilon=math.inf, psnr_range=(24.0, 40.0))
        result = attack(network, hr, l1_objective(Upsampler(2)), seeded(seed))
        assert (result.lr_psnr <= result.budget_db + 1.5).all()  # the worst iterate need not be the furthest


@pytest.mark.parametrize("epsilon", [1e2, 1e4, 1e6])
def test_a_deviation_far_too_large_is_not_shrunk_to_nothing(epsilon):
    result = RandomDeviation(epsilon)(make(IMAGES, blocks=5), photographs(), l1_objective(Upsampler(2)), seeded())
    assert (result.distance > 0).all()
    assert (result.lr_psnr >= result.budget_db).all()
    assert (result.lr_psnr < 100).all()


@pytest.mark.parametrize("attack", [PGD(steps=1), RandomDeviation(), AdversarialNoise(steps=1)])
def test_budgets_are_drawn_from_the_range_and_the_margin_shifts_them(attack):
    def budgets(margin_db: float) -> Tensor:
        drawn = []
        for seed in range(3):
            network = make(IMAGES, seed)
            result = attack(network, photographs(), l1_objective(Upsampler(2)), seeded(seed), margin_db=margin_db)
            assert result.budget_db.shape == (IMAGES,)
            assert (result.lr_psnr >= result.budget_db - 0.01).all()
            drawn.append(result.budget_db)
        return torch.cat(drawn)

    low, high = attack.psnr_range
    plain = budgets(0.0)
    assert ((plain >= low) & (plain <= high)).all()
    assert plain.unique().numel() == plain.numel()  # each network, or image, its own
    torch.testing.assert_close(budgets(7.5), plain + 7.5)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("attack", [PGD(psnr_range=(28.0, 28.0)), PGD(step_size=0.05, epsilon=0.1, psnr_range=None)])
def test_a_bank_is_its_networks_one_by_one(attack, noise):
    """Eq. 1's maximum inside the expectation: images with networks of their own know nothing of each other."""
    hr, objective = photographs(), l1_objective(Upsampler(2))
    bank = make(IMAGES, noise=noise)
    together = attack(bank, hr, objective)
    for n in range(IMAGES):
        single = make(1, seed=5, noise=noise)
        single.theta_id, single.noise_seed = bank.theta_id[n : n + 1], bank.noise_seed[n : n + 1]
        alone = attack(single, hr[n : n + 1], objective)
        torch.testing.assert_close(alone.delta[0], together.delta[n], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(alone.lr[0], together.lr[n], rtol=0, atol=1e-4)
        torch.testing.assert_close(alone.losses[:, 0], together.losses[:, n], rtol=1e-4, atol=0)


ALL = [
    PGD(steps=2),
    YOPO(steps=1),
    FreeAT(replays=2),
    RandomDeviation(),
    AdversarialNoise(steps=2),
    StyleShift(steps=2),
    Bicubic(),
    BSRGAN(),
    RealESRGAN(),
]


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: type(attack).__name__)
def test_equal_seeds_give_equal_results_and_others_do_not(attack):
    objective = l1_objective(Upsampler(2))

    def run(seed: int) -> AttackResult:
        return attack(make(2), photographs(), objective, seeded(seed))

    before = torch.get_rng_state()
    first, again, other = run(3), run(3), run(4)
    assert torch.equal(torch.get_rng_state(), before)  # the generator given is the only one asked
    check_equal(first, again)
    if not isinstance(attack, Bicubic):
        assert not torch.equal(other.lr, first.lr)


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: type(attack).__name__)
def test_networks_and_images_are_left_alone(attack):
    hr, generator, network = photographs(), Upsampler(2), make(2)
    kept = [*generator.parameters(), network.theta_id, network.delta, network.noise_seed, hr]
    copies = [tensor.detach().clone() for tensor in kept]
    attack(network, hr, l1_objective(generator), seeded())
    for tensor, copy in zip(kept, copies, strict=True):
        assert torch.equal(tensor, copy)
        assert tensor.grad is None
    assert all(parameter.requires_grad for parameter in generator.parameters())


def test_returns_the_worst_of_all_iterates_of_each_network():
    """With losses that are prescribed, iterate by iterate, so that the worst is known."""
    table = torch.tensor([[1.0, 9.0, 1.0], [5.0, 2.0, 2.0], [3.0, 3.0, 3.0], [4.0, 4.0, 4.0]])
    images: list[Tensor] = []

    def objective(lr: Tensor, hr: Tensor) -> Tensor:
        mean = lr.mean(dim=(1, 2, 3))
        loss = table[len(images)] + (mean - mean.detach())
        images.append(lr.detach().clone())
        return loss

    network, hr = make(3), photographs(3)
    result = PGD(steps=3, psnr_range=(24.0, 30.0))(network, hr, objective, seeded())
    assert torch.equal(result.losses, table)
    assert torch.equal(result.loss_before, table[0])
    assert torch.equal(result.loss_after, torch.tensor([5.0, 9.0, 4.0]))
    for row, worst in enumerate([1, 0, 3]):
        assert torch.equal(result.lr[row], images[worst][row])
        assert not torch.equal(images[1][row], images[3][row])
    assert torch.equal(network(hr, result.delta), result.lr)
    assert not result.delta[1].any()
    assert result.distance[1] == 0


@pytest.mark.parametrize("factors", [(1e-12, 1e-12), (1e12, 1e12), (1e-8, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_size_of_the_loss_does_not_matter(factors, dtype):
    """A step is normalised, so neither tiny nor huge losses, nor both at once, may be lost in half types."""
    hr, network = photographs(), make(2, dtype=dtype, channels=16)
    plain, per_image = squared_error(Upsampler(2)), torch.tensor(factors).repeat_interleave(IMAGES // 2)
    attack = PGD(steps=2, psnr_range=(26.0, 26.0))
    expected = attack(network, hr, plain)
    found = attack(network, hr, lambda lr, hr: per_image * plain(lr, hr))
    assert expected.delta.any(dim=1).all()
    torch.testing.assert_close(found.losses / torch.tensor(factors), expected.losses, rtol=1e-2, atol=0)
    assert (found.loss_after > 1.1 * found.loss_before).all()


def test_a_flat_loss_gives_the_identity():
    """No gradient, no step, and no NaN."""
    network, hr = make(2), photographs()
    result = PGD(steps=2)(network, hr, lambda lr, hr: 0 * lr.sum(dim=(1, 2, 3)), seeded())
    assert not result.delta.any()
    assert torch.equal(result.lr, network(hr))


def test_the_paper_s_numbers():
    paper = PGD.paper()
    assert (paper.steps, paper.step_size, paper.epsilon, paper.psnr_range) == (5, 6.0, 20.0, None)
    assert paper.scale_factors == ScaleFactors(conv_dc=1, conv_shift=1, conv=1, noise=10, slope=50)
    network = make(1, channels=64, blocks=5)
    result = paper(network, photographs(1), l1_objective(Upsampler(2)))
    norms = scaled_norms(result.delta, scale_in_numpy(network, paper.scale_factors))
    assert (norms <= 20 * (1 + 1e-5)).all()
    assert result.lr_psnr < 15  # far from the "slight" deviation that the paper shows
    assert torch.isfinite(result.lr).all()


def test_random_is_uniform_on_the_sphere_and_comes_as_it_is():
    hr, generator = photographs(), Upsampler(2)
    network = make(IMAGES)
    result = RandomDeviation(epsilon=0.5, scale_factors=ALL_FREE, psnr_range=None)(
        network, hr, l1_objective(generator), seeded()
    )
    scale = scale_in_numpy(network, ALL_FREE)
    free = result.delta.double().numpy() * scale
    np.testing.assert_allclose(np.linalg.norm(free, axis=1), 0.5, rtol=1e-5)
    # All coordinates of a uniform direction have the same variance, whatever their group, and are unrelated.
    groups = np.split(free * scale.size**0.5 / 0.5, [network.layout.noise[0].start, network.layout.slope[0].start], 1)
    for group in groups:
        assert (group**2).mean() == pytest.approx(1, abs=4 * (2 / group.size) ** 0.5)
    assert np.abs(np.corrcoef(free) - np.eye(IMAGES)).max() < 5 / scale.size**0.5
    # Not the worse of identity and deviation, as for an adversary.
    calls: list[float] = []

    def falling(lr: Tensor, hr: Tensor) -> Tensor:
        calls.append(-float(len(calls)))
        return torch.full((len(lr),), calls[-1])

    result = RandomDeviation(epsilon=0.5)(network, hr, falling, seeded())
    assert result.losses.shape == (2, IMAGES)
    assert (result.loss_before == 0).all()
    assert (result.loss_after == -1).all()
    assert result.delta.any(dim=1).all()


def pillow(hr: Tensor, scale: int) -> np.ndarray:
    """(B, 3, H, W) of whole 255ths -> Pillow's bicubic of each, in [0, 1]."""
    images = (hr * 255).round().byte().permute(0, 2, 3, 1).numpy()
    size = (hr.shape[3] // scale, hr.shape[2] // scale)
    small = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in images]
    return np.stack(small).transpose(0, 3, 1, 2) / 255


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_bicubic_is_pillow_s(scale):
    hr, generator = photographs(), Upsampler(scale)
    result = Bicubic()(make(2, scale=scale), hr, l1_objective(generator))
    # Pillow rounds to 8 bits after each of its two passes.
    np.testing.assert_allclose(result.lr.numpy(), pillow(hr, scale), rtol=0, atol=1.5 / 255)
    assert np.abs(result.lr.numpy() - pillow(hr, scale)).mean() < 0.5 / 255
    assert result.delta is None
    assert result.theta is None
    # There is no pass through the generator.
    assert result.losses.shape == (0, len(hr))
    assert result.loss_before is None
    assert result.loss_after is None
    assert (result.distance == 0).all()
    assert (result.lr_psnr == math.inf).all()
    assert (result.budget_db == -math.inf).all()


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_bicubic_upsampling_is_pillow_s(scale):
    lr = torch.rand(2, 3, 13, 10, generator=seeded())
    found = bicubic_upsample(lr, scale)
    for image, larger in zip(lr.flatten(0, 1), found.flatten(0, 1), strict=True):
        expected = Image.fromarray(image.numpy()).resize((10 * scale, 13 * scale), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(larger.numpy(), np.asarray(expected), atol=1e-5)
    wide = lr.requires_grad_()
    weights = torch.rand(found.shape, generator=seeded(1))
    (gradient,) = torch.autograd.grad((bicubic_upsample(wide, scale) * weights).sum(), wide)
    interpolated = torch.nn.functional.interpolate(wide, scale_factor=scale, mode="bicubic", antialias=True)
    expected = torch.autograd.grad((interpolated * weights).sum(), wide)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_bicubic_stays_in_range():
    """Bicubic interpolation overshoots at edges; an image file cannot."""
    hr = torch.zeros(1, 3, *SIZE)
    hr[..., SIZE[1] // 2 + 1 :] = 1
    lr = Bicubic()(make(1), hr, l1_objective(Upsampler(2))).lr
    assert lr.min() == 0
    assert lr.max() == 1


def test_noise_s_first_step_is_the_formula():
    """The clean image plus a step along the gradient; of two radii in all, a radius being what the PSNR says."""
    hr, objective = 0.2 + 0.6 * photographs(), squared_error(nn.Upsample(scale_factor=2, mode="bilinear"))
    budget, network = 35.0, make(1)
    clean = Bicubic()(network, hr, objective).lr.double().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(clean, hr.double()).sum(), clean)
    radius = (clean[0].numel() * 10 ** (-budget / 10)) ** 0.5
    direction = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]

    result = AdversarialNoise(steps=1, psnr_range=(budget, budget))(network, hr, objective)
    torch.testing.assert_close(result.lr.double(), (clean + radius * direction).detach(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(result.distance.numpy(), radius, rtol=1e-5)
    np.testing.assert_allclose(result.lr_psnr.numpy(), budget, rtol=1e-4)

    result = AdversarialNoise(steps=4, psnr_range=(budget, budget))(network, hr, objective)
    expected = objective(clean + radius / 2 * direction, hr.double()).detach()
    torch.testing.assert_close(result.losses[1].double(), expected, rtol=1e-4, atol=0)


def test_noise_behind_a_lens_starts_at_the_lens_s_images():
    hr, objective, lens = photographs(), l1_objective(Upsampler(2)), Lens(blur=(1, 2), sharpen=(0.5, 1))
    result = AdversarialNoise(steps=2, psnr_range=(30.0, 30.0), lens=lens)(make(1), hr, objective, seeded(3))
    expected = Bicubic()(make(1), lens(hr, IMAGES, seeded(3)), objective).lr
    torch.testing.assert_close(result.clean, expected)
    np.testing.assert_allclose(psnr_in_numpy(result.lr, expected, IMAGES), 30, atol=1)
    # The target is still the image before the lens.
    np.testing.assert_allclose(result.loss_before, l1_in_numpy(Upsampler(2), expected, hr), rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_noise_keeps_each_image_s_budget_and_finds_something_worse(steps):
    hr, generator = photographs(), Upsampler(2)
    attack = AdversarialNoise(steps=steps, psnr_range=(20.0, 40.0))
    for seed in range(3):
        result = attack(make(2), hr, l1_objective(generator), seeded(seed))  # N = 2 does not matter: no network
        clean = Bicubic()(make(2), hr, l1_objective(generator)).lr
        found = psnr_in_numpy(result.lr, clean, IMAGES)
        np.testing.assert_allclose(result.lr_psnr.numpy(), found, rtol=1e-4)
        assert result.budget_db.shape == (IMAGES,)
        assert (found >= result.budget_db.numpy() - 0.01).all()
        assert (found <= result.budget_db.numpy() + 1.5).all()
        radius = (clean[0].numel() * 10 ** (-result.budget_db.numpy() / 10)) ** 0.5
        assert (result.distance.numpy() <= radius * (1 + 1e-5)).all()
        assert (result.loss_after > 1.05 * result.loss_before).all()
        np.testing.assert_allclose(result.loss_after.numpy(), l1_in_numpy(generator, result.lr, hr), rtol=1e-5)
        np.testing.assert_allclose(result.loss_before.numpy(), l1_in_numpy(generator, clean, hr), rtol=1e-5)
        assert result.losses.shape == (steps + 1, IMAGES)
        assert ((result.lr >= 0) & (result.lr <= 1)).all()
        assert result.delta is None
        assert result.theta is None


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (PGD, {"steps": 0}, "steps is 0"),
        (PGD, {"step_size": 0.0}, "step_size is 0.0"),
        (PGD, {"step_size": math.inf}, "step_size is inf"),
        (PGD, {"step_size": math.nan}, "step_size is nan"),
        (PGD, {"epsilon": 0.0}, "epsilon is 0.0"),
        (PGD, {"epsilon": math.nan}, "epsilon is nan"),
        (RandomDeviation, {"epsilon": -1.0}, "epsilon is -1.0"),
        (RandomDeviation, {"epsilon": math.inf}, "epsilon is inf"),
        (AdversarialNoise, {"steps": 0}, "steps is 0"),
        (PGD, {"return_iterate": "best"}, "return_iterate is 'best'; it must be 'worst' or 'last'"),
        (PGD, {"step_ratio": 0.0}, "step_ratio is 0.0; it must be positive"),
        (PGD, {"step_ratio": math.nan}, "step_ratio is nan"),
        (PGD, {"step_ratio": 0.5, "epsilon": math.inf}, "step_ratio is 0.5 of an infinite epsilon"),
        (PGD, {"random_start": 1.0}, "random_start is 1.0; it must be in [0, 1)"),
        (PGD, {"random_start": -0.1}, "random_start is -0.1"),
        (PGD, {"random_start": 0.5, "psnr_range": None}, "random_start is 0.5, a share of the LR-PSNR budget; give"),
        (YOPO, {"inner_steps": 0}, "inner_steps is 0; it must be at least 1"),
        (YOPO, {"steps": 0}, "steps is 0"),
        (FreeAT, {"replays": 0}, "replays is 0; it must be at least 1"),
        (FreeAT, {"epsilon": -1.0}, "epsilon is -1.0"),
        (SubsetPGD, {"share": 0.0}, "share is 0.0; it must be in (0, 1]"),
        (SubsetPGD, {"share": 1.5}, "share is 1.5"),
        (SubsetPGD, {"psnr_range": (30.0, 20.0)}, "psnr_range is (30.0, 20.0)"),
        *[
            (method, {"psnr_range": wrong}, f"psnr_range is {wrong}; it must be (low, high) in dB")
            for method in (PGD, RandomDeviation, AdversarialNoise)
            for wrong in ((30.0, 20.0), (0.0, 20.0), (20.0, math.inf), (math.nan, 20.0))
        ],
    ],
)
def test_wrong_settings_are_named(method: Callable[..., Attack], arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        method(**arguments)


@pytest.mark.parametrize("attack", [PGD(steps=1), RandomDeviation()])
def test_images_that_do_not_fit_the_network_are_named(attack):
    objective = l1_objective(Upsampler(2))
    with pytest.raises(ValueError, match="hr has shape"):
        attack(make(2), photographs()[..., :8], objective)
    with pytest.raises(ValueError, match="the batch size of hr, 3, must be a multiple of num_networks, 2"):
        attack(make(2), photographs(3), objective)


@pytest.mark.parametrize("attack", [AdversarialNoise(), Bicubic()])
def test_images_of_odd_sizes_are_named(attack):
    with pytest.raises(ValueError, match="image is 23 x 32; both must be multiples of the scale, 2"):
        attack(make(), photographs()[:, :, 1:], l1_objective(Upsampler(2)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Noise", "AdversarialNoise"),
        ("Random", "RandomDeviation"),
        ("Style", "StyleShift"),
        ("Free", "FreeAT"),
        ("Subset", "SubsetPGD"),
    ],
)
def test_an_older_name_is_refused_with_the_new_one(old: str, new: str):
    with pytest.raises(AttributeError, match=f"no attribute '{old}'; it is andfast.{new} now"):
        getattr(andfast, old)
    assert issubclass(getattr(andfast, new), Attack)
    with pytest.raises(AttributeError, match=r"no attribute 'PDG'$"):
        _ = andfast.PDG
