"""The training step: the paper's sub-steps (Fig. 2), for ANDNet with L1 alone, for ANDGAN with a discriminator."""

from __future__ import annotations

import copy
import math
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from andfast.attack import PGD, Attack, AttackResult, FreeAT, Simulated
from andfast.attack.budget import network_psnr
from andfast.attack.captured import CapturedSearch
from andfast.degradation.network import DegradationNetwork
from andfast.losses import generator_objective, relative_objective
from andfast.models.compilation import CompileTimer, compile_regions, wants_compile
from andfast.models.foreign import ForeignModel
from andfast.models.frozen import AutocastModule, FrozenModule
from andfast.models.generators import architecture_name
from andfast.models.rrdbnet import RRDBNet
from andfast.models.weights import ModelError
from andfast.ops.precision import choose_precision
from andfast.training.batches import blur_hr, mixed_images, to_images
from andfast.training.config import Config
from andfast.training.discriminator import DiscriminatorStep
from andfast.training.distributed import World, no_sync_until_last
from andfast.training.micro_batches import micro_batched
from andfast.training.optimizer import (
    Guard,
    begin_update,
    finish_update,
    gradient_norm,
    load_optimizer,
    make_optimizer,
    own_average,
)
from andfast.training.step_metrics import PendingStep, all_reduce_metrics, attack_metrics, clean_metrics
from andfast.utils.formatting import dtype_name
from andfast.utils.rng import seed_torch, step_generator

# At the start of the ramp the LR-PSNR budget is this much higher than the configured one.
RAMP_DB = 20.0


# A stream of a step's random numbers, beside those of `andfast.training.batches`.
_DROPOUT = 3


class Update(NamedTuple):
    """An update of the generator."""

    lr: Tensor  # (B, 3, h, w)
    hr: Tensor  # (B, 3, H, W)
    losses: Tensor  # of the images, (B,)
    norm: Tensor  # of the gradient, ()
    terms: dict[str, Tensor]  # means of the loss's terms, `loss_l1` and so on, if there is more than one; () each
    restored: Tensor | None  # (B, 3, H, W), G's output before the update; None without a discriminator


