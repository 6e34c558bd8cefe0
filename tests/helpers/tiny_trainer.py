"""A trainer of a small run, and images for it."""

from typing import Any

import torch
from commands import as_options
from torch import Tensor

from andfast.attack import AttackResult
from andfast.training.options import parse_config
from andfast.training.trainer import Trainer

TINY = {
    "train.iterations": 6,
    "train.warmup": 0,
    "train.ramp": 0,
    "train.batch_size": 4,
    "train.patch_size": 32,
    "generator.features": 8,
    "generator.depth": 2,
    "degradation.channels": 8,
    "degradation.blocks": 2,
    "attack.steps": 2,
    "train.precision": "float32",
    "degradation.precision": "float32",
}


def make(**changed: Any) -> Trainer:
    """A trainer with changed settings; two underscores stand for the dots in their names."""
    return Trainer(parse_config(as_options(TINY, **changed)))


def watch_attack(trainer: Trainer) -> list[AttackResult]:
    """A list to which each attack of the trainer adds its result."""
    attack, results = trainer.attack, []

    def watched(*arguments: Any) -> AttackResult:
        results.append(attack(*arguments))
        return results[-1]

    trainer.attack = watched
    return results


def patches(count: int = 4, size: int = 32, seed: int = 0) -> Tensor:
    """Patches like the loader's, uint8: smooth, with some grain."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (smooth * 235 + 20 * torch.rand(count, 3, size, size, generator=random)).to(torch.uint8)
