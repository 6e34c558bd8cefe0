"""What all attacks share: how they are called, the inputs of a search, its best iterate, and the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.attack.budget import draw_budget, network_psnr
from andfast.degradation.lens import Lens
from andfast.degradation.network import DegradationNetwork
from andfast.losses import Objective
from andfast.ops import scaled_norm
from andfast.ops.theta_layout import ScaleFactors, ThetaLayout


@dataclass
class AttackResult:
    """The result of an attack with N networks on B images, after `steps` gradient steps.

    `AdversarialNoise`, `Bicubic`, `BSRGAN` and `RealESRGAN` have no networks: every image is independent, and N is B.

    Attributes:
        lr: (B, 3, h, w) in [0, 1], the degraded images.
        clean: (B, 3, h, w) in [0, 1], the clean LR images: the identity's, behind its lens if it has one, or bicubic.
        delta: (N, P), the deviation from the identity, or None without networks.
        theta: (N, P), theta_id plus the deviation, or None without networks.
        losses: (1 + steps, N): the objective on the clean LR images, then after every step (`YOPO`: every pass through
            G; `FreeAT`: every replay but the first). Without the last row where `loss_after` is None; empty for
            `Simulated`, which computes no loss.
        loss_after: (N,) the loss of `lr`: the largest of `losses`, or for `FreeAT` the last one. `SubsetPGD` knows it
            for its part of the images only. None where it was not computed (`return_iterate` "last", `Simulated`).
        distance: (N,) the scaled norm ||s * delta||_2; for `AdversarialNoise` the 2-norm of the added noise before
            the image is clamped to [0, 1], for `Simulated` that of the difference to the clean LR image.
        distance_by_group: (N, 3) the same for the convolutions, the noise and the slopes alone, whose squares add up
            to that of `distance`; None without networks.
        lr_psnr: (N,) PSNR in dB of `lr` against `clean`.
        budget_db: (N,) the least `lr_psnr` allowed; -inf without a budget. Only a deviation of zero may miss it: in
            half types narrow networks round more than that (bfloat16, 12 draws: 54 dB from the clean image at 64
            channels, 42 at 16, 27 at 8).
    """

    lr: Tensor
    clean: Tensor
    delta: Tensor | None
    theta: Tensor | None
    losses: Tensor
    loss_after: Tensor | None
    distance: Tensor
    distance_by_group: Tensor | None
    lr_psnr: Tensor
    budget_db: Tensor

    @property
    def loss_before(self) -> Tensor | None:
        """(N,), the loss of the clean LR images; None where no loss was computed."""
        return self.losses[0] if len(self.losses) else None


@dataclass(frozen=True)
class SearchInputs:
    """The inputs of a search.

    Attributes:
        network, hr, generator: as in `Attack.__call__`.
        input: (B, 3, H, W), the network's input: `hr`, or `hr` through a lens.
        clean: (B, 3, h, w), the clean LR images.
        budget_db: (N,), the least PSNR of an LR image against the clean one.
    """

    network: DegradationNetwork
    hr: Tensor
    input: Tensor
    clean: Tensor
    budget_db: Tensor
    generator: torch.Generator | None


class BestIterate:
    """The iterate with the largest loss so far, for each network (or image), and the losses of all iterates.

    Attributes:
        losses: (N,) for each iterate.
        loss, lr, variable: the loss (N,), images (B, 3, h, w) and variable (N, ...) of the iterate to return.
    """

    loss: Tensor | None
    lr: Tensor
    variable: Tensor

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def update(self, loss: Tensor, lr: Tensor, variable: Tensor) -> None:
        """Take an iterate over for those networks whose loss it raises."""
        self.losses.append(loss)
        if len(self.losses) == 1:
            self.loss, self.lr, self.variable = loss, lr, variable
            return
        worse = loss > self.loss
        per_image = worse.repeat_interleave(len(lr) // len(loss))[:, None, None, None]
        self.loss = torch.where(worse, loss, self.loss)
        self.lr = torch.where(per_image, lr, self.lr)
        self.variable = torch.where(worse[:, None], variable, self.variable)

    def replace(self, lr: Tensor, variable: Tensor, loss: Tensor | None = None) -> None:
        """Take an iterate over regardless of its loss, which may be unknown."""
        if loss is not None:
            self.losses.append(loss)
        self.loss, self.lr, self.variable = loss, lr, variable


class Attack(ABC):
    """A way to degrade HR images within a budget.

    Attributes:
        psnr_range: (low, high) in dB, the range from which the least PSNR of an LR image is drawn; None: no budget.
    """

    psnr_range: tuple[float, float] | None

    def __call__(
        self,
        network: DegradationNetwork,
        hr: Tensor,
        objective: Objective,
        generator: torch.Generator | None = None,
        margin_db: float = 0.0,
    ) -> AttackResult:
        """Degrade `hr`.

        Args:
            network: fresh from `reset_identity` for images of this size; not changed.
            hr: (B, 3, H, W) in [0, 1].
            objective: the loss to maximise, one value an image.
            generator: for random choices, on hr's device; None for torch's own.
            margin_db: added to the LR-PSNR budget, which makes it milder (the ramp of training).

        Raises:
            RuntimeError, TypeError, ValueError: the network has no parameters, or the images do not fit it.
        """
        inputs = self._prepare(network, hr, generator, margin_db)
        best = self._search(inputs, objective)
        delta, theta, distance, by_group = self._deviation(network, best.variable)
        count = len(inputs.budget_db)
        return AttackResult(
            lr=best.lr,
            clean=inputs.clean,
            delta=delta,
            theta=theta,
            losses=torch.stack(best.losses) if best.losses else hr.new_empty(0, count),
            loss_after=best.loss,
            distance=distance,
            distance_by_group=by_group,
            lr_psnr=network_psnr(best.lr, inputs.clean, count),
            budget_db=inputs.budget_db,
        )

    def _prepare(
        self, network: DegradationNetwork, hr: Tensor, generator: torch.Generator | None, margin_db: float
    ) -> SearchInputs:
        """Check the arguments of `__call__`, make the clean LR images and draw the budgets."""
        count = self._count(network, hr)
        network_input = self.preprocess(hr, count, generator)
        clean = self.clean(network, network_input)
        budget_db = draw_budget(self.psnr_range, count, margin_db, hr.device, generator)
        return SearchInputs(network, hr, network_input, clean, budget_db, generator)

    def preprocess(self, hr: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        """The input of `count` networks, (B, 3, H, W), for HR images `hr`.

        An attack draws this first, so a generator in the same state gives the input that the attack uses.

        Args:
            hr: (B, 3, H, W) in [0, 1].
            count: divides B; B / count consecutive images share a network.
            generator: on hr's device; None for torch's own.
        """
        return hr

    @abstractmethod
    def clean(self, network: DegradationNetwork, hr: Tensor) -> Tensor:
        """The LR images that the method starts from, (B, 3, h, w).

        Args:
            network: has parameters for images of this size; a method without networks uses its scale only.
            hr: (B, 3, H, W) in [0, 1], from `preprocess`.
        """

    @abstractmethod
    def _count(self, network: DegradationNetwork, hr: Tensor) -> int:
        """N: the number of budgets, and of variables to search."""

    @abstractmethod
    def _search(self, inputs: SearchInputs, objective: Objective) -> BestIterate:
        """Search the variables, (N, ...)."""

    @abstractmethod
    def _deviation(
        self, network: DegradationNetwork, variable: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
        """The result's delta, theta, distance and distance_by_group for the variables (N, ...)."""


