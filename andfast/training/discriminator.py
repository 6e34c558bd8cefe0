"""The discriminator D of a run, and its update: the last sub-step (Fig. 2; Sec 3.4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from andfast.losses import discriminator_logits
from andfast.losses.per_image import per_image
from andfast.models.frozen import AutocastModule, FrozenModule
from andfast.training.config import Config
from andfast.training.distributed import World, no_sync_until_last
from andfast.training.guard import Guard
from andfast.training.optimizer import begin_update, gradient_norm, guarded_adam, load_adam

# What `Discrimination.update` tells: D's mean loss, its gradient's norm, its mean verdicts on real and restored images.
_FIELDS = ("loss_d", "norm_d", "logit_real", "logit_restored")


class Discrimination:
    """D, its optimizer, and how others see it.

    Args:
        config: the run's settings, with `loss.gan` above 0.
        device: where D lives.
        precision: the type it computes in.
        world: the processes; None: there is one. Of several each calls `connect` before the first update.

    Attributes:
        module: D, in training mode.
        frozen: the view that G and the adversary have of D: it judges each image by itself, and no pass changes it.
        guard: leaves an update out that is no number.
        learning_rate: Adam's, at its highest.

    Raises:
        FileNotFoundError, ValueError: as `DiscriminatorConfig.build`.
    """

    def __init__(
        self, config: Config, device: torch.device, precision: torch.dtype, world: World | None = None
    ) -> None:
        settings = config.discriminator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            module = settings.build(config.train.patch_size)
        self.module = module.to(device, memory_format=torch.channels_last)
        self.frozen = FrozenModule(self.module, precision)
        self._world = world or World()
        self.guard = Guard(device, self._world)
        self.learning_rate = settings.learning_rate or config.train.learning_rate
        self._weights = list(self.module.parameters())
        self.optimizer = guarded_adam(self._weights, self.learning_rate, self.guard)
        self._view = AutocastModule(self.module, precision)
        self._gan = config.loss.gan_kind()
        self._micro_batch, self._patch_size = config.train.micro_batch, config.train.patch_size

    def connect(self) -> None:
        """Have updates be those of all processes together: all must call this, after `load` if they do."""
        size = self._patch_size
        self._world.connect(self._view, torch.zeros(2, 3, size, size, device=self.guard.bad.device))

    def update(self, step: int, restored: Tensor, hr: Tensor, lr: Tensor, learning_rate: float) -> dict[str, Tensor]:
        """Sub-step 4. If losses or gradient are no numbers nothing changes, running statistics included.

        Args:
            step: from 0.
            restored: (B, 3, H, W), what G made, of its update's own forward pass; no gradient flows there.
            hr: (B, 3, H, W) in [0, 1].
            lr: (B, 3, h, w), what it was made of, to be studied should the numbers be none.
            learning_rate: of this update.

        Returns:
            Scalars on the device: `loss_d`, the gradient's `norm_d`, and the means `logit_real` and `logit_restored`.
        """
        before = [buffer.clone() for buffer in self.module.buffers()]
        begin_update(self.optimizer, learning_rate)
        losses, real, fake = self._backward(restored, hr)
        norm = gradient_norm(self._weights)
        self.guard.judge(step, losses, norm, hr, lr)
        self.optimizer.step()
        self._share_statistics()
        for buffer, old in zip(self.module.buffers(), before, strict=True):
            torch.where(self.guard.bad > 0, old, buffer, out=buffer)
        self.frozen.refresh()
        return dict(zip(_FIELDS, (losses.mean(), norm, real.mean(), fake.mean()), strict=True))

    def _backward(self, restored: Tensor, hr: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of the mean loss, added up over the micro-batches; losses and mean logits, (B,) each."""
        images = self._micro_batch or len(hr)
        found = []
        left = len(hr)
        try:
            for part, target in zip(restored.split(images), hr.split(images), strict=True):
                left -= len(part)
                with no_sync_until_last(self._view.module, last=left == 0):
                    fake, real = discriminator_logits(self._view, part, target)
                    losses = self._gan.discriminator(fake, real)
                    (losses.sum() / len(hr)).backward()
                found.append([each.detach() for each in (losses, per_image(real), per_image(fake))])
                # One turn of the power iterations an update, however many parts it has: D is one network for all.
                self.module.eval()
        finally:
            self.module.train()
        return tuple(torch.cat(each) for each in zip(*found, strict=True))

    def _share_statistics(self) -> None:
        """Let batch norms have the same running means and variances in all processes, averaged over these."""
        norms = [module for module in self.module.modules() if isinstance(module, nn.BatchNorm2d)]
        if self._world.size == 1 or not norms:
            return
        own = [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
        whole = self._world.mean(torch.cat(own))
        torch._foreach_copy_(own, list(whole.split([len(statistic) for statistic in own])))

    def describe(self) -> str:
        """For people."""
        count = sum(weight.numel() for weight in self._weights)
        return f"{type(self.module).__name__} with {count:,} parameters"

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on as if nothing had happened."""
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.module.load_state_dict(state["module"])
        load_adam(self.optimizer, state["optimizer"])
        self.frozen.refresh()
