"""The convolutions at the end of a generator as one operation, whose intermediate images are never whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops import dispatch
from andfast.ops.conv_act import check_conv, check_image, conv_act, dense_weight, nhwc, wants_reference, work


class ChainConv(NamedTuple):
    """A convolution of a chain; `weight`, `bias` and `slope` as `conv_act` takes them."""

    weight: Tensor
    bias: Tensor
    slope: Tensor | float | None = None
    #: Before the convolution, each pixel is repeated to repeat x repeat pixels.
    repeat: int = 1


def conv_chain(x: Tensor, convs: Sequence[ChainConv]) -> Tensor:
    """`conv_act` several times, each with nearest-neighbour upsampling before it.

    Equivalent to:

        for weight, bias, slope, repeat in convs:
            x = conv_act(F.interpolate(x, scale_factor=repeat, mode="nearest"), weight, bias, slope)

    Without a backward pass, the last convolution is computed in float32 even under autocast: its result is an image,
    which a half type would round to fewer levels than it has.

    Args:
        x: (B, in, H, W), see `conv_act`.
        convs: one or more.

    Returns:
        (B, out, H', W'), see `conv_act`.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or device; the message names it.
    """
    check_image(x)
    tensors = (x, *(tensor for conv in convs for tensor in conv if isinstance(tensor, Tensor)))
    saves = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if saves or not by_rows(x, len(convs[0].bias)):
        for weight, bias, slope, repeat in convs[:-1]:
            x = conv_act(_repeated(x, repeat), weight, bias, slope)
        weight, bias, slope, repeat = convs[-1]
        if saves or not torch.is_autocast_enabled(x.device.type):
            return conv_act(_repeated(x, repeat), weight, bias, slope)
        with torch.autocast(x.device.type, enabled=False):
            return conv_act(_repeated(x, repeat).float(), weight.float(), bias.float(), slope)
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


def by_rows(x: Tensor, width: int) -> bool:
    """Whether a chain that needs no backward pass holds only rows of its intermediate images.

    Args:
        x: its input.
        width: the number of channels of its first convolution.
    """
    if torch.compiler.is_compiling() or wants_reference() or not dispatch.large_tiles_allowed():
        return False
    if x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
        return False
    # Also where another implementation is faster for one of its convolutions: rows take far less memory.
    sizes = (x.shape[1], width, *work(x))
    return dispatch.resolve("conv_act", x.device, x.dtype, sizes, fastest=False) == "winograd"


def _slopes(conv: ChainConv) -> Tensor | None:
    if isinstance(conv.slope, Tensor):
        if conv.slope.shape != conv.bias.shape:
            raise ValueError(
                f"slope has shape {tuple(conv.slope.shape)}; it must be {tuple(conv.bias.shape)}, like bias"
            )
        return conv.slope.float()
    return None if conv.slope is None else torch.full_like(conv.bias, conv.slope)


if "cpu" not in dispatch.unavailable:

    @torch.library.register_fake("andfast::large_chain")
    def _(
        x: Tensor, weights: list[Tensor], biases: list[Tensor], slopes: list[Tensor | None], repeats: list[int]
    ) -> Tensor:
        factor = math.prod(repeats)
        return x.new_empty(len(x), factor * x.shape[1], factor * x.shape[2], len(weights[-1]))
