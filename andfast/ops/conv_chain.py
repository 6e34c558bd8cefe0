"""Convolutions in a row, as generators end: where nothing is kept of them, what lies between need never be whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops import dispatch, large_tiles
from andfast.ops.conv_act import check_conv, check_image, conv_act, dense_weight, nhwc, wants_reference


class ChainConv(NamedTuple):
    """A convolution of a chain; `weight`, `bias` and `slope` as `conv_act` takes them."""

    weight: Tensor
    bias: Tensor
    slope: Tensor | float | None = None
    #: Before it each pixel becomes repeat x repeat of them.
    repeat: int = 1


def conv_chain(x: Tensor, convs: Sequence[ChainConv]) -> Tensor:
    """`conv_act` again and again.

    Equivalent to:

        for weight, bias, slope, repeat in convs:
            x = conv_act(F.interpolate(x, scale_factor=repeat, mode="nearest"), weight, bias, slope)

    Where nothing is kept for a backward pass, the last convolution is computed in float32 also under autocast: what
    comes out is an image, and a half type would round it to fewer levels than it has.

    Args:
        x: (B, in, H, W), see `conv_act`.
        convs: one or more.

    Returns:
        (B, out, H', W'), see `conv_act`.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or device; the message names it.
    """
    tensors = (x, *(tensor for conv in convs for tensor in conv if isinstance(tensor, Tensor)))
    keeps = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if keeps or not by_rows(x):
        for weight, bias, slope, repeat in convs[:-1]:
            x = conv_act(_repeated(x, repeat), weight, bias, slope)
        weight, bias, slope, repeat = convs[-1]
        if keeps or not torch.is_autocast_enabled(x.device.type):
            return conv_act(_repeated(x, repeat), weight, bias, slope)
        with torch.autocast(x.device.type, enabled=False):
            return conv_act(_repeated(x, repeat).float(), weight.float(), bias.float(), slope)
    check_image(x)
    channels = x.shape[1]
    for conv in convs:
        check_conv(x, conv.weight, conv.bias, channels, -1)
        channels = len(conv.weight)
    y = torch.ops.andfast.large_chain(
        nhwc(x),
        [dense_weight(conv.weight) for conv in convs],
        [conv.bias.contiguous() for conv in convs],
        [_slopes(conv) for conv in convs],
        [conv.repeat for conv in convs],
    )
    return y.permute(0, 3, 1, 2)


def _repeated(x: Tensor, repeat: int) -> Tensor:
    return x if repeat == 1 else F.interpolate(x, scale_factor=repeat, mode="nearest")


def by_rows(x: Tensor) -> bool:
    """Whether chains that begin with `x`, and of which nothing is kept, hold no more than rows of what lies between."""
    if torch.compiler.is_compiling() or wants_reference() or not large_tiles.allowed():
        return False
    narrow = x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type)
    return not narrow and dispatch.select_name("conv_act", x) == "cpu"


def _slopes(conv: ChainConv) -> Tensor | None:
    if isinstance(conv.slope, Tensor):
        if conv.slope.shape != conv.bias.shape:
            raise ValueError(
                f"slope has shape {tuple(conv.slope.shape)}; it must be {tuple(conv.bias.shape)}, like bias"
            )
        return conv.slope.float()
    return None if conv.slope is None else torch.full_like(conv.bias, conv.slope)
