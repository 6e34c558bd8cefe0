"""The discriminator D of a run, and its update: the last sub-step (Fig. 2; Sec 3.4)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from andfast.losses import discriminator_logits
from andfast.losses.common import per_image
from andfast.models.frozen import AutocastModule, FrozenModule
from andfast.training.config import Config
from andfast.training.distributed import World, no_sync_until_last
from andfast.training.optimizer import (
    Guard,
    begin_update,
    finish_update,
    gradient_norm,
    load_optimizer,
    make_optimizer,
    own_average,
)
from andfast.utils.rng import seeded


class DiscriminatorStep:
    """D, its optimizer, its update, and a frozen copy of it for G and the adversary.

    Args:
        config: the run's settings, with `loss.gan` above 0.
        device: of D.
        precision: the type it computes in.
        world: the processes; None: one. Each of several calls `connect` before the first update.

    Attributes:
        module: D, in training mode.
        frozen: D as G and the adversary call it: images are independent, and no pass changes D.
        guard: skips updates that are not finite.
        learning_rate: the optimizer's, at its highest.

    Raises:
        FileNotFoundError, ValueError: as `DiscriminatorConfig.build`.
    """

    def __init__(
        self, config: Config, device: torch.device, precision: torch.dtype, world: World | None = None
    ) -> None:
        settings = config.discriminator
        with seeded(config.seed):
            module = settings.build(config.train.patch_size)
        self.module = module.to(device, memory_format=torch.channels_last)
        self.frozen = FrozenModule(self.module, precision)
        self._world = world or World()
        self.guard = Guard(device, self._world)
        self.learning_rate = settings.learning_rate or config.train.learning_rate
        self._weights = list(self.module.parameters())
        self.optimizer = make_optimizer(config.train, self._weights, self.learning_rate, self.guard)
        self._autocast = AutocastModule(self.module, precision)
        self._gan = config.loss.gan_kind()
        self._micro_batch, self._patch_size = config.train.micro_batch, config.train.patch_size
        self._clip_grad = config.train.clip_grad

    def connect(self) -> None:
        """Average gradients over all processes from now on: each calls this once, after any `load`."""
        size = self._patch_size
        self._world.connect(self._autocast, torch.zeros(2, 3, size, size, device=self.guard.bad.device))

    def update(self, step: int, restored: Tensor, hr: Tensor, lr: Tensor, learning_rate: float) -> dict[str, Tensor]:
        """Update D (sub-step 4). If losses or gradient are not finite nothing changes, running statistics included.

        Args:
            step: from 0.
            restored: (B, 3, H, W), from the forward pass of G's update; no gradient flows there.
            hr: (B, 3, H, W) in [0, 1].
            lr: (B, 3, h, w), which the guard keeps if the update is skipped.
            learning_rate: of this update.

        Returns:
            D's mean loss, the norm of its gradient, its mean logits on real and on restored images; on the device.
        """
        buffers = [buffer.clone() for buffer in self.module.buffers()]
        begin_update(self.optimizer, learning_rate)
        losses, real, fake = self._backward(restored, hr)
        norm = gradient_norm(self._weights)
        self.guard.check(step, losses, norm, hr, lr)
        finish_update(self.optimizer, self._weights, norm, self._clip_grad, self.guard)
        self._share_statistics()
        for buffer, old in zip(self.module.buffers(), buffers, strict=True):
            torch.where(self.guard.bad > 0, old, buffer, out=buffer)
        self.frozen.refresh()
        logits = {"logit_real": real.mean(), "logit_restored": fake.mean()}
        return {"loss_d": losses.mean(), "norm_d": norm, **logits}

    def _backward(self, restored: Tensor, hr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Add up the gradients of the mean loss over the micro-batches; returns losses and mean logits, (B,) each."""
        images = self._micro_batch or len(hr)
        results = []
        left = len(hr)
        try:
            for part, target in zip(restored.split(images), hr.split(images), strict=True):
                left -= len(part)
                with no_sync_until_last(self._autocast.module, last=left == 0):
                    fake, real = discriminator_logits(self._autocast, part, target)
                    losses = self._gan.discriminator(fake, real)
                    (losses.sum() / len(hr)).backward()
                results.append([each.detach() for each in (losses, per_image(real), per_image(fake))])
                # One power iteration of spectral norms an update, however many parts it has: D is one network for all.
                self.module.eval()
        finally:
            self.module.train()
        return tuple(torch.cat(each) for each in zip(*results, strict=True))

    def _share_statistics(self) -> None:
        """Average the running means and variances of batch norms over the processes."""
        norms = [module for module in self.module.modules() if isinstance(module, nn.BatchNorm2d)]
        if self._world.size == 1 or not norms:
            return
        statistics = [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
        means = self._world.mean(torch.cat(statistics))
        torch._foreach_copy_(statistics, list(means.split([len(each) for each in statistics])))

    def describe(self) -> str:
        """The kind and size of D, for people."""
        count = sum(weight.numel() for weight in self._weights)
        return f"{type(self.module).__name__} with {count:,} parameters"

    @torch.no_grad()
    def averaged(self) -> nn.Module:
        """D to save: with schedule-free a copy with the weights that it averages, else D itself."""
        averages = own_average(self.optimizer)
        if averages is None:
            return self.module
        module = copy.deepcopy(self.module)
        torch._foreach_copy_(list(module.parameters()), averages)
        return module

    def state(self) -> dict[str, Any]:
        """The resumable state."""
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self.module.load_state_dict(state["module"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.frozen.refresh()