class NetworkAttack(Attack):
    """An attack whose variable is `delta`, the networks' deviation from the identity.

    Attributes:
        lens: between the HR images and the networks, drawn anew for each network; None: no lens.
    """

    scale_factors: ScaleFactors
    lens: Lens | None

    def preprocess(self, hr: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        """`hr` through the lenses of `count` networks, drawn from `generator`; `hr` itself without a lens."""
        return hr if self.lens is None else self.lens(hr, count, generator)

    def clean(self, network: DegradationNetwork, hr: Tensor) -> Tensor:
        """The LR images of the identity networks of `network`: `hr` pooled."""
        return network.clean(hr)

    def inv_scale(self, network: DegradationNetwork) -> Tensor:
        """1 / s of the scaled norm for the theta of `network`, (P,); 0 for parameters that must not move.

        Shared between calls; do not write to it.
        """
        return _inv_scale(network.layout, self.scale_factors, network.theta_id.device)

    def distance_by_group(self, network: DegradationNetwork, delta: Tensor) -> Tensor:
        """Scaled norms of the parts of `network`'s deviation `delta` (N, P), by `ThetaLayout.groups`: (N, 3)."""
        inv_scale, groups = self.inv_scale(network), network.layout.groups.values()
        return torch.stack([scaled_norm(delta[:, columns], inv_scale[columns]) for columns in groups], dim=1)

    def _count(self, network: DegradationNetwork, hr: Tensor) -> int:
        network.check_images(hr)
        return network.num_networks

    def _deviation(self, network: DegradationNetwork, variable: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        theta = network.theta_id + network.layout.to_taps(variable)
        by_group = self.distance_by_group(network, variable)
        return variable, theta, by_group.norm(dim=1), by_group


@lru_cache(maxsize=8)
def _inv_scale(layout: ThetaLayout, factors: ScaleFactors, device: torch.device) -> Tensor:
    return 1 / layout.scale_vector(factors, device)


class ImageAttack(Attack):
    """An attack without a network, on each image separately: the variable is what is added to its pixels."""

    def clean(self, network: DegradationNetwork, hr: Tensor) -> Tensor:
        """`hr` downsampled bicubically by the scale of `network`, which is not used otherwise."""
        return bicubic_downsample(hr, network.scale)

    def _count(self, network: DegradationNetwork, hr: Tensor) -> int:
        return len(hr)

    def _deviation(self, network: DegradationNetwork, variable: Tensor) -> tuple[None, None, Tensor, None]:
        return None, None, variable.norm(dim=1), None


def by_network(per_image: Tensor, num_networks: int) -> Tensor:
    """(B,) -> (N,): the mean over the images that share a network."""
    return per_image.unflatten(0, (num_networks, -1)).mean(dim=1)


def bicubic_downsample(hr: Tensor, scale: int) -> Tensor:
    """Downsample (B, C, H, W) -> (B, C, H/s, W/s) bicubically with antialiasing, like Pillow and MATLAB; clamped.

    Raises:
        ValueError: H or W is not a multiple of `scale`.
    """
    height, width = hr.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"image is {height} x {width}; both must be multiples of the scale, {scale}")
    size = (height // scale, width // scale)
    return F.interpolate(hr, size=size, mode="bicubic", antialias=True).clamp(0, 1)
