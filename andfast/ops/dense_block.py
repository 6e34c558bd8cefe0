"""ESRGAN's dense block (Wang et al., ECCVW 2018) as one operation with one backward pass.

Five convolutions, each of which reads x and the results of all before it. Written with `torch.cat`, more than half of
the memory traffic is copying, and PyTorch keeps every copy for the backward pass. Here a result is written once, where
the next convolutions read it. For the backward pass, x and those intermediates are kept if a weight requires a
gradient; else, in an attack on frozen weights, one sign bit for each value of them.

The backward pass is a dense block, too: the gradient of each part is a convolution of the gradients of all results
that it went into, with their weights side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops import dispatch
from andfast.ops.backends.base import GAIN, SLOPE
from andfast.ops.conv_act import cast, check_conv, check_image, dense_weight, nhwc, wants_reference, work


def dense_block_reference(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """`dense_block` in plain PyTorch: any device and floating-point type, arguments not checked."""
    parts = [x]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        z = F.conv2d(torch.cat(parts, 1), weight, bias, padding=1)
        # In place: a convolution's backward needs its input and its weight, never its output.
        parts.append(F.leaky_relu(z, SLOPE, inplace=True))
    return x + GAIN * F.conv2d(torch.cat(parts, 1), weights[-1], biases[-1], padding=1)


def dense_block(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Five 3x3 convolutions with zeros around the image, each of which reads x and the results of all before it.

    Equivalent to:

        for k in range(4):
            x_k = F.leaky_relu(F.conv2d(torch.cat([x, x_0, ..., x_{k-1}], 1), weights[k], biases[k], padding=1), 0.2)
        x + 0.2 * F.conv2d(torch.cat([x, x_0, x_1, x_2, x_3], 1), weights[4], biases[4], padding=1)

    Args:
        x: (B, features, H, W), floating point, any memory format. Under autocast all are computed in its type.
        weights: five, (growth, features + k growth, 3, 3), the last (features, features + 4 growth, 3, 3), in the type
            of `x`.
        biases: five, (growth,), the last (features,), likewise.

    Returns:
        (B, features, H, W), channels_last (the reference: as `F.conv2d` returns it). Gradients flow to all arguments
        that require one. Only the reference is twice differentiable.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or device; the message names it.
    """
    if wants_reference():
        return dense_block_reference(x, weights, biases)
    x, *parameters = cast(x, *weights, *biases)
    weights, biases = parameters[: len(weights)], parameters[len(weights) :]
    check_image(x)
    if not len(weights) == len(biases) == 5:
        raise ValueError(f"a dense block has five weights and biases, not {len(weights)} and {len(biases)}")
    features, growth = x.shape[1], weights[0].shape[0]
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        check_conv(x, weight, bias, features + k * growth, growth if k < 4 else features)
    implementation = dispatch.resolve("dense_block", x.device, x.dtype, (features, growth, *work(x, *weights, *biases)))
    if implementation == "reference":
        return dense_block_reference(x, weights, biases)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights, *biases))
    return _forward(x, weights, biases, implementation, save)[0]


@torch.library.custom_op("andfast::dense_block_forward", mutates_args=())
def _forward(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], implementation: str, save_for_backward: bool
) -> list[Tensor]:
    """y (B, features, H, W); with `save_for_backward` the intermediates (B, H, W, 4 growth), their sign mask."""
    kernels = dispatch.load(implementation, inference=not save_for_backward)
    weights, biases = [dense_weight(weight) for weight in weights], [bias.contiguous() for bias in biases]
    y, *saved = kernels.dense_block(nhwc(x), weights, biases, save_for_backward)
    return [y.permute(0, 3, 1, 2), *(saved if save_for_backward else [])]


@_forward.register_fake
def _(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], implementation: str, save_for_backward: bool
) -> list[Tensor]:
    batch, features, height, width = x.shape
    growth = weights[0].shape[0]
    intermediates = x.new_empty(batch, height, width, 4 * growth)
    sign_mask = x.new_empty(batch, height, width, 4, (growth + 7) // 8, dtype=torch.uint8)
    y = x.new_empty(batch, height, width, features).permute(0, 3, 1, 2)
    return [y, intermediates, sign_mask] if save_for_backward else [y]


@torch.library.custom_op("andfast::dense_block_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor | None,
    intermediates: Tensor | None,
    sign_mask: Tensor,
    weights: list[Tensor],
    implementation: str,
) -> list[Tensor]:
    """The gradient of x and, if x and the intermediates are given, those of the weights and the biases."""
    kernels = dispatch.load(implementation)
    dy, weights = nhwc(dy), [dense_weight(weight) for weight in weights]
    dx, dintermediates = kernels.dense_block_input_grad(dy, weights, sign_mask)
    grads = [dx.permute(0, 3, 1, 2)]
    if x is not None:
        grads += kernels.dense_block_weight_grad(nhwc(x), intermediates, dy, dintermediates, weights)
        sums = dintermediates.sum((0, 1, 2)).split(len(weights[0]))
        grads += [*(part.clone() for part in reversed(sums)), dy.sum((0, 1, 2)) * GAIN]
    return grads


@_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor | None,
    intermediates: Tensor | None,
    sign_mask: Tensor,
    weights: list[Tensor],
    implementation: str,
) -> list[Tensor]:
    batch, features, height, width = dy.shape
    grads = [dy.new_empty(batch, height, width, features).permute(0, 3, 1, 2)]
    if x is not None:
        grads += [torch.empty_like(dense_weight(weight)) for weight in weights]
        grads += [dy.new_empty(len(weight)) for weight in weights]
    return grads


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: list[Tensor]) -> None:
    x, weights, biases, ctx.implementation, _ = inputs
    _, intermediates, sign_mask = output
    ctx.set_materialize_grads(False)  # or autograd would make zeros for all that is saved
    parameters = any(tensor.requires_grad for tensor in (*weights, *biases))
    ctx.save_for_backward(*((x, intermediates) if parameters else (None, None)), sign_mask, *weights)


def _autograd(ctx: torch.autograd.function.FunctionCtx, grads: list[Tensor | None]) -> tuple:
    x, intermediates, sign_mask, *weights = ctx.saved_tensors
    dx, *others = _backward(grads[0], x, intermediates, sign_mask, weights, ctx.implementation)
    none = [None] * len(weights)
    return dx, others[:5] or none, others[5:] or none, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
dispatch.register_convolutional("dense_block", dense_block_reference)
