"""One training run of ANDNet: the paper's sub-steps (Fig. 2), with L1 as the objective."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from andfast.attack import AttackResult
from andfast.degradation import DegradationNetwork
from andfast.devices import choose_device, choose_precision
from andfast.losses import l1_objective
from andfast.models import GENERATORS, ModelError, build_generator, load_model
from andfast.training.config import Config

# The ramp starts with LR images so much nearer to the clean ones than the budget says.
RAMP_DB = 20.0
_BETAS = (0.9, 0.99)


class DivergedError(RuntimeError):
    """The loss or its gradient is no longer a number; nothing was updated with it."""


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters take no gradient inside: the adversary needs none of them."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The source of all random choices of one step: a function of the seed and the step, so a run can resume."""
    number = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(number >> np.uint64(1)))


@dataclass
class StepResult:
    """What a training step found: mean losses, and the mean PSNR (dB) of the LR images against the clean ones."""

    loss: float
    loss_before_attack: float
    loss_after_attack: float
    lr_psnr: float

    @property
    def gain(self) -> float:
        """How much worse the adversary made it: loss after / before the attack."""
        return self.loss_after_attack / max(self.loss_before_attack, 1e-12)


class Trainer:
    """Generator, its moving average, optimizer and adversary of a run, and one step of it.

    Args:
        config: the run's settings.

    Raises:
        ValueError: the device is not there, or the weights to start from do not fit.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.step = 0
        self.device = choose_device(config.device)
        self.precision = choose_precision(config.train.precision, self.device, on_cuda=torch.bfloat16)
        self.generator = _make_generator(config).to(self.device, memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False).eval()
        # The generator as it was before the adversary first touched it, for the sample sheets.
        self.before = copy.deepcopy(self.ema)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=config.train.learning_rate, betas=_BETAS)
        self.attack = config.attack.build()
        self.objective = l1_objective(self._restore)

    def degradation(self, num_networks: int) -> DegradationNetwork:
        """A bank of degradation networks as configured, without parameters yet."""
        settings = self.config.degradation
        return DegradationNetwork(
            scale=self.config.scale,
            num_networks=num_networks,
            channels=settings.channels,
            blocks=settings.blocks,
            noise=settings.noise,
            dtype=choose_precision(settings.precision, self.device),
            device=self.device,
        )

    def train_step(self, patches: Tensor) -> StepResult:
        """One update of the generator on uint8 patches (B, 3, H, W)."""
        hr = patches.to(self.device, non_blocking=True).float() / 255
        lr, attack = self._degrade(hr)
        rate = self._set_learning_rate()
        loss = self.objective(lr, hr).mean()
        self.optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad for parameter in self.generator.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        value = loss.item()
        # Before the update: a weight that is no number is one for good.
        if not (math.isfinite(value) and math.isfinite(norm.item())):
            raise DivergedError(
                f"the loss is {value} and its gradient's norm {norm.item()}; try a smaller train.learning_rate (now "
                f"{rate:g}) or train.precision float32"
            )
        self.optimizer.step()
        self._update_ema()
        self.step += 1
        if self.step == self.config.train.warmup:
            self.before.load_state_dict(self.ema.state_dict())
        if attack is None:
            return StepResult(value, value, value, math.inf)
        found = value if attack.loss_after is None else attack.loss_after.mean().item()
        return StepResult(value, attack.loss_before.mean().item(), found, attack.lr_psnr.mean().item())

    def _degrade(self, hr: Tensor) -> tuple[Tensor, AttackResult | None]:
        """Sub-steps 1 and 2: LR images from fresh identity networks, moved by the adversary once warmed up."""
        train, networks = self.config.train, self.config.degradation.num_networks
        network = self.degradation(hr.shape[0] if networks == "batch" else networks)
        if self.step < train.warmup:
            return self.attack.clean(network, hr), None
        random = step_generator(self.config.seed, self.step, self.device)
        network.reset_identity((hr.shape[2], hr.shape[3]), random)
        ramped = (self.step - train.warmup) / train.ramp if train.ramp else 1.0
        margin_db = RAMP_DB * max(1 - ramped, 0.0)
        with frozen(self.generator):
            result = self.attack(network, hr, self.objective, random, margin_db)
        return result.lr, result

    def _restore(self, lr: Tensor) -> Tensor:
        lr = lr.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            return self.generator(lr)

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
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.generator.parameters()), 1 - decay)

    def describe(self) -> str:
        """The generator, the device and the type it is computed in, for people."""
        count = sum(parameter.numel() for parameter in self.generator.parameters())
        precision = str(self.precision).removeprefix("torch.")
        name, scale = self.config.generator.name, self.config.scale
        return f"{name} x{scale} with {count:,} parameters on {self.device} in {precision}"

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on as if nothing had happened."""
        return {
            "step": self.step,
            "config": self.config.to_dict(),
            "generator": self.generator.state_dict(),
            "ema": self.ema.state_dict(),
            "before": self.before.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.step = state["step"]
        for name in ("generator", "ema", "before", "optimizer"):
            getattr(self, name).load_state_dict(state[name])


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
