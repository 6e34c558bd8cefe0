"""GAN losses: Eq. 3, and how it is read here.

With the logits f of restored and r of real images and D = sigmoid(logit), Eq. 3 is L_GAN = log D(r) - log D(f), and
Eq. 1 reads min over G of max over D and F of it. So G lowers -log D(f), which makes D take its images for real; F
raises that same term, which makes G's images "easier for the discriminator to distinguish" (Sec 3.4); and log D(r)
depends on D alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.losses.common import HRCache, at_least_float32, per_image


class GANLoss(ABC):
    """The losses of G (and F) and of D, from the logits of restored and of real images.

    Logits are (B, ...): one an image, or a map, over whose pixels losses are averaged.
    """

    needs_real: ClassVar[bool] = False
    """Whether G's term uses the logits of real images."""

    couples_images: ClassVar[bool] = False
    """Whether an image's loss depends on the logits of other images in the batch."""

    @abstractmethod
    def generator(self, restored: Tensor, real: Tensor | None = None) -> Tensor:
        """G's term, which G lowers and the adversary raises, for each image, (B,).

        Args:
            restored: logits of restored images, (B, ...).
            real: logits of HR images, (B, ...), constants; used only with `needs_real`.
        """

    @abstractmethod
    def discriminator(self, restored: Tensor, real: Tensor) -> Tensor:
        """D's loss, for each pair of images, (B,).

        Args:
            restored, real: logits of restored and of HR images, (B, ...).
        """


class Vanilla(GANLoss):
    """Eq. 3 for G and F: -log D(f). For D: -log D(r) - log(1 - D(f)), as in SRGAN, which the paper cites for L_GAN.

    That is Goodfellow's loss with G's gradient where D is right, too ("non-saturating"). Eq. 3 to the letter is `Eq3`.
    """

    def generator(self, restored: Tensor, real: Tensor | None = None) -> Tensor:
        return per_image(-F.logsigmoid(restored))

    def discriminator(self, restored: Tensor, real: Tensor) -> Tensor:
        return per_image(-F.logsigmoid(real)) + per_image(-F.logsigmoid(-restored))


class Eq3(Vanilla):
    """Eq. 3 to the letter for D as well: -L_GAN = -log D(r) + log D(f).

    Here for study. It has no lower bound: D can lower it for ever by lowering the logits of restored images that it
    recognises, and learns next to nothing from those that it takes for real.
    """

    def discriminator(self, restored: Tensor, real: Tensor) -> Tensor:
        return per_image(-F.logsigmoid(real)) + per_image(F.logsigmoid(restored))


class Relativistic(GANLoss):
    """ESRGAN's relativistic average (Jolicoeur-Martineau 2018, arXiv:1807.00734): is r more real than f is on average?

    D: -log sigmoid(r - mean f) - log(1 - sigmoid(f - mean r)), G: the same with f and r exchanged. Means are over all
    images and all pixels. ESRGAN's published code halves both.
    """

    needs_real = True
    couples_images = True

    def generator(self, restored: Tensor, real: Tensor | None = None) -> Tensor:
        if real is None:
            raise ValueError("the relativistic loss of G needs the logits of real images")
        return self.discriminator(real, restored)

    def discriminator(self, restored: Tensor, real: Tensor) -> Tensor:
        return per_image(-F.logsigmoid(real - restored.mean())) + per_image(-F.logsigmoid(real.mean() - restored))


class Hinge(GANLoss):
    """The hinge loss (Lim and Ye 2017, arXiv:1705.02894): D: max(0, 1 - r) + max(0, 1 + f); G: -f."""

    def generator(self, restored: Tensor, real: Tensor | None = None) -> Tensor:
        return per_image(-restored)

    def discriminator(self, restored: Tensor, real: Tensor) -> Tensor:
        return per_image(F.relu(1 - real)) + per_image(F.relu(1 + restored))


GAN_LOSSES: dict[str, type[GANLoss]] = {
    "vanilla": Vanilla,
    "eq3": Eq3,
    "relativistic": Relativistic,
    "hinge": Hinge,
}
"""The GAN losses by the names that configurations use."""


class AdversarialLoss:
    """The part of L_GAN that depends on G and F, for each image.

    Args:
        discriminator: (B, 3, H, W) -> logits (B, ...). For G and the adversary a `FrozenModule`: batch norms then use
            their running statistics, so that images are independent, and no pass changes D.
        gan: the loss of its logits.
    """

    def __init__(self, discriminator: Callable[[Tensor], Tensor], gan: GANLoss) -> None:
        self._discriminator, self.gan = discriminator, gan
        self.hr_cache = HRCache(lambda hr: [at_least_float32(discriminator(hr))] if gan.needs_real else [])

    def __call__(self, restored: Tensor, hr: Tensor) -> Tensor:
        """(restored (B,3,H,W), hr (B,3,H,W) in [0, 1]) -> (B,) in float32 or wider; no gradient flows to `hr`."""
        return self.gan.generator(at_least_float32(self._discriminator(restored)), *self.hr_cache(hr))


def discriminator_logits(
    discriminator: Callable[[Tensor], Tensor], restored: Tensor, hr: Tensor
) -> tuple[Tensor, Tensor]:
    """The logits of restored and of real images in D's own update (sub-step 4), (B, ...) each, in float32 or wider.

    They go through D as one batch, so that its batch norms use statistics of both kinds, like the running statistics
    with which G and the adversary use D.

    Args:
        discriminator: (2B, 3, H, W) -> logits (2B, ...), in training mode.
        restored: (B, 3, H, W); no gradient flows to it.
        hr: (B, 3, H, W) in [0, 1].
    """
    of_restored, of_hr = at_least_float32(discriminator(torch.cat([restored.detach(), hr]))).chunk(2)
    return of_restored, of_hr


def discriminator_loss(discriminator: Callable[[Tensor], Tensor], restored: Tensor, hr: Tensor, gan: GANLoss) -> Tensor:
    """D's loss for each pair of images, (B,).

    Args:
        discriminator, restored, hr: as for `discriminator_logits`.
        gan: the loss of the logits.
    """
    return gan.discriminator(*discriminator_logits(discriminator, restored, hr))
