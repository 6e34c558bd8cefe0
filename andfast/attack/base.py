"""What all attacks share: how they are called, the result of a search, and that of the attack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from andfast.attack.budget import SearchInputs, by_image, draw_budget, network_psnr
from andfast.degradation.lens import Lens
from andfast.degradation.network import DegradationNetwork
from andfast.losses import Objective
from andfast.ops import scaled_norm
from andfast.ops.theta_layout import ScaleFactors, ThetaLayout


@dataclass
class AttackResult:
    """The result of an attack with N networks on B images; N is B for attacks without networks.

    Attributes:
        lr: (B, 3, h, w) in [0, 1], the degraded images.
        clean: (B, 3, h, w) in [0, 1], the clean LR images: the identity's (behind its lens, if any), or bicubic.
        delta: (N, P), the deviation from the identity; None without networks.
        theta: (N, P), theta_id plus the deviation; None without networks.
        losses: (1 + steps, N), the objective on the clean LR images, then after every step (`YOPO`: every pass through
            G; `FreeAT`: every replay but the first). Without the last row where `loss_after` is None; empty for
            `Simulated`, which computes no loss.
        loss_after: (N,), the loss of `lr`: the largest of `losses`, or for `FreeAT` the last one; for `SubsetPGD` of
            its part of the images. None where it was not computed (`return_iterate` "last", `Simulated`).
        distance: (N,), the scaled norm ||s * delta||_2; without networks the 2-norm of what was added to the clean LR
            image, before clamping.
        distance_by_group: (N, 3), that of the convolutions, the noise and the slopes alone; None without networks.
        lr_psnr: (N,), PSNR in dB of `lr` against `clean`.
        budget_db: (N,), the least `lr_psnr` allowed; -inf without a budget. Only a deviation of zero may miss it:
            narrow networks in half types round more than that (bfloat16: 54 dB from the clean image at 64 channels,
            42 at 16, 27 at 8).
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


class SearchResult:
    """What a search returns: one iterate for each network (or image), and the losses of all iterates.

    Attributes:
        losses: (N,) for each iterate.
        loss, lr, variable: the loss (N,), images (B, 3, h, w) and variable (N, ...) of the iterate to return.
    """

    loss: Tensor | None
    lr: Tensor
    variable: Tensor

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def tensors(self) -> list[Tensor]:
        """All tensors of the result."""
        return [*self.losses, *([] if self.loss is None else [self.loss]), self.lr, self.variable]

    def clone(self) -> SearchResult:
        """A copy in memory of its own."""
        result = SearchResult()
        result.losses = [loss.clone() for loss in self.losses]
        result.keep_last(self.lr.clone(), self.variable.clone())
        result.loss = None if self.loss is None else self.loss.clone()
        return result

    def keep_worst(self, loss: Tensor, lr: Tensor, variable: Tensor) -> None:
        """Add an iterate; it is returned for those networks whose loss is larger than before."""
        self.losses.append(loss)
        if len(self.losses) == 1:
            self.loss, self.lr, self.variable = loss, lr, variable
            return
        worse = loss > self.loss
        self.loss = torch.where(worse, loss, self.loss)
        self.lr = torch.where(by_image(worse, lr), lr, self.lr)
        self.variable = torch.where(worse[:, None], variable, self.variable)

    def keep_last(self, lr: Tensor, variable: Tensor, loss: Tensor | None = None) -> None:
        """Add an iterate that is returned whether or not its loss, which may be unknown, is larger."""
        if loss is not None:
            self.losses.append(loss)
        self.loss, self.lr, self.variable = loss, lr, variable


Search = Callable[[SearchInputs, Objective], SearchResult]
"""(inputs, objective) -> the variables with the largest objective that were found."""

Runner = Callable[[Search, SearchInputs, Objective], SearchResult]
"""(search, inputs, objective) -> the result of `search(inputs, objective)`."""