class Trainer:
    """Everything that a run trains, and one step of it: generator, moving average, adversary, discriminator.

    Args:
        config: the run's settings; with several processes this one's (`Config.split`).
        world: the processes; None: one. Each of several calls `connect` before the first step.

    Raises:
        FileNotFoundError: weights to start from, or VGG19's, are missing.
        ValueError: the device is missing, or weights or settings do not fit.
    """

    def __init__(self, config: Config, world: World | None = None) -> None:
        self.config = config
        self.world = world or World()
        self.step = 0
        self.device = self.world.device(config.device)
        self.precision = choose_precision(config.train.precision, self.device, "training")
        dtype = config.attack.dtype
        self.attack_precision = self.precision if dtype == "auto" else choose_precision(dtype, self.device, "training")
        self.generator = config.generator.build(config.scale, config.seed).to(
            self.device, memory_format=torch.channels_last
        )
        self.ema = copy.deepcopy(self.generator).requires_grad_(False).eval()
        # The average at the end of the warm-up, to compare with in the sample images.
        self.warmup_ema = copy.deepcopy(self.ema)
        # An architecture may hold weights that it computes from others; they take no gradient.
        pairs = zip(self.generator.parameters(), self.ema.parameters(), strict=True)
        trained = [(weight, average) for weight, average in pairs if weight.requires_grad]
        self._weights, self._averages = (list(each) for each in zip(*trained, strict=True))
        # Statistics of batch norms, which some architectures have.
        pairs = zip(self.ema.modules(), self.generator.modules(), strict=True)
        self._statistics = [
            both
            for of_average, of_generator in pairs
            if isinstance(of_generator, nn.modules.batchnorm._BatchNorm)
            for both in zip(of_average.buffers(), of_generator.buffers(), strict=True)
        ]
        self.guard = Guard(self.device, self.world)
        self.optimizer = make_optimizer(config.train, self._weights, config.train.learning_rate, self.guard)
        # False from a step's first update to its end, when a saved state could not be resumed.
        self.can_save = True
        self.attack, self.noise_attack = config.attack.build(), config.attack.build_noise()
        self.captured = None
        if config.cuda_graphs == "auto" and self.device.type == "cuda" and isinstance(self.attack, PGD):
            self.captured = CapturedSearch(self.attack.psnr_range is not None, self.caching_hr, self._print)
        config.attack.try_own(config.scale)
        self.bank = self.make_bank(config.networks)
        # G for its update (under autocast), and frozen for the attack.
        self.autocast = AutocastModule(self.generator, self.precision)
        self.frozen = FrozenModule(self.generator, self.attack_precision)
        self.discriminator = None
        if config.loss.gan:
            self.discriminator = DiscriminatorStep(config, self.device, self.precision, self.world)
        self.features = config.loss.load_features(self.device, self.precision)
        # One loss for both: the adversary raises what the update lowers (Eq. 1).
        frozen = self.discriminator and self.discriminator.frozen
        self.loss = config.loss.build(self.features, frozen, self.device, config.train.patch_size)
        micro_batch = config.train.micro_batch
        self.baseline = config.attack.load_baseline(config.scale, self.device, self.attack_precision)
        pixel = self.loss.pixel
        objective = relative_objective(generator_objective(self.frozen, self.loss), self.baseline, pixel)
        self.attack_objective = micro_batched(objective, micro_batch)
        # Without the discriminator, which takes images of only one size.
        objective = relative_objective(generator_objective(self.frozen, pixel), self.baseline, pixel)
        self.sheet_objective = micro_batched(objective, micro_batch)
        if config.train.checkpoint_blocks:
            if not isinstance(self.generator, RRDBNet):
                raise ModelError(
                    f"train.checkpoint_blocks is for generator.name rrdbnet; {config.generator.init} has no blocks (to "
                    "save memory there is train.micro_batch)"
                )
            self.generator.body.checkpoint_blocks = True
        compiled = wants_compile(config.compile, self.device)
        if compiled:
            compile_regions(self.generator)
            compile_regions(self.frozen.module)
            if isinstance(self.baseline, AutocastModule):
                compile_regions(self.baseline.module)
        self._update_timer = CompileTimer("the generator for its update", compiled, self.world.main)
        self._attack_timer = CompileTimer(
            "the generator for the attack", compiled and not isinstance(self.attack, Simulated), self.world.main
        )

    def connect(self) -> None:
        """Average gradients over all processes from now on: each calls this once, after any `load`."""
        self.world.connect(self.autocast, torch.zeros(1, 3, 16, 16, device=self.device))
        if self.discriminator is not None:
            self.discriminator.connect()

    def make_bank(self, num_networks: int) -> DegradationNetwork:
        """A bank of degradation networks as configured, without parameters yet."""
        settings = self.config
        return settings.degradation.build(settings.scale, num_networks, self.device, settings.train.micro_batch)

    def train_step(self, patches: Tensor, pairs: tuple[Tensor, Tensor] | None = None) -> PendingStep:
        """One iteration on a batch (Fig. 2), without waiting for the device.

        Args:
            patches: HR, uint8 (B, 3, H, W).
            pairs: HR and LR patches of camera pairs, uint8, one for each image that is mixed in; needed after the
                warm-up if `attack.method` or `attack.mix.method` is pairs.
        """
        if isinstance(self.generator, ForeignModel):  # may have dropout
            seed_torch(self.config.seed, self.step, _DROPOUT, self.world.rank)
        hr = blur_hr(to_images(patches, self.device), self.config, self.step, self.world)
        # Sub-steps 1 to 3: make LR images, attack them, update G on the result.
        if self._is_attacking and isinstance(self.attack, FreeAT):
            update, metrics = self._free_step(hr)
        else:
            update, metrics = self._adversarial_step(hr, pairs)
        # Sub-step 4: update D on what G made of them.
        metrics_of_d, skipped = {}, self.guard.skipped
        if self.discriminator is not None:
            rate = self.discriminator.learning_rate * self._schedule()
            metrics_of_d = self.discriminator.update(self.step, update.restored, update.hr, update.lr, rate)
            skipped = torch.maximum(skipped, self.discriminator.guard.skipped)
        # The metrics go to the log without waiting for them.
        metrics = {"loss": update.losses.mean(), **update.terms, **metrics_of_d, **metrics}
        metrics = all_reduce_metrics(metrics, self.world)
        self.step += 1
        if self.step == self.config.train.warmup:
            self.warmup_ema.load_state_dict(self.ema.state_dict())
        self.can_save = True
        return PendingStep(self.step, self.optimizer.param_groups[0]["lr"], skipped, update.norm, metrics)

    @property
    def _is_attacking(self) -> bool:
        return self.step >= self.config.train.warmup

    @property
    def _attack_in_turn(self) -> Attack:
        """The attack of this step: with `noise_every` now and then adversarial noise."""
        every = self.config.attack.noise_every
        if self.noise_attack is None or (self.step - self.config.train.warmup + 1) % every:
            return self.attack
        return self.noise_attack

    def _adversarial_step(self, hr: Tensor, pairs: tuple[Tensor, Tensor] | None) -> tuple[Update, dict[str, Tensor]]:
        """Sub-steps 1 to 3: make LR images, attack them, update G; returns the update and the attack's metrics."""
        # The last images of the batch may be mixed in from another degradation or from camera pairs.
        mixed_lr = None
        attacked = len(hr) - (self.config.mixed if self._is_attacking else 0)
        if attacked < len(hr):
            mixed_hr, mixed_lr = mixed_images(hr[attacked:], pairs, self.config, self.step, self.world)
            hr = torch.cat([hr[:attacked], mixed_hr])
        with self.caching_hr(hr):
            lr, attack = self._make_lr(hr[:attacked]) if attacked else (None, None)
            if mixed_lr is not None:
                lr = mixed_lr if lr is None else torch.cat([lr, mixed_lr])
            update = self._update(lr, hr)
        loss = update.losses[: attacked or len(hr)].mean()
        if attack is None:
            return update, clean_metrics(loss)
        before = None if attack.loss_before is None else attack.loss_before.mean()
        after = loss if attack.loss_after is None else attack.loss_after.mean()
        return update, attack_metrics(before, after, attack.lr_psnr, attack.budget_db, attack.distance_by_group)

    def _make_lr(self, hr: Tensor) -> tuple[Tensor, AttackResult | None]:
        """Sub-steps 1 and 2: LR images of fresh identity networks and, after the warm-up, the attack on them."""
        if not self._is_attacking:
            return self.attack.clean(self.bank, hr), None
        rng, margin_db = self._reset_bank(hr)
        attack = self._attack_in_turn
        captured = self.captured if attack is self.attack else None
        with self._attack_timer():
            result = attack(self.bank, hr, self.attack_objective, rng, margin_db, captured)
        return result.lr, result

    def _reset_bank(self, hr: Tensor) -> tuple[torch.Generator, float]:
        """Sub-step 1: make the networks fresh identities.

        Returns:
            The step's random numbers; how much milder the ramp makes the budget, in dB.
        """
        train, world = self.config.train, self.world
        rng = step_generator(self.config.seed, self.step, self.device, rank=world.rank, size=world.size)
        self.bank.reset_identity((hr.shape[2], hr.shape[3]), rng)
        ramped = (self.step - train.warmup) / train.ramp if train.ramp else 1.0
        return rng, RAMP_DB * max(1 - ramped, 0.0)

    def _free_step(self, hr: Tensor) -> tuple[Update, dict[str, Tensor]]:
        """Minibatch replay (`FreeAT`): updates of G and theta from the same backward passes."""
        rng, margin_db = self._reset_bank(hr)
        replay = self.attack.begin(self.bank, hr, rng, margin_db)
        with self.caching_hr(hr):
            update = self._update(replay.lr, hr)
            before = update.losses.mean()
            while not replay.done:
                replay.advance(replay.lr.grad)
                update = self._update(replay.lr, hr)
        lr_psnr = network_psnr(replay.lr.detach(), replay.clean, self.bank.num_networks)
        by_group = self.attack.distance_by_group(self.bank, replay.delta)
        return update, attack_metrics(before, update.losses.mean(), lr_psnr, replay.budget_db, by_group)

    def _update(self, lr: Tensor, hr: Tensor) -> Update:
        """Sub-step 3: update G, unless losses or gradient are not finite."""
        begin_update(self.optimizer, self.learning_rate)
        losses, terms, restored = self._backward(lr, hr)
        norm = gradient_norm(self._weights)
        self.guard.check(self.step, losses, norm, hr, lr)
        self.can_save = False
        finish_update(self.optimizer, self._weights, norm, self.config.train.clip_grad, self.guard)
        self._update_ema()
        self.frozen.refresh()
        return Update(lr, hr, losses, norm, terms, restored)

    def _backward(self, lr: Tensor, hr: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Add up the gradients of the mean loss over micro-batches; returns `losses, terms, restored` of `Update`."""
        part_size = self.config.train.micro_batch or len(lr)
        results: dict[str, list[Tensor]] = {}
        left = len(lr)
        for part, target in zip(lr.split(part_size), hr.split(part_size), strict=True):
            left -= len(part)
            with self._update_timer(), no_sync_until_last(self.autocast.module, last=left == 0):
                restored = self.autocast(part).float()
                terms = self.loss.terms(restored, target)
                losses = self.loss.total(terms)
                (losses.sum() / len(lr)).backward()
            result = {"losses": losses} | terms
            if self.discriminator is not None:
                result["restored"] = restored
            for name, values in result.items():
                results.setdefault(name, []).append(values.detach())
            del restored, losses, result
        whole = {name: torch.cat(parts) for name, parts in results.items()}
        means = {f"loss_{name}": whole[name].mean() for name in terms} if len(terms) > 1 else {}
        return whole["losses"], means, whole.get("restored")

    def caching_hr(self, hr: Tensor) -> AbstractContextManager[None]:
        """Inside, the loss computes features of the HR images once; not with micro-batches, to save memory."""
        return self.loss.step(hr) if self.config.train.micro_batch is None else nullcontext()

    @property
    def learning_rate(self) -> float:
        """Of G's next update."""
        return self.config.train.learning_rate * self._schedule()

    def _schedule(self) -> float:
        """The factor of learning rates: a linear start (Adam's first steps are badly scaled), then as configured."""
        train = self.config.train
        factor = min(1.0, (self.step + 1) / 100)
        if train.schedule == "cosine":
            progress = min(self.step / train.iterations, 1.0)
            factor *= 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2
        elif train.schedule == "multistep":
            factor *= train.gamma ** sum(self.step >= milestone for milestone in train.milestones)
        return factor

    @torch.no_grad()
    def _update_ema(self) -> None:
        for average, statistics in self._statistics:
            average.copy_(statistics)
        if (averages := own_average(self.optimizer)) is not None:
            torch._foreach_copy_(self._averages, averages)
            return
        # Early in training, the initial weights must not dominate the average.
        decay = min(self.config.train.ema_decay, (1 + self.step) / (10 + self.step))
        # Not _foreach_lerp_: with a weight on the device it takes the tensors one by one.
        change = torch._foreach_sub(self._weights, self._averages)
        torch._foreach_mul_(change, (1 - self.guard.bad) * (1 - decay))
        torch._foreach_add_(self._averages, change)

    @property
    def computes(self) -> str:
        """The device and the types of G, of G in the attack, and of F."""
        types = self.precision, self.attack_precision, self.bank.dtype
        return " ".join([self.device.type, *map(dtype_name, types)])

    def _print(self, line: str) -> None:
        if self.world.main:
            tqdm.write(line, file=sys.stderr)

    def drop_gradients(self) -> None:
        """Free the gradients of an update that failed."""
        self.optimizer.zero_grad()
        if self.discriminator is not None:
            self.discriminator.optimizer.zero_grad()

    def describe(self) -> str:
        """The generator, the device, the type it computes in, the discriminator and the loss, for people."""
        count = sum(weight.numel() for weight in self._weights)
        name, scale = architecture_name(self.generator), self.config.scale
        of_d = "" if self.discriminator is None else f"; {self.discriminator.describe()}"
        return (
            f"{name} x{scale} with {count:,} parameters on {self.device} in {dtype_name(self.precision)}{of_d}; "
            f"loss: {self.config.loss.describe()}"
        )

    def bad_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """HR and LR images of the first of the latest consecutive skipped updates, which ended at `step` (from 0)."""
        guards = [self.guard] if self.discriminator is None else [self.guard, self.discriminator.guard]
        # Series of skipped updates of G and of D may overlap: take the one that began closest to `step`.
        return min(guards, key=lambda guard: abs(guard.first_step.item() - step)).batch

    def state(self) -> dict[str, Any]:
        """The resumable state, the same in all processes."""
        state = {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "ema": self.ema.state_dict(),
            "before": self.warmup_ema.state_dict(),  # the key that states have had from the first
            "optimizer": self.optimizer.state_dict(),
        }
        return state if self.discriminator is None else state | {"discriminator": self.discriminator.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self.step = state["step"]
        self.generator.load_state_dict(state["generator"])
        self.ema.load_state_dict(state["ema"])
        self.warmup_ema.load_state_dict(state["before"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.discriminator is not None:
            self.discriminator.load(state["discriminator"])
        self.frozen.refresh()
