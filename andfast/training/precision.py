"""What `auto` stands for in training on a CPU: the type that is faster there, kept for the whole run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch

from andfast.ops import dispatch, selection
from andfast.training.config import Config
from andfast.utils.devices import choose_precision
from andfast.utils.formatting import dtype_name

Purpose = Literal["training", "degradation"]
_CPU = torch.device("cpu")

#: What is timed: the paper's degradation network, and a dense block of RRDBNet in the attack. Large enough for the
#: matrix products to decide; one choice a machine, whatever the run's sizes.
_PROBES: dict[Purpose, tuple[str, tuple[int, ...]]] = {
    "training": ("dense_block", (64, 32, 1, 2, 64, 64)),
    "degradation": ("degradation_forward", (1, 3, 64, 5, 4, 0, 2, 64, 64)),
}

#: PyTorch's names of processors' instructions for products of bfloat16. Elsewhere it is emulated, and takes minutes.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")


def automatic_types(device: torch.device, state: dict[str, Any] | None) -> dict[Purpose, str]:
    """The names of the types that `auto` stands for; empty where `choose_precision` says it, as on GPUs.

    Args:
        device: of the run.
        state: the one that the run is resumed from, whose types are kept.
    """
    if device.type != "cpu":
        return {}
    if state is None:
        return {purpose: dtype_name(_faster(purpose)) for purpose in _PROBES}
    then, *types = state.get("computes", "unknown").split()  # as `Trainer.computes`
    if then != "cpu" or ("bfloat16" in types and not _multiplies_bfloat16()):
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


def _faster(purpose: Purpose) -> torch.dtype:
    by_instructions = choose_precision("auto", _CPU, purpose)
    if not _multiplies_bfloat16() or not selection.measures():
        return by_instructions
    operation, sizes = _PROBES[purpose]
    try:
        names = {dtype: dispatch.candidates(operation, _CPU, dtype)[0] for dtype in dispatch.CPU_TYPES}
    except RuntimeError:  # a backend is forced that cannot be used: the run ends where it is
        return by_instructions
    return selection.faster_type(operation, names, sizes) or by_instructions


def _multiplies_bfloat16() -> bool:
    return any(torch.cpu.get_capabilities().get(name) for name in _INSTRUCTIONS)
