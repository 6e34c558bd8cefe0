"""Which device, and which floating-point type on it."""

from __future__ import annotations

from typing import Literal

import torch

Purpose = Literal["upscaling", "deep upscaling", "training", "degradation"]

#: The types to compute in, by their names.
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: What "auto" takes on which device where that is not float32.
#: Upscaling on a CPU stays in float32: with AMX bfloat16 is faster for RRDBNet, hardly for Compact, and rounds visibly.
#: Deep images, of more than 8 bits, hold more than half types do: their gradients would come out in steps.
#: Training takes bfloat16, for the small range of float16 would need a scaled loss; the degradation network, whose
#: values stay near 1, the finer float16 where the two are equally fast.
AUTOMATIC: dict[Purpose, dict[str, torch.dtype]] = {
    "upscaling": {"cuda": torch.float16},
    "deep upscaling": {},
    "training": {"cuda": torch.bfloat16, "cpu": torch.bfloat16},
    "degradation": {"cuda": torch.float16, "cpu": torch.bfloat16},
}


def choose_device(name: str) -> torch.device:
    """The device for "auto" (CUDA where there is one), "cpu" or "cuda".

    Raises:
        ValueError: CUDA is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: PyTorch sees no CUDA device here; use cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_precision(name: str, device: torch.device, purpose: Purpose = "upscaling") -> torch.dtype:
    """The type to compute in for "float32", "bfloat16", "float16" or "auto".

    "auto" is float32 but where another type was found to be faster and exact enough; see `AUTOMATIC`.

    Args:
        name: one of these.
        device: where.
        purpose: what for.
    """
    if name != "auto":
        return TYPES[name]
    dtype = AUTOMATIC[purpose].get(device.type, torch.float32)
    return dtype if dtype != torch.bfloat16 or _multiplies_bfloat16(device) else torch.float32


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device is fast at it. Of CPUs, those with AMX: with AVX512-BF16 alone it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu.get_capabilities().get("amx_bf16", False)
