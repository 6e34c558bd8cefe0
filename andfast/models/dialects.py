"""What other programs call the weights of RRDBNet, in the names that BasicSR, Real-ESRGAN and andfast use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

# BSRGAN, RealSR and the later ESRGAN: the same modules under other names.
_BSRGAN = {
    "trunk_conv": "conv_body",
    "upconv1": "conv_up1",
    "upconv2": "conv_up2",
    "HRconv": "conv_hr",
}
_BSRGAN_BLOCK = re.compile(r"RRDB_trunk\.(\d+)\.RDB([123])\.(conv[1-5]\.\w+)")

# The first ESRGAN numbers its layers. In the middle stand, after each upsampling without weights, a convolution and an
# activation: at 3 and 6 for a factor of 4.
_NUMBERED = {"0": "conv_first", "3": "conv_up1", "6": "conv_up2", "8": "conv_hr", "10": "conv_last"}
_NUMBERED_BLOCK = re.compile(r"model\.1\.sub\.(\d+)\.RDB([123])\.(conv[1-5])\.0\.(\w+)")
_NUMBERED_LAST = re.compile(r"model\.1\.sub\.\d+\.(\w+)")


def standard_names(state: Mapping[str, Value]) -> dict[str, Value]:
    """The weights under the names that `RRDBNet` has; those of other architectures, and unknown ones, as they are."""
    if any(key.startswith("RRDB_trunk.") for key in state):
        return {_from_bsrgan(key): value for key, value in state.items()}
    if any(_NUMBERED_BLOCK.fullmatch(key) for key in state):
        return {_from_numbered(key): value for key, value in state.items()}
    return dict(state)


def _from_bsrgan(key: str) -> str:
    block = _BSRGAN_BLOCK.fullmatch(key)
    if block:
        return f"body.{block[1]}.rdb{block[2]}.{block[3]}"
    module, dot, rest = key.partition(".")
    return _BSRGAN.get(module, module) + dot + rest


def _from_numbered(key: str) -> str:
    block, last = _NUMBERED_BLOCK.fullmatch(key), _NUMBERED_LAST.fullmatch(key)
    if block:
        return f"body.{block[1]}.rdb{block[2]}.{block[3]}.{block[4]}"
    if last:
        return f"conv_body.{last[1]}"
    model, _, rest = key.partition(".")
    number, _, name = rest.partition(".")
    return f"{_NUMBERED[number]}.{name}" if model == "model" and number in _NUMBERED else key
