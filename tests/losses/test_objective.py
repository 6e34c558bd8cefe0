"""The generator's loss: its sum, its costs, and that the adversary raises what the generator lowers."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adversaries import IMAGES, SIZE, Upsampler, l1_in_numpy, make, photographs, seeded

from andfast.attack import PGD
from andfast.losses import (
    GAN_LOSSES,
    AdversarialLoss,
    GeneratorLoss,
    PerceptualLoss,
    charbonnier_loss,
    discriminator_loss,
    frequency_loss,
    generator_objective,
    l1_loss,
    l1_objective,
    relative_objective,
)
from andfast.models import build_discriminator
from andfast.models.frozen import FrozenModule
from andfast.training.micro_batches import micro_batched


def edges(image):
    return {"conv1_1": image.diff(dim=3)}


def refuse(image):
    raise AssertionError("computed")


def perceptual(features=edges):
    return PerceptualLoss(features, {"conv1_1": 1.0})


def adversarial(name="vanilla", discriminator=None):
    return AdversarialLoss(discriminator or (lambda image: image.mean(dim=(2, 3)) - 0.5), GAN_LOSSES[name]())


def batch():
    torch.manual_seed(0)
    return torch.rand(3, 3, 4, 4, requires_grad=True), torch.rand(3, 3, 8, 8)


def test_l1_in_numpy():
    torch.manual_seed(0)
    restored, hr = torch.randn(2, 3, 5, 4).double().requires_grad_(), torch.rand(2, 3, 5, 4).double()
    loss = l1_loss(restored, hr)
    error = (restored.detach() - hr).numpy()
    np.testing.assert_allclose(loss.detach().numpy(), np.abs(error).mean(axis=(1, 2, 3)), rtol=1e-12)
    (grad,) = torch.autograd.grad(loss.sum(), restored)
    np.testing.assert_allclose(grad.numpy(), np.sign(error) / 60, rtol=1e-12)


def test_charbonnier_in_numpy():
    restored, hr = torch.rand(2, 2, 3, 4, 5, dtype=torch.float64)
    restored.requires_grad_()
    loss = charbonnier_loss(restored, hr, eps=0.1)
    error = (restored.detach() - hr).numpy()
    np.testing.assert_allclose(loss.detach(), np.hypot(error, 0.1).mean(axis=(1, 2, 3)), rtol=1e-12)
    (grad,) = torch.autograd.grad(loss.sum(), restored)
    np.testing.assert_allclose(grad, error / np.hypot(error, 0.1) / 60, rtol=1e-12)
    torch.testing.assert_close(charbonnier_loss(restored, hr, eps=1e-9), l1_loss(restored, hr))


@pytest.mark.parametrize("size", [(4, 6), (5, 8)])
def test_the_frequency_loss_by_matrices_of_cosines_and_sines(size):
    restored, hr = torch.rand(2, 2, 3, *size, dtype=torch.float64)
    rows, columns = (
        np.exp(-2j * np.pi * np.outer(np.arange(length), np.arange(length)) / length) / np.sqrt(length)
        for length in size
    )
    spectra = [rows @ images.numpy() @ columns for images in (restored, hr)]
    real, imaginary = (np.abs(part(spectra[0]) - part(spectra[1])) for part in (np.real, np.imag))
    expected = (real + imaginary).mean(axis=(1, 2, 3)) / 2
    np.testing.assert_allclose(frequency_loss(restored, hr), expected, rtol=1e-12)


def test_the_pixel_and_frequency_terms_in_the_sum():
    restored, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    loss = GeneratorLoss(adversarial=adversarial(), charbonnier_eps=0.01, frequency_weight=0.3)
    terms = loss.terms(restored, hr)
    assert list(terms) == ["charbonnier", "frequency", "gan"]
    expected = charbonnier_loss(restored, hr, 0.01) + 0.3 * frequency_loss(restored, hr)
    torch.testing.assert_close(loss(restored, hr), expected + 0.1 * adversarial()(restored, hr))
    with loss.step(hr):  # terms without anything to keep, too
        torch.testing.assert_close(loss.terms(restored, hr), terms)


@pytest.mark.parametrize(
    "loss",
    [
        GeneratorLoss(),
        GeneratorLoss(perceptual(refuse), adversarial("relativistic", refuse), 0.0, 0.0),
        GeneratorLoss(perceptual(refuse), None, perceptual_weight=0),
    ],
)
def test_without_weights_it_is_l1_and_computes_nothing_else(loss):
    lr, hr = batch()
    generator = Upsampler(2)
    losses = []
    for objective in (l1_objective(generator), generator_objective(generator, loss)):
        with loss.step(hr):
            value = objective(lr, hr)
        losses.append((value, torch.autograd.grad(value.sum(), lr)[0]))
    for one, other in zip(*losses, strict=True):
        assert torch.equal(one, other)


def test_the_sum_and_its_gradient():
    lr, hr = batch()
    generator = Upsampler(2)
    parts = (perceptual(), adversarial())
    total = generator_objective(generator, GeneratorLoss(*parts, perceptual_weight=0.3, gan_weight=0.7))(lr, hr)
    terms = [generator_objective(generator, term)(lr, hr) for term in (l1_loss, *parts)]
    expected = terms[0] + 0.3 * terms[1] + 0.7 * terms[2]
    assert total.shape == (3,)
    torch.testing.assert_close(total, expected)
    grads = [torch.autograd.grad(loss.sum(), lr, retain_graph=True)[0] for loss in (total, *terms)]
    torch.testing.assert_close(grads[0], grads[1] + 0.3 * grads[2] + 0.7 * grads[3])


def test_the_defaults_are_the_paper_s():
    restored, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    parts = (perceptual(), adversarial())
    expected = l1_loss(restored, hr) + parts[0](restored, hr) + 0.1 * parts[1](restored, hr)
    torch.testing.assert_close(GeneratorLoss(*parts)(restored, hr), expected)


@pytest.mark.parametrize("name", ["perceptual_weight", "gan_weight", "matching_weight", "frequency_weight"])
@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_weights_below_zero_are_refused(name, weight):
    with pytest.raises(ValueError, match=f"{name} is {weight}; it must be at least 0"):
        GeneratorLoss(**{name: weight})


def test_a_step_computes_targets_once_for_attack_and_update():
    seen = []

    def features(image):
        seen.append(len(image))
        return edges(image)

    loss = GeneratorLoss(PerceptualLoss(features, {"conv1_1": 1.0}), adversarial("relativistic"))
    hr = photographs()
    generator = Upsampler(2)
    with loss.step(hr):
        result = PGD(steps=2)(make(2), hr, generator_objective(generator, loss), seeded())
        updated = generator_objective(generator, loss)(result.lr, hr).detach()
    assert sum(seen) == IMAGES * (1 + 3 + 1)  # HR once; three passes of the attack, one of the update
    torch.testing.assert_close(updated, generator_objective(generator, loss)(result.lr, hr).detach())
    assert sum(seen) == IMAGES * (5 + 2)


def test_a_step_ends_with_an_error():
    """Nothing of it is held any longer, or known."""
    seen = []
    loss = GeneratorLoss(perceptual(lambda image: seen.append(len(image)) or edges(image)))
    hr = torch.rand(2, 3, 4, 4)
    with pytest.raises(RuntimeError, match="no more"), loss.step(hr):
        raise RuntimeError("no more")
    assert sum(seen) == 2
    loss(hr, hr)
    assert sum(seen) == 6


@pytest.fixture(scope="module")
def trained():
    """A U-Net that has learned to tell photographs from what the upsampler restores of their pooled images."""
    torch.manual_seed(0)
    model = build_discriminator("unet", 8, features=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    hr = photographs()
    with torch.no_grad():
        restored = Upsampler(2)(make(1).clean(hr))
    for _ in range(40):
        optimizer.zero_grad()
        discriminator_loss(model, restored, hr, GAN_LOSSES["vanilla"]()).mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("name", GAN_LOSSES)
def test_the_adversary_raises_what_the_generator_lowers(name, trained):
    """Sec 3.4: F makes G's images easier to tell from real ones, G harder; by max and min of the same term (Eq. 1)."""
    hr, generator = photographs(), Upsampler(2)
    frozen = FrozenModule(trained, torch.float32)
    term = AdversarialLoss(frozen, GAN_LOSSES[name]())
    objective = generator_objective(generator, term)
    network = make(1)
    clean = network.clean(hr)
    result = PGD(steps=3, psnr_range=(24.0, 36.0), epsilon=3.0, step_size=1.0)(network, hr, objective, seeded())
    with torch.no_grad():
        before, after = objective(clean, hr).mean(), objective(result.lr, hr).mean()
        verdicts = [frozen(generator(lr)).mean() for lr in (clean, result.lr)]
    assert after > before * (1 + 1e-3) if before > 0 else after > before + 1e-3
    torch.testing.assert_close(result.loss_after.mean(), after)
    assert verdicts[1] < verdicts[0]  # less real
    # G's step, down the gradient of the same objective on the same images.
    learner = copy.deepcopy(generator)
    of_learner = generator_objective(learner, term)
    of_learner(result.lr, hr).mean().backward()
    with torch.no_grad():
        norm = torch.stack([weight.grad.norm() for weight in learner.parameters()]).norm()
        for weight in learner.parameters():
            weight -= 0.005 * weight.grad / norm
        assert of_learner(result.lr, hr).mean() < after
        assert frozen(learner(result.lr)).mean() > verdicts[1]


