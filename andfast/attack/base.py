"""What all attacks share: how they are called, how they search, and what they return."""

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
    """What an attack found. N networks, B images, `steps` gradient steps.

    `Noise`, `Bicubic`, `BSRGAN` and `RealESRGAN` have no networks: for them every image stands alone, and N is B.

    Attributes:
        lr: (B, 3, h, w) in [0, 1], the degraded images.
        clean: (B, 3, h, w) in [0, 1], the clean LR images: the identity's, behind its lens if it has one, or bicubic.
        delta: (N, P), the deviation from the identity, or None where no network took part.
        theta: (N, P), theta_id plus the deviation, or None likewise.
        losses: (1 + steps, N): the objective on the clean LR image, then after every step (`YOPO`: every pass through
            G; `Free`: every replay but the first); the last row is not there where `loss_after` is None, and none is
            where no loss was looked at (`Simulated`).
        loss_after: (N,) the loss of `lr`. Of a search that is the worst iterate, and its loss the largest found; of
            `Free` the last one. `Subset` has seen no loss but that of its part of the images. None where it was not
            computed (`keep` "last", `Simulated`).
        distance: (N,) the scaled norm ||s * delta||_2 reached; for `Noise` the 2-norm of the added noise before
            the image is clamped to [0, 1], for `Simulated` that of the difference to the clean LR image.
        distance_by_group: (N, 3) the same of the convolutions, the noise and the slopes alone, whose squares add up to
            that of `distance`; None where no network took part.
        lr_psnr: (N,) PSNR in dB of `lr` against `clean`.
        budget_db: (N,) the least `lr_psnr` allowed; -inf where there was no such budget. Only a deviation of zero
            may miss it: in half types narrow networks round more than that (bfloat16, 12 draws: 54 dB from the
            clean image at 64 channels, 42 at 16, 27 at 8).
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
        """(N,), the loss of the clean LR image; None where no loss was looked at."""
        return self.losses[0] if len(self.losses) else None


@dataclass(frozen=True)
class Task:
    """What a search works on: the arguments of `Attack.__call__`, and what follows from them.

    Attributes:
        network, hr, objective, generator: as in `Attack.__call__`.
        seen: (B, 3, H, W), the HR images as the network gets them: through a lens, if there is one.
        clean: (B, 3, h, w), the clean LR images.
        budget_db: (N,), the least PSNR of an LR image against the clean one.
    """

    network: DegradationNetwork
    hr: Tensor
    seen: Tensor
    clean: Tensor
    objective: Objective
    budget_db: Tensor
    generator: torch.Generator | None


class Iterates:
    """What a search has seen: the losses of all iterates, and the worst one of each network (or image)."""

    loss: Tensor | None
    lr: Tensor
    variable: Tensor

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def see(self, loss: Tensor, lr: Tensor, variable: Tensor) -> None:
        """Take in an iterate: its loss (N,), its images (B, 3, h, w), and the variable (N, ...) that gave them."""
        self.losses.append(loss)
        if len(self.losses) == 1:
            self.loss, self.lr, self.variable = loss, lr, variable
            return
        worse = loss > self.loss
        per_image = worse.repeat_interleave(len(lr) // len(loss))[:, None, None, None]
        self.loss = torch.where(worse, loss, self.loss)
        self.lr = torch.where(per_image, lr, self.lr)
        self.variable = torch.where(worse[:, None], variable, self.variable)

    def end(self, lr: Tensor, variable: Tensor, loss: Tensor | None = None) -> None:
        """Take in an iterate that stands however good or bad it is; its loss need not be known."""
        if loss is not None:
            self.losses.append(loss)
        self.loss, self.lr, self.variable = loss, lr, variable


class Attack(ABC):
    """A way to degrade HR images within a budget.

    Attributes:
        lr_psnr: (low, high) in dB, the range from which the least PSNR of an LR image is drawn; None: no such budget.
    """

    lr_psnr: tuple[float, float] | None

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
            objective: what to make large; a loss for each image.
            generator: where random choices come from, a generator of hr's device; None for torch's own.
            margin_db: makes an LR-PSNR budget milder by so many dB: a curriculum's ramp.

        Raises:
            RuntimeError, TypeError, ValueError: the network has no parameters, or the images do not fit it.
        """
        seen, clean, budget_db = self._begin(network, hr, generator, margin_db)
        found = self._search(Task(network, hr, seen, clean, objective, budget_db, generator))
        delta, theta, distance, by_group = self._deviation(network, found.variable)
        return AttackResult(
            lr=found.lr,
            clean=clean,
            delta=delta,
            theta=theta,
            losses=torch.stack(found.losses) if found.losses else hr.new_empty(0, len(budget_db)),
            loss_after=found.loss,
            distance=distance,
            distance_by_group=by_group,
            lr_psnr=network_psnr(found.lr, clean, len(budget_db)),
            budget_db=budget_db,
        )

    def _begin(
        self, network: DegradationNetwork, hr: Tensor, generator: torch.Generator | None, margin_db: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the network sees, its clean LR images, and the budgets drawn, (N,); refuses what does not fit."""
        count = self._count(network, hr)
        seen = self.see(hr, count, generator)
        return seen, self.clean(network, seen), draw_budget(self.lr_psnr, count, margin_db, hr.device, generator)

    def see(self, hr: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        """The HR images as they are degraded by `count` networks, (B, 3, H, W).

        That is the first thing that an attack draws: from a generator in the same state it is what the attack sees.

        Args:
            hr: (B, 3, H, W) in [0, 1].
            count: divides B; as many images in a row share a network.
            generator: of hr's device; None for torch's own.
        """
        return hr

    @abstractmethod
    def clean(self, network: DegradationNetwork, hr: Tensor) -> Tensor:
        """The LR images that the method starts from, (B, 3, h, w).

        Args:
            network: has parameters for images of this size; a method without networks asks it for the scale alone.
            hr: (B, 3, H, W) in [0, 1], as `see` gives them.
        """

    @abstractmethod
    def _count(self, network: DegradationNetwork, hr: Tensor) -> int:
        """N: how many budgets there are, and variables to search."""

    @abstractmethod
    def _search(self, task: Task) -> Iterates:
        """Find the variables, (N, ...)."""

    @abstractmethod
    def _deviation(
        self, network: DegradationNetwork, variable: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
        """The result's delta, theta, distance and distance_by_group for the variables found."""


class NetworkAttack(Attack):
    """An attack whose variable is `delta`, the networks' deviation from the identity.

    Attributes:
        lens: what HR images are seen through by the networks; each draws a lens of its own. None: as they are.
    """

    scale_factors: ScaleFactors
    lens: Lens | None

    def see(self, hr: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        """`hr`, each of `count` networks' through a lens of its own drawn from `generator`, if there is a lens."""
        return hr if self.lens is None else self.lens(hr, count, generator)

    def clean(self, network: DegradationNetwork, hr: Tensor) -> Tensor:
        """`hr` as the identity networks of `network` make it: pooled."""
        return network.clean(hr)

    def inv_scale(self, network: DegradationNetwork) -> Tensor:
        """1 / s of the scaled norm for the theta of `network`, (P,); 0 for what may not move.

        Shared between calls, so not to be written to.
        """
        layout = network.layout
        sizes = (layout.image_size, layout.scale, layout.channels, layout.blocks, layout.noise_kind)
        return _inv_scale(sizes, self.scale_factors, network.theta_id.device)

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
def _inv_scale(sizes: tuple, factors: ScaleFactors, device: torch.device) -> Tensor:
    # Layouts are new for each batch and the same for a whole run.
    return 1 / ThetaLayout(*sizes).scale_vector(factors, device)


class ImageAttack(Attack):
    """An attack without a network, on each image by itself: the variable is what is added to its pixels."""

    def clean(self, network: DegradationNetwork, hr: Tensor) -> Tensor:
        """`hr` bicubic-downsampled by the scale of `network`, which has no other part in it."""
        return bicubic_downsample(hr, network.scale)

    def _count(self, network: DegradationNetwork, hr: Tensor) -> int:
        return len(hr)

    def _deviation(self, network: DegradationNetwork, variable: Tensor) -> tuple[None, None, Tensor, None]:
        return None, None, variable.norm(dim=1), None


def by_network(per_image: Tensor, num_networks: int) -> Tensor:
    """(B,) -> (N,): the mean over the images that share a network."""
    return per_image.unflatten(0, (num_networks, -1)).mean(dim=1)


def bicubic_downsample(hr: Tensor, scale: int) -> Tensor:
    """Bicubic downsampling with antialiasing, as Pillow and MATLAB do it: (B, C, H, W) -> (B, C, H/s, W/s), clamped.

    Raises:
        ValueError: H or W is not a multiple of `scale`.
    """
    height, width = hr.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"image is {height} x {width}; both must be multiples of the scale, {scale}")
    size = (height // scale, width // scale)
    return F.interpolate(hr, size=size, mode="bicubic", antialias=True).clamp(0, 1)
