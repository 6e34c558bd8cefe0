"""The generator's loss: of pixels and frequencies, and for ANDGAN a perceptual and an adversarial term (Eq. 1, 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from andfast.losses.adversarial import AdversarialLoss
from andfast.losses.common import per_image
from andfast.losses.perceptual import PerceptualLoss

Objective = Callable[[Tensor, Tensor], Tensor]
"""(lr (B,3,h,w), hr (B,3,H,W)) -> a loss for each image, (B,)."""

ImageLoss = Callable[[Tensor, Tensor], Tensor]
"""(restored (B,3,H,W), hr (B,3,H,W)) -> a loss for each image, (B,)."""


def l1_loss(restored: Tensor, hr: Tensor) -> Tensor:
    """||hr - restored||_1 as a mean over channels and pixels, for each image, (B,) (Eq. 2, first term).

    Args:
        restored, hr: (B, 3, H, W).
    """
    return per_image((restored - hr).abs())


def charbonnier_loss(restored: Tensor, hr: Tensor, eps: float = 1e-3) -> Tensor:
    """sqrt((restored - hr)^2 + eps^2) as a mean over channels and pixels, for each image, (B,).

    An L1 loss that is smooth around 0 (Lai et al. 2017, "Deep Laplacian Pyramid Networks", arXiv:1704.03915, Eq. 2).

    Args:
        restored, hr: (B, 3, H, W).
        eps: in the unit of the images, positive.
    """
    return per_image(((restored - hr).square() + eps**2).sqrt())


def frequency_loss(restored: Tensor, hr: Tensor) -> Tensor:
    """The L1 distance of two-dimensional Fourier transforms, for each image, (B,).

    Real and imaginary parts count each, as in MIMO-UNet (Cho et al. 2021, "Rethinking Coarse-to-Fine Approach in Single
    Image Deblurring", arXiv:2108.05054, Eq. 5). The transform is orthonormal, so that values are as large for each size
    of images; MIMO-UNet's is not, and its values are sqrt(H W) times as large.

    Args:
        restored, hr: (B, 3, H, W), float32 or wider.
    """
    return per_image(torch.view_as_real(torch.fft.fft2(restored - hr, norm="ortho")).abs())


class GeneratorLoss:
    """L1 + perceptual_weight * perceptual + gan_weight * adversarial, for each image: L_cont + lambda L_GAN (Eq. 1).

    Charbonnier's loss may take the place of L1, and `frequency_loss` be added with its weight. With `matching`,
    matching_weight times the distance in the discriminator's features is added, in place of VGG19's.

    G minimises it, and the degradation network F, the adversary, maximises it: Eq. 1 has min over G and max over F
    before both L_GAN and L_cont. Eq. 1 writes a maximum for each; as in Fig. 2 there is one search here, for the sum.
    A missing term, or one of weight 0, is not computed: without all this is `l1_loss`.

    Args:
        perceptual: the second term of L_cont; None: without it.
        adversarial: the part of L_GAN that depends on G and F; None: without it.
        perceptual_weight: not negative; the paper's is 1.
        gan_weight: lambda, not negative; the paper's is 0.1.
        matching: the distance in the discriminator's features (pix2pixHD's feature matching); None: without it.
        matching_weight: not negative.
        charbonnier_eps: of `charbonnier_loss`, which takes the place of L1; None: L1.
        frequency_weight: of `frequency_loss`, not negative.
        custom: any further term; None: without it.
        custom_weight: not negative.

    Attributes:
        pixel: the loss of pixels, L1 or Charbonnier's.

    Raises:
        ValueError: a weight is negative or NaN.
    """

    def __init__(
        self,
        perceptual: PerceptualLoss | None = None,
        adversarial: AdversarialLoss | None = None,
        perceptual_weight: float = 1.0,
        gan_weight: float = 0.1,
        matching: PerceptualLoss | None = None,
        matching_weight: float = 1.0,
        charbonnier_eps: float | None = None,
        frequency_weight: float = 0.0,
        custom: ImageLoss | None = None,
        custom_weight: float = 1.0,
    ) -> None:
        self.pixel: ImageLoss = l1_loss
        self._pixel_name = "l1"
        if charbonnier_eps is not None:
            self.pixel, self._pixel_name = partial(charbonnier_loss, eps=charbonnier_eps), "charbonnier"
        extra_terms: dict[str, tuple[float, ImageLoss | None]] = {
            "frequency": (frequency_weight, frequency_loss),
            "perceptual": (perceptual_weight, perceptual),
            "gan": (gan_weight, adversarial),
            "matching": (matching_weight, matching),
            "custom": (custom_weight, custom),
        }
        for name, (weight, _) in extra_terms.items():
            if not weight >= 0:
                raise ValueError(f"{name}_weight is {weight}; it must be at least 0")
        self._extra_terms = {
            name: (weight, term) for name, (weight, term) in extra_terms.items() if term is not None and weight
        }
        terms = [term for _, term in self._extra_terms.values()]
        self._caches = [term.hr_cache for term in terms if isinstance(term, (PerceptualLoss, AdversarialLoss))]

    def __call__(self, restored: Tensor, hr: Tensor) -> Tensor:
        """(restored (B,3,H,W), hr (B,3,H,W) in [0, 1]) -> (B,)."""
        return self.total(self.terms(restored, hr))

    def terms(self, restored: Tensor, hr: Tensor) -> dict[str, Tensor]:
        """The terms without their weights, each (B,): "l1" or "charbonnier", and the names of the others that are used.

        Args:
            restored, hr: (B, 3, H, W); hr in [0, 1].
        """
        return {
            self._pixel_name: self.pixel(restored, hr),
            **{name: term(restored, hr) for name, (_, term) in self._extra_terms.items()},
        }

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the result of `terms`, (B,)."""
        loss = terms[self._pixel_name]
        for name, (weight, _) in self._extra_terms.items():
            loss = loss + weight * terms[name]
        return loss

    @contextmanager
    def step(self, hr: Tensor) -> Iterator[None]:
        """Compute what depends on HR images alone once for the block, a step's attack and generator update.

        It is used for `hr` and any range of its rows. The discriminator must not change in the block.

        Args:
            hr: (B, 3, H, W) in [0, 1], the step's batch.
        """
        try:
            for cache in self._caches:
                cache.remember(hr)
            yield
        finally:
            for cache in self._caches:
                cache.forget()


