"""The floating-point type to compute in: for training on a CPU the one that is measured to be faster there."""

from __future__ import annotations

import torch

from andfast.ops import dispatch, selection
from andfast.utils.devices import TYPES, Purpose, usual_precision

_CPU = torch.device("cpu")

#: What is timed: the paper's degradation network, and a dense block of RRDBNet in the attack. Large enough for the
#: matrix products to decide; one choice a machine, whatever the run's sizes.
_PROBES: dict[Purpose, tuple[str, tuple[int, ...]]] = {
    "training": ("dense_block", (64, 32, 1, 2, 64, 64)),
    "degradation": ("degradation_forward", (1, 3, 64, 5, 4, 0, 2, 64, 64)),
}

#: PyTorch's names of processors' instructions for products of bfloat16. Elsewhere it is emulated, and takes minutes.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")


def choose_precision(name: str, device: torch.device, purpose: Purpose = "upscaling") -> torch.dtype:
    """The type to compute in for "float32", "bfloat16", "float16" or "auto".

    What "auto" is measured to be on a CPU is kept in the table of measured kernels (`andfast.info`); on other devices,
    and where it cannot be measured, it is `usual_precision`.
    """
    if name != "auto":
        return TYPES[name]
    measured = _faster(purpose) if device.type == "cpu" and purpose in _PROBES else None
    return measured or usual_precision(device, purpose)


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16."""
    return any(torch.cpu.get_capabilities().get(name) for name in _INSTRUCTIONS)


def _faster(purpose: Purpose) -> torch.dtype | None:
    if not multiplies_bfloat16() or not selection.measures():
        return None
    operation, sizes = _PROBES[purpose]
    try:
        names = {dtype: dispatch.candidates(operation, _CPU, dtype)[0] for dtype in dispatch.CPU_TYPES}
    except RuntimeError:  # a backend is forced that cannot be used: the first operation says so
        return None
    return selection.faster_type(operation, names, sizes)
