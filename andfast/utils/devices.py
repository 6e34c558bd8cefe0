"""The device to compute on, and the floating-point types that are usual there."""

from __future__ import annotations

from typing import Literal

import torch

Purpose = Literal["upscaling", "deep upscaling", "training", "degradation"]

#: The floating-point types, by their names in settings.
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: The types that "auto" stands for; float32 elsewhere. `andfast.ops.precision` measures those of training on a CPU.
#: Upscaling on a CPU stays in float32: with AMX bfloat16 is faster for RRDBNet, hardly for Compact, and rounds visibly.
#: Deep images, of more than 8 bits, need more precision than half types have: smooth gradients would show steps.
#: Training uses bfloat16, because the small range of float16 would need a scaled loss. The degradation network, whose
#: values are near 1, uses the more precise float16 where both are equally fast.
AUTOMATIC: dict[Purpose, dict[str, torch.dtype]] = {
    "upscaling": {"cuda": torch.float16},
    "deep upscaling": {},
    "training": {"cuda": torch.bfloat16, "cpu": torch.bfloat16},
    "degradation": {"cuda": torch.float16, "cpu": torch.bfloat16},
}


def choose_device(name: str) -> torch.device:
    """The device for "auto" (CUDA if available), "cpu" or "cuda"; raises ValueError if CUDA is not available."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: PyTorch sees no CUDA device here; use cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def usual_precision(device: torch.device, purpose: Purpose) -> torch.dtype:
    """The type of `AUTOMATIC`; float32 where that is bfloat16 and the device has no fast products of it."""
    dtype = AUTOMATIC[purpose].get(device.type, torch.float32)
    return dtype if dtype != torch.bfloat16 or _multiplies_bfloat16(device) else torch.float32


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is fast there. On CPUs it needs AMX: with AVX512-BF16 alone it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu.get_capabilities().get("amx_bf16", False)