def generator_objective(generator: Callable[[Tensor], Tensor], loss: ImageLoss) -> Objective:
    """The objective that G minimises and the adversary maximises: the loss of the images that G restores.

    Args:
        generator: (B, 3, h, w) -> (B, 3, H, W).
        loss: usually a `GeneratorLoss`.
    """

    def objective(lr: Tensor, hr: Tensor) -> Tensor:
        return loss(generator(lr).float(), hr)

    return objective


def relative_objective(
    objective: Objective, baseline: Callable[[Tensor], Tensor] | None, pixel: ImageLoss = l1_loss
) -> Objective:
    """`objective`, whose gradient is that of its difference from the loss of a `baseline`'s images.

    An adversary that climbs the loss alone spends its budget on what nothing can restore. The difference grows where
    the generator does worse than the baseline on the same LR images, as in minimax regret. The values are those of
    `objective`, so losses mean the same with a baseline and without.

    Args:
        objective: of the generator.
        baseline: (B, 3, h, w) -> (B, 3, H, W), such as bicubic interpolation; None: `objective` alone.
        pixel: the loss of its images.
    """
    if baseline is None:
        return objective

    def relative(lr: Tensor, hr: Tensor) -> Tensor:
        loss = objective(lr, hr)
        if not lr.requires_grad:
            return loss
        of_baseline = pixel(baseline(lr).float(), hr)
        return loss - (of_baseline - of_baseline.detach())

    return relative


def l1_objective(generator: Callable[[Tensor], Tensor]) -> Objective:
    """ANDNet's objective: `l1_loss` of the images that `generator`, (B, 3, h, w) -> (B, 3, H, W), restores."""
    return generator_objective(generator, l1_loss)


def no_objective(lr: Tensor, hr: Tensor) -> Tensor:
    """The objective of attacks that need none: 0 for each image of `lr`, (B,); `hr` is not used."""
    return lr.new_zeros(len(lr))