def test_in_micro_batches(trained):
    """Images stand alone in a frozen discriminator, so the attack's objective may take them in parts."""
    generator, hr = Upsampler(2), photographs()
    loss = GeneratorLoss(perceptual(), AdversarialLoss(FrozenModule(trained, torch.float32), GAN_LOSSES["vanilla"]()))
    objective = generator_objective(generator, loss)
    found = []
    for part in (None, 1, 2):
        lr = torch.rand(IMAGES, 3, SIZE[0] // 2, SIZE[1] // 2, generator=seeded()).requires_grad_()
        with loss.step(hr):
            value = micro_batched(objective, part)(lr, hr)
            found.append((value.detach(), torch.autograd.grad(value.sum(), lr)[0]))
    for other in found[1:]:
        torch.testing.assert_close(other[0], found[0][0])
        torch.testing.assert_close(other[1], found[0][1], rtol=1e-3, atol=1e-7)


def test_a_relative_objective_climbs_the_difference_and_says_the_loss():
    """The gradient is that of L1(G(lr), hr) - L1(baseline(lr), hr), here of autograd in float64."""
    generator, hr = Upsampler(2), photographs()
    lr = make(1).clean(photographs()).requires_grad_()

    def baseline(lr):
        return F.interpolate(lr, scale_factor=2, mode="bilinear")

    losses = relative_objective(l1_objective(generator), baseline)(lr, hr)
    np.testing.assert_allclose(losses.detach(), l1_in_numpy(generator, lr, hr), rtol=1e-6)
    (gradient,) = torch.autograd.grad(losses.sum(), lr)
    wide, target = lr.detach().double().requires_grad_(), hr.double()
    found = [(of(wide) - target).abs().mean() for of in (copy.deepcopy(generator).double(), baseline)]
    (expected,) = torch.autograd.grad(IMAGES * (found[0] - found[1]), wide)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-8)
    assert relative_objective(l1_objective, None) is l1_objective


@pytest.mark.parametrize("pixel", [l1_loss, charbonnier_loss])
def test_relative_to_itself_there_is_nothing_to_climb(pixel):
    generator, hr = Upsampler(2), photographs()
    lr = make(1).clean(hr).requires_grad_()
    losses = relative_objective(generator_objective(generator, pixel), generator, pixel)(lr, hr)
    assert not torch.autograd.grad(losses.sum(), lr)[0].any()


def test_half_types_come_out_in_float32():
    lr, hr = batch()
    objective = generator_objective(lambda lr: Upsampler(2)(lr).bfloat16(), GeneratorLoss(perceptual(), adversarial()))
    assert objective(lr, hr).dtype == torch.float32


def test_nan_propagates():
    lr, hr = batch()
    lr.data[1] = torch.nan
    losses = generator_objective(Upsampler(2), GeneratorLoss(perceptual(), adversarial()))(lr, hr)
    assert losses.isnan().tolist() == [False, True, False]
