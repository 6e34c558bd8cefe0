"""Which device, and which floating-point type on it."""

from __future__ import annotations

import torch

#: The types to compute in, by their names.
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def choose_precision(name: str, device: torch.device, on_cuda: torch.dtype = torch.float16) -> torch.dtype:
    """The type to compute in for "float32", "bfloat16", "float16" or "auto".

    "auto" is the fastest good one: on a CPU bfloat16 where the hardware multiplies it (AMX, AVX512-BF16), else
    float32; on CUDA `on_cuda`: float16 is finer than bfloat16 at the same speed, but its small range would need
    a scaled loss to train in.
    """
    if name != "auto":
        return TYPES[name]
    if device.type == "cuda":
        emulated = on_cuda == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.float32 if emulated else on_cuda
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
    return torch.bfloat16 if fast else torch.float32
