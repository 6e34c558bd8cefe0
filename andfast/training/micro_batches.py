"""The same step in less memory: a batch in parts, of which never two are on the way at once.

Images do not see each other in G, so the loss of each and its gradient are those of the whole batch. Images that share
a degradation network add up their gradients on its theta.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint

from andfast.degradation.network import DegradationNetwork
from andfast.losses import Objective


def check_micro_batch(images: int, batch: int, attacked: int, networks: int, noise: str) -> None:
    """Refuse micro-batches of `images` that the step could not be made from.

    Args:
        images: of a micro-batch.
        batch: images of the update.
        attacked: those of them that the adversary is shown.
        networks: that these share.
        noise: kind of the noise injections.

    Raises:
        ValueError: the message names the keys of the configuration.
    """
    start = f"train.micro_batch is {images}; "
    if batch % images:
        raise ValueError(f"{start}it must divide train.batch_size, {batch}")
    each = attacked // networks
    if images % each and each % images:
        raise ValueError(
            f"{start}degradation.num_networks {networks} gives every network {each} images of the batch: it must be a "
            "multiple or a divisor of that"
        )
    if noise == "gaussian" and images % each:
        raise ValueError(
            f"{start}degradation.noise gaussian draws one field for all images of a network, which must stay together: "
            f"it must be a multiple of {each}"
        )


class MicroBatchedNetwork(DegradationNetwork):
    """A bank of degradation networks that keeps the activations of `micro_batch` images at most.

    In a pass that wants gradients nothing is kept but the images; each part is computed again when its gradient's
    turn comes, one forward pass more. Arguments but `micro_batch` as for `DegradationNetwork`.

    Args:
        micro_batch: images at once; a multiple or a divisor of the number of images that share a network.
    """

    def __init__(self, micro_batch: int, **options: Any) -> None:
        super().__init__(**options)
        self.micro_batch = micro_batch

    def forward(self, hr: Tensor, delta: Tensor | None = None) -> Tensor:
        """As `DegradationNetwork.forward`."""
        delta = self.delta if delta is None else delta
        self.check_images(hr)
        rows = max(self.micro_batch * self.num_networks // len(hr), 1)
        # Networks are split once, so that their gradients are joined once, and not added up as rows among zeros.
        banks = zip(
            hr.split(rows * len(hr) // self.num_networks),
            self.theta_id.split(rows),
            delta.split(rows),
            self.noise_seed.split(rows),
            strict=True,
        )
        return torch.cat(
            [
                checkpoint(self._degrade, part, *bank, use_reentrant=False, preserve_rng_state=False)
                for images, *bank in banks
                for part in images.split(self.micro_batch)
            ]
        )


def by_images(objective: Objective, images: int | None) -> Objective:
    """The same objective, of `images` at a time; None: of all at once.

    The loss of each image must depend on that image alone, and no gradient but that of `lr` can be had. Gradients are
    taken in the forward pass, where the part is at hand; they are as large as `lr`.
    """
    if images is None:
        return objective

    def in_parts(lr: Tensor, hr: Tensor) -> Tensor:
        if torch.is_grad_enabled() and lr.requires_grad:
            return _LossByImages.apply(lr, hr, objective, images)
        return torch.cat([objective(*parts) for parts in zip(lr.split(images), hr.split(images), strict=True)])

    return in_parts


class _LossByImages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, lr: Tensor, hr: Tensor, objective: Objective, images: int) -> Tensor:
        # What G computes in may be float16: gradients of a mean over all values of an image would underflow.
        ctx.scale = 2.0 ** round(math.log2(hr[0].numel()))
        losses, gradients = [], []
        for part, target in zip(lr.split(images), hr.split(images), strict=True):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                loss = objective(part, target)
                gradients += torch.autograd.grad(loss.sum() * ctx.scale, part)
            losses.append(loss.detach())
            del loss  # with its graph, before the next one
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * (grad / ctx.scale)[:, None, None, None], None, None, None
