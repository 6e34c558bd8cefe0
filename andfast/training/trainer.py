"""One training run: the paper's sub-steps (Fig. 2), of ANDNet with L1 alone, of ANDGAN with a discriminator as well."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from andfast.attack import AttackResult, Free, Simulated
from andfast.attack.budget import network_psnr
from andfast.degradation.network import DegradationNetwork
from andfast.losses import GeneratorLoss, Objective, generator_objective, l1_objective
from andfast.models import GENERATORS, ModelError, build_generator, load_model
from andfast.models.compilation import FirstPass, compile_regions, wants_compile
from andfast.models.frozen import AutocastModule, FrozenModule
from andfast.training.config import Config
from andfast.training.discriminator import Discrimination
from andfast.training.distributed import World, no_sync_until_last
from andfast.training.guard import Guard
from andfast.training.hr_blur import soften_patches
from andfast.training.micro_batches import by_images
from andfast.training.mixing import Mixer
from andfast.training.optimizer import begin_update, gradient_norm, guarded_adam, load_adam
from andfast.training.readout import PendingStep
from andfast.training.step_metrics import attacked, of_all, unattacked
from andfast.utils.devices import choose_precision
from andfast.utils.rng import batch_positions, step_generator

# The ramp starts with LR images so much nearer to the clean ones than the budget says.
RAMP_DB = 20.0


@dataclass
class Update:
    """What an update of the generator gave.

    Attributes:
        losses: of the images, (B,).
        norm: of the gradient, a scalar.
        terms: the losses' terms as means, scalars, where there is more than one: `loss_l1` and so on.
        restored: (B, 3, H, W), what it was made of, where there is a discriminator to be shown it.
    """

    losses: Tensor
    norm: Tensor
    terms: dict[str, Tensor]
    restored: Tensor | None


class Trainer:
    """Generator, its moving average, optimizer, adversary and discriminator of a run, and one step of it.

    Args:
        config: the run's settings, or of several processes what each has of them (`Config.split`).
        world: the processes; None: there is one. Of several each calls `connect` before the first step.

    Raises:
        FileNotFoundError: weights to start from, or VGG19's, are not there.
        ValueError: the device is not there, weights do not fit, or pairs to mix in are none.
    """

    def __init__(self, config: Config, world: World | None = None) -> None:
        self.config = config
        self.world = world or World()
        self.step = 0
        self.device = self.world.device(config.device)
        self.precision = choose_precision(config.train.precision, self.device, "training")
        dtype = config.attack.dtype
        self.attack_precision = self.precision if dtype == "auto" else choose_precision(dtype, self.device, "training")
        self.generator = _make_generator(config).to(self.device, memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False).eval()
        # The generator as it was before the adversary first touched it, for the sample sheets.
        self.before = copy.deepcopy(self.ema)
        self._weights, self._averages = list(self.generator.parameters()), list(self.ema.parameters())
        self.guard = Guard(self.device, self.world)
        self.optimizer = guarded_adam(self._weights, config.train.learning_rate, self.guard)
        # False while an update is only half done.
        self.intact = True
        self.attack = config.attack.build()
        self.mixer = Mixer(config, self.device, self.world)
        self.view = AutocastModule(self.generator, self.precision)
        self.frozen = FrozenModule(self.generator, self.attack_precision)
        self.discrimination = None
        if config.loss.gan:
            self.discrimination = Discrimination(config, self.device, self.precision, self.world)
        self.features = config.loss.load_features(self.device, self.precision)
        # One loss for both: the adversary raises what the update lowers (Eq. 1).
        self.loss = config.loss.build(self.features, self.discrimination and self.discrimination.frozen)
        self.attack_objective = self.by_images(generator_objective(self.frozen, self.loss))
        # For images of any size: a discriminator has one of its own.
        self.sheet_objective = self.by_images(l1_objective(self.frozen))
        if config.train.checkpoint_blocks:
            self.generator.body.checkpoint_blocks = True
        compiled = wants_compile(config.compile, self.device)
        if compiled:
            compile_regions(self.generator)
            compile_regions(self.frozen.module)
        self._first_update = FirstPass("the generator for its update", compiled, self.world.main)
        self._first_attack = FirstPass(
            "the generator for the attack", compiled and not isinstance(self.attack, Simulated), self.world.main
        )

    def connect(self) -> None:
        """Have updates be those of all processes together: all must call this, after `load` if they do."""
        self.world.connect(self.view, torch.zeros(1, 3, 16, 16, device=self.device))
        if self.discrimination is not None:
            self.discrimination.connect()

    def degradation(self, num_networks: int) -> DegradationNetwork:
        """A bank of degradation networks as configured, without parameters yet."""
        config = self.config
        return config.degradation.build(config.scale, num_networks, self.device, config.train.micro_batch)

    def train_step(self, patches: Tensor) -> PendingStep:
        """One update of the generator on uint8 patches (B, 3, H, W), without waiting for the device."""
        hr = patches.to(self.device, non_blocking=True).float() / 255
        if self.config.data.soften is not None:
            config, world, mixed = self.config, self.world, self.config.mixed
            places = batch_positions(len(hr), mixed, world.rank, world.size)
            hr = soften_patches(hr, config.data.soften, config.seed, self.step, places, world.size * len(hr))
        replays = isinstance(self.attack, Free) and self.step >= self.config.train.warmup
        norm, found = self._replayed(hr) if replays else self._updated(hr)
        found = of_all(found, self.world)
        bad = self.guard.in_row
        if self.discrimination is not None:
            bad = torch.maximum(bad, self.discrimination.guard.in_row)
        self.step += 1
        if self.step == self.config.train.warmup:
            self.before.load_state_dict(self.ema.state_dict())
        self.intact = True
        return PendingStep(self.step, self.optimizer.param_groups[0]["lr"], bad, norm, found)

    def _updated(self, hr: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A step on what the adversary finds: the norm of the update's gradient, and what the step tells.

        Images that are mixed in count in the first loss alone.
        """
        mixed = self.mixer.images if self.step >= self.config.train.warmup else 0
        searched = len(hr) - mixed
        if mixed:
            more_hr, more_lr = self.mixer(hr[searched:], self.step)
            hr = torch.cat([hr[:searched], more_hr])
        with self.targets_of(self.loss, hr):
            lr, attack = self._attacked(hr[:searched]) if searched else (None, None)
            if mixed:
                lr = more_lr if lr is None else torch.cat([lr, more_lr])
            update = self._update(lr, hr)
        told = {"loss": update.losses.mean(), **update.terms, **self._discriminated(update, hr, lr)}
        own = update.losses[: searched or len(hr)].mean()
        if attack is None:
            return update.norm, told | unattacked(own)
        before = None if attack.loss_before is None else attack.loss_before.mean()
        after = own if attack.loss_after is None else attack.loss_after.mean()
        found = attacked(before, after, attack.lr_psnr, attack.budget_db, attack.distance_by_group)
        return update.norm, told | found

    def _replayed(self, hr: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A step by minibatch replay, several updates on the way; returns what `_updated` does, of the last one."""
        network, random, margin_db = self._identity(hr)
        replay = self.attack.begin(network, hr, random, margin_db)
        with self.targets_of(self.loss, hr):
            first = update = self._update(replay.lr, hr)
            while not replay.done:
                replay.advance(replay.lr.grad)
                update = self._update(replay.lr, hr)
        loss = update.losses.mean()
        # Once a minibatch, after all of G's updates on it: D does not change while it is raised and lowered.
        told = {"loss": loss, **update.terms, **self._discriminated(update, hr, replay.lr)}
        lr_psnr = network_psnr(replay.lr.detach(), replay.clean, network.num_networks)
        by_group = self.attack.distance_by_group(network, replay.delta)
        return update.norm, told | attacked(first.losses.mean(), loss, lr_psnr, replay.budget_db, by_group)

    def targets_of(self, loss: GeneratorLoss, hr: Tensor) -> AbstractContextManager[None]:
        """Around an attack and the update: what the loss computes of HR images alone is computed once, if it may
        lie there for the whole batch."""
        return loss.step(hr) if self.config.train.micro_batch is None else nullcontext()

    def _update(self, lr: Tensor, hr: Tensor) -> Update:
        """Sub-step 3, an update of the generator. If losses or gradient are no numbers nothing changes."""
        begin_update(self.optimizer, self.learning_rate)
        losses, terms, restored = self._backward(lr, hr)
        norm = gradient_norm(self._weights)
        self.guard.judge(self.step, losses, norm, hr, lr)
        self.intact = False
        self.optimizer.step()
        self._update_ema()
        self.frozen.refresh()
        return Update(losses, norm, terms, restored)

    def _backward(self, lr: Tensor, hr: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """The gradients of the mean loss, added up over the micro-batches; and `Update`'s fields but the norm."""
        images = self.config.train.micro_batch or len(lr)
        found: dict[str, list[Tensor]] = {}
        left = len(lr)
        for part, target in zip(lr.split(images), hr.split(images), strict=True):
            left -= len(part)
            with self._first_update(), no_sync_until_last(self.view.module, last=left == 0):
                restored = self.view(part).float()
                terms = self.loss.terms(restored, target)
                losses = self.loss.total(terms)
                (losses.sum() / len(lr)).backward()
            of_part = {"losses": losses} | terms
            if self.discrimination is not None:
                of_part["restored"] = restored
            for name, values in of_part.items():
                found.setdefault(name, []).append(values.detach())
            del restored, losses, of_part
        whole = {name: torch.cat(parts) for name, parts in found.items()}
        means = {f"loss_{name}": whole[name].mean() for name in terms} if len(terms) > 1 else {}
        return whole["losses"], means, whole.get("restored")

    def _discriminated(self, update: Update, hr: Tensor, lr: Tensor) -> dict[str, Tensor]:
        """Sub-step 4, an update of the discriminator, the last one (Fig. 2): on what the generator's was made of."""
        if self.discrimination is None:
            return {}
        rate = self.discrimination.learning_rate * self._schedule()
        return self.discrimination.update(self.step, update.restored, hr, lr, rate)

    def _attacked(self, hr: Tensor) -> tuple[Tensor, AttackResult | None]:
        """Sub-steps 1 and 2: LR images from fresh identity networks, moved by the adversary once warmed up."""
        if self.step < self.config.train.warmup:
            return self.attack.clean(self.degradation(self.config.networks), hr), None
        network, random, margin_db = self._identity(hr)
        with self._first_attack():
            result = self.attack(network, hr, self.attack_objective, random, margin_db)
        return result.lr, result

    def _identity(self, hr: Tensor) -> tuple[DegradationNetwork, torch.Generator, float]:
        """Sub-step 1, fresh identity networks; the step's random numbers, and how much milder the ramp is still."""
        train = self.config.train
        network = self.degradation(self.config.networks)
        rank, size = self.world.rank, self.world.size
        random = step_generator(self.config.seed, self.step, self.device, rank=rank, size=size)
        network.reset_identity((hr.shape[2], hr.shape[3]), random)
        ramped = (self.step - train.warmup) / train.ramp if train.ramp else 1.0
        return network, random, RAMP_DB * max(1 - ramped, 0.0)

    def by_images(self, objective: Objective) -> Objective:
        """An objective as the adversary is given it: of `train.micro_batch` images at a time."""
        return by_images(objective, self.config.train.micro_batch)

    @property
    def learning_rate(self) -> float:
        """Of the next update."""
        return self.config.train.learning_rate * self._schedule()

    def _schedule(self) -> float:
        """The share of a learning rate: a linear start (against Adam's first, badly scaled steps), then as set."""
        train = self.config.train
        share = min(1.0, (self.step + 1) / 100)
        if train.schedule == "cosine":
            progress = min(self.step / train.iterations, 1.0)
            share *= 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2
        return share

    @torch.no_grad()
    def _update_ema(self) -> None:
        # Young averages must not be dominated by the initial weights.
        decay = min(self.config.train.ema_decay, (1 + self.step) / (10 + self.step))
        # Not _foreach_lerp_: with a weight on the device it takes the tensors one by one.
        change = torch._foreach_sub(self._weights, self._averages)
        torch._foreach_mul_(change, (1 - self.guard.bad) * (1 - decay))
        torch._foreach_add_(self._averages, change)

    @property
    def computes(self) -> str:
        """On what kind of device and in what types: of G, of G in the attack, and of F."""
        types = self.precision, self.attack_precision, self.degradation(1).dtype
        return " ".join([self.device.type, *(str(each).removeprefix("torch.") for each in types)])

    def drop_gradients(self) -> None:
        """Let go of what an update that ended half-way has left."""
        self.optimizer.zero_grad()
        if self.discrimination is not None:
            self.discrimination.optimizer.zero_grad()

    def describe(self) -> str:
        """The generator, the device and the type it is computed in, for people."""
        count = sum(parameter.numel() for parameter in self.generator.parameters())
        precision = str(self.precision).removeprefix("torch.")
        name, scale = self.config.generator.name, self.config.scale
        words = f"{name} x{scale} with {count:,} parameters on {self.device} in {precision}"
        if self.discrimination is not None:
            words += f"; {self.discrimination.describe()}"
        return f"{words}; loss: {self.config.loss.describe()}"

    def bad_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """HR and LR images of the first of the updates in a row that were left out, which was at `step` (from 0)."""
        guards = [self.guard] if self.discrimination is None else [self.guard, self.discrimination.guard]
        # G's row and D's may overlap: the one that began nearest.
        return min(guards, key=lambda guard: abs(guard.first.item() - step)).batch

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on as if nothing had happened; the same in all processes."""
        state = {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "ema": self.ema.state_dict(),
            "before": self.before.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return state if self.discrimination is None else state | {"discriminator": self.discrimination.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.step = state["step"]
        for name in ("generator", "ema", "before"):
            getattr(self, name).load_state_dict(state[name])
        load_adam(self.optimizer, state["optimizer"])
        if self.discrimination is not None:
            self.discrimination.load(state["discriminator"])
        self.frozen.refresh()


# What a generator has where the configuration does not say: the name of its depth, features, depth. Compact is
# smaller than usual, for a first run on a CPU.
_SIZES = {"compact": ("convs", 32, 8), "rrdbnet": ("blocks", 64, 23)}


def _make_generator(config: Config) -> nn.Module:
    settings = config.generator
    if settings.init is None:
        return _new_generator(config)
    weights = load_model(settings.init)
    own_size = settings.features is None and settings.depth is None
    if own_size and isinstance(weights, GENERATORS[settings.name]) and weights.scale == config.scale:
        return weights
    model = _new_generator(config)
    try:
        model.load_state_dict(weights.state_dict())
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ModelError(
            f"generator.init {settings.init}: a {type(weights).__name__} x{weights.scale} that does not fit the "
            f"settings of the generator ({reason})"
        ) from error
    return model


def _new_generator(config: Config) -> nn.Module:
    settings = config.generator
    depth_name, features, depth = _SIZES[settings.name]
    sizes = {"features": settings.features or features, depth_name: settings.depth or depth}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_generator(settings.name, config.scale, **sizes)
