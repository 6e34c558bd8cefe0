"""The same step in less memory: the batch in parts, of which one at a time keeps its activations.

G does not couple the images of a batch, so the loss and the gradient of each are those of the whole batch. Images that
share a degradation network add up their gradients on its theta.
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
    """Raise a ValueError for micro-batches that do not fit the batch and its degradation networks.

    Args:
        images: of a micro-batch.
        batch: images of the update.
        attacked: how many of them are attacked.
        networks: how many networks these share.
        noise: kind of the noise injections.
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

    The backward pass computes each part again, which costs one more forward pass.

    Args:
        micro_batch: images at once; a multiple or a divisor of the number of images that share a network.
        options: as for `DegradationNetwork`.
    """

    def __init__(self, micro_batch: int, **options: Any) -> None:
        super().__init__(**options)
        self.micro_batch = micro_batch

    def forward(self, hr: Tensor, delta: Tensor | None = None) -> Tensor:
        """As `DegradationNetwork.forward`."""
        delta = self.delta if delta is None else delta
        self.check_images(hr)
        rows = max(self.micro_batch * self.num_networks // len(hr), 1)
        # The bank is split once, so that its gradients are joined once, and not added up as rows among zeros.
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


def micro_batched(objective: Objective, images: int | None) -> Objective:
    """The same objective, computed on `images` at a time; None: on all at once.

    The loss of each image must depend on that image alone. Gradients flow to `lr` alone; they are computed in the
    forward pass, part by part.
    """
    if images is None:
        return objective

    def in_parts(lr: Tensor, hr: Tensor) -> Tensor:
        if torch.is_grad_enabled() and lr.requires_grad:
            return _MicroBatchedLoss.apply(lr, hr, objective, images)
        return torch.cat([objective(*parts) for parts in zip(lr.split(images), hr.split(images), strict=True)])

    return in_parts


class _MicroBatchedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, lr: Tensor, hr: Tensor, objective: Objective, images: int) -> Tensor:
        # G may compute in float16, where gradients of a mean over all values of an image would underflow.
        ctx.scale = 2.0 ** round(math.log2(hr[0].numel()))
        losses, gradients = [], []
        for part, target in zip(lr.split(images), hr.split(images), strict=True):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                loss = objective(part, target)
                gradients += torch.autograd.grad(loss.sum() * ctx.scale, part)
            losses.append(loss.detach())
            del loss  # frees its graph before the next part
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * (grad / ctx.scale)[:, None, None, None], None, None, None
