"""One training run of ANDNet: the paper's sub-steps (Fig. 2), with L1 as the objective."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from andfast.attack import AttackResult, Free, Simulated
from andfast.attack.budget import network_psnr
from andfast.degradation import DegradationNetwork
from andfast.devices import choose_precision
from andfast.losses import l1_objective
from andfast.models import GENERATORS, ModelError, build_generator, load_model
from andfast.models.views import FrozenView, View
from andfast.shares import own_places
from andfast.training.compilation import FirstPass, compile_regions, wants_compile
from andfast.training.config import Config
from andfast.training.guard import Guard
from andfast.training.micro_batch import by_images
from andfast.training.mixing import Mixer
from andfast.training.randomness import step_generator
from andfast.training.readout import PendingStep
from andfast.training.softening import soften_patches
from andfast.training.statistics import attacked, of_all, unattacked
from andfast.training.world import World, averaged_at_last, rehearse

# The ramp starts with LR images so much nearer to the clean ones than the budget says.
RAMP_DB = 20.0
_BETAS = (0.9, 0.99)


class Trainer:
    """Generator, its moving average, optimizer and adversary of a run, and one step of it.

    Args:
        config: the run's settings, or of several processes what each has of them (`Config.split`).
        world: the processes; None: there is one. Of several each calls `connect` before the first step.

    Raises:
        ValueError: the device is not there, the weights to start from do not fit, or pairs to mix in are none.
    """

    def __init__(self, config: Config, world: World | None = None) -> None:
        self.config = config
        self.world = world or World()
        self.step = 0
        self.device = self.world.device(config.device)
        self.precision = choose_precision(config.train.precision, self.device, on_cuda=torch.bfloat16)
        dtype = config.attack.dtype
        self.attack_precision = self.precision if dtype == "auto" else choose_precision(dtype, self.device)
        self.generator = _make_generator(config).to(self.device, memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False).eval()
        # The generator as it was before the adversary first touched it, for the sample sheets.
        self.before = copy.deepcopy(self.ema)
        self._weights, self._averages = list(self.generator.parameters()), list(self.ema.parameters())
        self.optimizer = torch.optim.Adam(self._weights, lr=config.train.learning_rate, betas=_BETAS, fused=True)
        self.guard = Guard(self.device, self.world)
        self.optimizer.grad_scale, self.optimizer.found_inf = None, self.guard.bad
        # False while an update is only half done.
        self.intact = True
        self.attack = config.attack.build()
        self.mixer = Mixer(config, self.device, self.world)
        self.view = View(self.generator, self.precision)
        self.objective = l1_objective(self.view)
        self.frozen = FrozenView(self.generator, self.attack_precision)
        self.attack_objective = by_images(l1_objective(self.frozen), config.train.micro_batch)
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
        self.view.module = self.world.wrap(self.generator)
        if self.world.size > 1:
            rehearse(self.view, torch.zeros(1, 3, 16, 16, device=self.device))

    def degradation(self, num_networks: int) -> DegradationNetwork:
        """A bank of degradation networks as configured, without parameters yet."""
        config = self.config
        return config.degradation.build(config.scale, num_networks, self.device, config.train.micro_batch)

    def train_step(self, patches: Tensor) -> PendingStep:
        """One update of the generator on uint8 patches (B, 3, H, W), without waiting for the device."""
        hr = patches.to(self.device, non_blocking=True).float() / 255
        if self.config.data.soften is not None:
            config, world, mixed = self.config, self.world, self.config.mixed
            places = own_places((len(hr) - mixed, mixed), world.rank, world.size)
            hr = soften_patches(hr, config.data.soften, config.seed, self.step, places, world.size * len(hr))
        replays = isinstance(self.attack, Free) and self.step >= self.config.train.warmup
        norm, found = self._replayed(hr) if replays else self._updated(hr)
        found = of_all(found, self.world)
        self.step += 1
        if self.step == self.config.train.warmup:
            self.before.load_state_dict(self.ema.state_dict())
        self.intact = True
        return PendingStep(self.step, self.optimizer.param_groups[0]["lr"], self.guard.in_row, norm, found)

    def _updated(self, hr: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A step on what the adversary finds: the norm of the update's gradient, and the fields of `StepResult`.

        Images that are mixed in count in the first loss alone.
        """
        mixed = self.mixer.images if self.step >= self.config.train.warmup else 0
        hr, places = hr.split([len(hr) - mixed, mixed])
        searched = len(hr)
        lr, attack = self._attacked(hr) if searched else (None, None)
        if mixed:
            more_hr, more_lr = self.mixer(places, self.step)
            hr, lr = torch.cat([hr, more_hr]), more_lr if lr is None else torch.cat([lr, more_lr])
        losses, norm = self._update(lr, hr)
        own = losses[: searched or len(losses)].mean()
        if attack is None:
            return norm, {"loss": losses.mean(), **unattacked(own)}
        before = None if attack.loss_before is None else attack.loss_before.mean()
        after = own if attack.loss_after is None else attack.loss_after.mean()
        found = attacked(before, after, attack.lr_psnr, attack.budget_db, attack.distance_by_group)
        return norm, {"loss": losses.mean(), **found}

    def _replayed(self, hr: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A step by minibatch replay, several updates on the way; returns what `_updated` does, of the last one."""
        network, random, margin_db = self._identity(hr)
        replay = self.attack.begin(network, hr, random, margin_db)
        first, norm = losses, _ = self._update(replay.lr, hr)
        while not replay.done:
            replay.advance(replay.lr.grad)
            losses, norm = self._update(replay.lr, hr)
        loss = losses.mean()
        lr_psnr = network_psnr(replay.lr.detach(), replay.clean, network.num_networks)
        by_group = self.attack.distance_by_group(network, replay.delta)
        return norm, {"loss": loss, **attacked(first.mean(), loss, lr_psnr, replay.budget_db, by_group)}

    def _update(self, lr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
        """Sub-step 3, an update of the generator: the images' losses and the gradient's norm, on the device.

        If they are no numbers nothing changes.
        """
        self._set_learning_rate()
        self.optimizer.zero_grad()
        losses = self._backward(lr, hr)
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.guard.judge(losses, norm, hr, lr)
        self.intact = False
        self.optimizer.step()
        self._update_ema()
        self.frozen.refresh()
        return losses, norm

    def _backward(self, lr: Tensor, hr: Tensor) -> Tensor:
        """The gradients of the mean loss, added up over the micro-batches; returns the images' losses."""
        images = self.config.train.micro_batch or len(lr)
        losses = []
        left = len(lr)
        for part, target in zip(lr.split(images), hr.split(images), strict=True):
            left -= len(part)
            with self._first_update(), averaged_at_last(self.view.module, last=left == 0):
                part_losses = self.objective(part, target)
                (part_losses.sum() / len(lr)).backward()
            losses.append(part_losses.detach())
            del part_losses
        return torch.cat(losses)

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

    def _set_learning_rate(self) -> float:
        """A short linear start (against Adam's first, badly scaled steps), then the schedule."""
        train = self.config.train
        rate = train.learning_rate * min(1.0, (self.step + 1) / 100)
        if train.schedule == "cosine":
            progress = min(self.step / train.iterations, 1.0)
            rate *= 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    @torch.no_grad()
    def _update_ema(self) -> None:
        # Young averages must not be dominated by the initial weights.
        decay = min(self.config.train.ema_decay, (1 + self.step) / (10 + self.step))
        # Not _foreach_lerp_: with a weight on the device it takes the tensors one by one.
        change = torch._foreach_sub(self._weights, self._averages)
        torch._foreach_mul_(change, (1 - self.guard.bad) * (1 - decay))
        torch._foreach_add_(self._averages, change)

    def describe(self) -> str:
        """The generator, the device and the type it is computed in, for people."""
        count = sum(parameter.numel() for parameter in self.generator.parameters())
        precision = str(self.precision).removeprefix("torch.")
        name, scale = self.config.generator.name, self.config.scale
        return f"{name} x{scale} with {count:,} parameters on {self.device} in {precision}"

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on as if nothing had happened; the same in all processes."""
        return {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "ema": self.ema.state_dict(),
            "before": self.before.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.step = state["step"]
        for name in ("generator", "ema", "before"):
            getattr(self, name).load_state_dict(state[name])
        # The state of an Adam that was not fused would make this one so.
        groups = [group | {"fused": True} for group in state["optimizer"]["param_groups"]]
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
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
