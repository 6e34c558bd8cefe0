"""What `auto` stands for in training, kept for the whole run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch

from andfast.ops.precision import choose_precision, multiplies_bfloat16
from andfast.training.config import Config
from andfast.utils.formatting import dtype_name

Purpose = Literal["training", "degradation"]


def automatic_types(device: torch.device, state: dict[str, Any] | None) -> dict[Purpose, str]:
    """The names of the types that `auto` stands for, where they are measured; empty elsewhere.

    Args:
        device: of the run.
        state: the one that the run is resumed from, whose types are kept.
    """
    if device.type != "cpu":
        return {}
    if state is None:
        purposes: tuple[Purpose, ...] = ("training", "degradation")
        return {purpose: dtype_name(choose_precision("auto", device, purpose)) for purpose in purposes}
    then, *types = state.get("computes", "unknown").split()  # as `Trainer.computes`
    if then != "cpu" or ("bfloat16" in types and not multiplies_bfloat16()):
        return {}
    return {"training": types[0], "degradation": types[2]}


def with_types(config: Config, types: dict[Purpose, str]) -> Config:
    """The settings with `types` instead of `auto`."""
    train, degradation = config.train, config.degradation
    if "training" in types and train.precision == "auto":
        train = replace(train, precision=types["training"])
    if "degradation" in types and degradation.precision == "auto":
        degradation = replace(degradation, precision=types["degradation"])
    return replace(config, train=train, degradation=degradation)