class Attack(ABC):
    """A way to degrade HR images within a budget.

    Attributes:
        psnr_range: (low, high) in dB, from which the least PSNR of an LR image is drawn; None: no budget.
        lens: between the HR images and what degrades them; None: no lens.
    """

    psnr_range: tuple[float, float] | None
    lens: Lens | None = None

    def __call__(
        self,
        network: DegradationNetwork,
        hr: Tensor,
        objective: Objective,
        rng: torch.Generator | None = None,
        margin_db: float = 0.0,
        runner: Runner | None = None,
    ) -> AttackResult:
        """Degrade `hr`.

        Args:
            network: fresh from `reset_identity` for images of this size; not changed.
            hr: (B, 3, H, W) in [0, 1].
            objective: the loss to maximise, one value an image.
            rng: for random choices, on hr's device; None for torch's own.
            margin_db: added to the budget, which makes the attack milder (the ramp of training).
            runner: runs the search, such as a `CapturedSearch`; None: it is simply called.

        Raises:
            RuntimeError, TypeError, ValueError: the network has no parameters, or the images do not fit it.
        """
        inputs = self._prepare(network, hr, rng, margin_db)
        search = self._search if runner is None else partial(runner, self._search)
        result = search(inputs, objective)
        delta, theta, distance, by_group = self._deviation(network, result.variable)
        count = len(inputs.budget_db)
        return AttackResult(
            lr=result.lr,
            clean=inputs.clean,
            delta=delta,
            theta=theta,
            losses=torch.stack(result.losses) if result.losses else hr.new_empty(0, count),
            loss_after=result.loss,
            distance=distance,
            distance_by_group=by_group,
            lr_psnr=network_psnr(result.lr, inputs.clean, count),
            budget_db=inputs.budget_db,
        )

    def _prepare(
        self, network: DegradationNetwork, hr: Tensor, rng: torch.Generator | None, margin_db: float
    ) -> SearchInputs:
        """Check the arguments of `__call__`, make the clean LR images and draw the budgets."""
        count = self._count(network, hr)
        network_input = self.preprocess(hr, count, rng)
        clean = self.clean(network, network_input)
        budget_db = draw_budget(self.psnr_range, count, margin_db, hr.device, rng)
        return SearchInputs(network, hr, network_input, clean, budget_db, rng, self._draw(network, rng))

    def _draw(self, network: DegradationNetwork, rng: torch.Generator | None) -> Tensor | None:
        """The random deviations that the search needs, (N, P); None: it needs none."""
        return None

    def preprocess(self, hr: Tensor, count: int, rng: torch.Generator | None) -> Tensor:
        """`hr`, (B, 3, H, W) in [0, 1], through the lenses of `count` networks or images; `hr` itself without a lens.

        An attack draws this first, so `rng` in the same state gives the input that the attack uses.
        """
        return hr if self.lens is None else self.lens(hr, count, rng)

    @abstractmethod
    def clean(self, network: DegradationNetwork, hr: Tensor) -> Tensor:
        """The LR images that the attack starts from, (B, 3, h, w), for `hr` from `preprocess`.

        An attack without networks uses only the scale of `network`.
        """

    @abstractmethod
    def _count(self, network: DegradationNetwork, hr: Tensor) -> int:
        """N: the number of budgets, and of variables to search."""

    @abstractmethod
    def _search(self, inputs: SearchInputs, objective: Objective) -> SearchResult:
        """Search for the variables, (N, ...), with the largest objective."""

    @abstractmethod
    def _deviation(
        self, network: DegradationNetwork, variable: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
        """The result's delta, theta, distance and distance_by_group for the variables (N, ...)."""


class NetworkAttack(Attack):
    """An attack whose variable is `delta`, the networks' deviation from the identity, perhaps behind a `lens`."""

    scale_factors: ScaleFactors

    def clean(self, network: DegradationNetwork, hr: Tensor) -> Tensor:
        """The LR images of the identity networks of `network`: `hr` pooled."""
        return network.clean(hr)

    def inv_scale(self, network: DegradationNetwork) -> Tensor:
        """1 / s of the scaled norm, (P,), for `network`; 0 for fixed parameters. It is cached: do not write to it."""
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
        """`hr` downsampled bicubically by the scale of `network`."""
        return bicubic_downsample(hr, network.scale)

    def _count(self, network: DegradationNetwork, hr: Tensor) -> int:
        return len(hr)

    def _deviation(self, network: DegradationNetwork, variable: Tensor) -> tuple[None, None, Tensor, None]:
        return None, None, variable.norm(dim=1), None


def by_network(per_image: Tensor, num_networks: int) -> Tensor:
    """(B,) -> (N,): the mean over the images that share a network."""
    return per_image.unflatten(0, (num_networks, -1)).mean(dim=1)


def bicubic_upsample(lr: Tensor, scale: int) -> Tensor:
    """Upsample (B, C, h, w) -> (B, C, h * scale, w * scale) bicubically, like Pillow; float32, not clamped.

    As two matrix products: on CUDA the gradient of `F.interpolate` adds up in any order, so that an attack through it
    would not give the same bits twice.
    """
    if scale == 1:
        return lr.float()
    rows, columns = (_bicubic_matrix(size, scale, lr.device) for size in lr.shape[-2:])
    return rows @ lr.float() @ columns.T


@lru_cache(maxsize=16)
def _bicubic_matrix(size: int, scale: int, device: torch.device) -> Tensor:
    """(size * scale, size): what each row of the larger image takes from those of the smaller one."""
    with unset_fake_temporarily():  # it is kept, and the first to ask may be a memory estimate on fake tensors
        unit = torch.eye(size, dtype=torch.float64)[None, None]
        rows = F.interpolate(unit, size=(size * scale, size), mode="bicubic", antialias=True)
        return rows[0, 0].to(device, torch.float32)


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
