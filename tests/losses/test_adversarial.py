"""GAN losses, against their formulas in NumPy and gradients by hand, and who gains by which sign."""

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit

from andfast.losses import GAN_LOSSES, AdversarialLoss, discriminator_loss
from andfast.models import build_discriminator
from andfast.models.frozen import AutocastModule, FrozenModule

SHAPES = [(4,), (4, 1), (4, 1, 3, 5)]


def logits(shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    restored, real = (3 * torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    return restored.requires_grad_(), real.requires_grad_()


def mean(values):
    return values.reshape(len(values), -1).mean(axis=1)


# By name, of the logits f of restored and r of real images: G's term, and D's loss.
FORMULAS = {
    "vanilla": (lambda f, r: -np.log(expit(f)), lambda f, r: -np.log(expit(r)) - np.log(1 - expit(f))),
    "eq3": (lambda f, r: -np.log(expit(f)), lambda f, r: -np.log(expit(r)) + np.log(expit(f))),
    "hinge": (lambda f, r: -f, lambda f, r: np.maximum(0, 1 - r) + np.maximum(0, 1 + f)),
    "relativistic": (
        lambda f, r: -np.log(expit(f - r.mean())) - np.log(1 - expit(r - f.mean())),
        lambda f, r: -np.log(expit(r - f.mean())) - np.log(1 - expit(f - r.mean())),
    ),
}


def relativistic_gradients(f, r):
    """Of the sum of D's losses of B images with M places, for f and r; G's are the same with both exchanged."""
    places = f[0].size
    down, up = -expit(f.mean() - r), expit(f - r.mean())  # d/d(r - mean f), d/d(f - mean r)
    return (up - down.mean()) / places, (down - up.mean()) / places


# The gradients of the sum of G's terms and of D's losses, for f and for r.
GRADIENTS = {
    "vanilla": (lambda f, r: (-expit(-f), 0 * r), lambda f, r: (expit(f), -expit(-r))),
    "eq3": (lambda f, r: (-expit(-f), 0 * r), lambda f, r: (expit(-f), -expit(-r))),
    "hinge": (lambda f, r: (-1 + 0 * f, 0 * r), lambda f, r: (1.0 * (f > -1), -1.0 * (r < 1))),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", GAN_LOSSES)
def test_the_formulas(name, shape):
    gan = GAN_LOSSES[name]()
    restored, real = logits(shape)
    f, r = restored.detach().numpy(), real.detach().numpy()
    for found, formula in zip(
        (gan.generator(restored, real), gan.discriminator(restored, real)), FORMULAS[name], strict=True
    ):
        assert found.shape == (4,)
        np.testing.assert_allclose(found.detach().numpy(), mean(formula(f, r)), rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", GAN_LOSSES)
def test_the_gradients(name, shape):
    gan = GAN_LOSSES[name]()
    restored, real = logits(shape)
    f, r = restored.detach().numpy(), real.detach().numpy()
    if name == "relativistic":
        expected = [relativistic_gradients(r, f)[::-1], relativistic_gradients(f, r)]
    else:
        expected = [[grad / f[0].size for grad in formula(f, r)] for formula in GRADIENTS[name]]
    for loss, grads in zip((gan.generator(restored, real), gan.discriminator(restored, real)), expected, strict=True):
        found = torch.autograd.grad(loss.sum(), (restored, real), allow_unused=True)
        for one, other in zip(found, grads, strict=True):
            np.testing.assert_allclose(0 if one is None else one.numpy(), other, rtol=1e-10, atol=1e-14)


def test_equation_three():
    """L_GAN = log D(HR) - log D(restored): G's term is what of it G moves; D, which raises it, lowers minus it."""
    restored, real = logits((4, 1))
    l_gan = log_expit(real.detach().numpy()) - log_expit(restored.detach().numpy())
    d_of_hr = log_expit(real.detach().numpy())
    for name in ("vanilla", "eq3"):
        term = GAN_LOSSES[name]().generator(restored).detach().numpy()
        np.testing.assert_allclose(term, (l_gan - d_of_hr)[:, 0], rtol=1e-12)
    np.testing.assert_allclose(GAN_LOSSES["eq3"]().discriminator(restored, real).detach(), -l_gan[:, 0], rtol=1e-12)


@pytest.mark.parametrize("name", GAN_LOSSES)
def test_large_logits_and_nan(name):
    gan = GAN_LOSSES[name]()
    extremes = torch.tensor([[-1e4], [1e4]], requires_grad=True)
    for loss in (gan.generator(extremes, -extremes), gan.discriminator(extremes, -extremes)):
        assert loss.isfinite().all()
        assert torch.autograd.grad(loss.sum(), extremes)[0].isfinite().all()
    bad = torch.tensor([[0.5], [torch.nan]])
    assert gan.generator(bad, bad)[1].isnan()
    assert gan.discriminator(bad, bad)[1].isnan()


@pytest.mark.parametrize("name", GAN_LOSSES)
def test_couples_images_means_what_it_says(name):
    gan = GAN_LOSSES[name]()
    restored, real = logits((4, 1))
    for loss in (gan.generator(restored, real), gan.discriminator(restored, real)):
        grads = torch.autograd.grad(loss[0], (restored, real), allow_unused=True)
        others = sum(float(grad[1:].abs().sum()) for grad in grads if grad is not None)
        assert (others > 0) == gan.couples_images


def test_the_relativistic_loss_wants_real_images():
    with pytest.raises(ValueError, match="needs the logits of real images"):
        GAN_LOSSES["relativistic"]().generator(torch.zeros(2, 1))


@pytest.mark.parametrize("name", GAN_LOSSES)
@pytest.mark.parametrize("kind", ["vgg", "unet"])
def test_of_images(name, kind):
    """G's term through a discriminator: its own formula, its gradient for restored images, none for real ones."""
    torch.manual_seed(0)
    model = build_discriminator(kind, 16, features=2)
    gan = GAN_LOSSES[name]()
    loss = AdversarialLoss(FrozenModule(model, torch.float32), gan)
    restored = torch.rand(3, 3, 16, 16, requires_grad=True)
    hr = torch.rand(3, 3, 16, 16, requires_grad=True)
    found = loss(restored, hr)
    assert found.shape == (3,)
    model.eval()
    expected = gan.generator(model(restored), model(hr.detach()))
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(one.sum(), (restored, hr), allow_unused=True) for one in (found, expected)]
    torch.testing.assert_close(grads[0][0], grads[1][0])
    assert grads[0][1] is None


@pytest.mark.parametrize("name", GAN_LOSSES)
def test_real_images_are_looked_at_once_or_never(name):
    seen = []

    def discriminator(images):
        seen.append(len(images))
        return images.mean(dim=(1, 2, 3))

    loss = AdversarialLoss(discriminator, GAN_LOSSES[name]())
    hr = torch.rand(2, 3, 4, 4)
    loss.hr_cache.remember(hr)
    for _ in range(3):
        loss(torch.rand(2, 3, 4, 4), hr)
    assert sum(seen) == 2 * (3 + loss.gan.needs_real)


@pytest.mark.parametrize("name", GAN_LOSSES)
@pytest.mark.parametrize("kind", ["vgg", "unet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_discriminator_s_update(name, kind, dtype):
    """A batch of both kinds in one pass; nothing flows to G; a step along the gradient lowers the loss."""
    torch.manual_seed(0)
    model = build_discriminator(kind, 16, features=4)
    view, gan = AutocastModule(model, dtype), GAN_LOSSES[name]()
    restored, hr = torch.rand(4, 3, 16, 16, requires_grad=True), torch.rand(4, 3, 16, 16).round()
    seen = []
    losses = []
    for _ in range(20):
        loss = discriminator_loss(lambda images: seen.append(len(images)) or view(images), restored, hr, gan)
        assert loss.shape == (4,)
        assert loss.dtype == torch.float32
        model.zero_grad()
        loss.mean().backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 0.03 * weight.grad
        losses.append(float(loss.mean().detach()))
    assert losses[-1] < losses[0]
    assert seen == [8] * 20
    assert restored.grad is None
    logits = AutocastModule(model.eval(), torch.float32)(torch.cat([restored.detach(), hr]))
    assert logits[4:].mean() > logits[:4].mean()
