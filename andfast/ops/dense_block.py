"""ESRGAN's dense block (Wang et al., ECCVW 2018) as one operation with one backward pass.

Five convolutions, each of which reads all that came before. Written with `torch.cat`, more than half of the memory
traffic is copying, and PyTorch keeps every copy for the backward pass. Here a result is written once, where the next
convolutions read it. Kept are x and those results where a weight wants a gradient; else, in an attack on frozen
weights, a bit for each result.

The way back is a dense block, too: the gradient of each part is a convolution of the gradients of all results that it
went into, with their weights side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops import dispatch
from andfast.ops.backends.generator_kernels import GAIN, SLOPE, generator_kernels_of
from andfast.ops.backends.network_kernels import CPU_TYPES, GPU_TYPES
from andfast.ops.conv_act import cast, check_conv, check_image, dense_weight, nhwc, wants_reference


def dense_block_reference(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """`dense_block` in plain PyTorch: any device and floating-point type, arguments not checked."""
    seen = [x]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        z = F.conv2d(torch.cat(seen, 1), weight, bias, padding=1)
        # In place: a convolution's backward needs its input and its weight, never its output.
        seen.append(F.leaky_relu(z, SLOPE, inplace=True))
    return x + GAIN * F.conv2d(torch.cat(seen, 1), weights[-1], biases[-1], padding=1)


def dense_block(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Five 3x3 convolutions with zeros around the image, each of which sees all that came before.

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
        (B, features, H, W), channels_last (the reference: as `F.conv2d` has it). Gradients flow to all arguments;
        computed and kept is what those that are asked for need. Twice differentiable is the reference alone.

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
    backend = dispatch.select_name("dense_block", x)
    if backend == "reference":
        return dense_block_reference(x, weights, biases)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights, *biases))
    return _forward(x, weights, biases, backend, keep)[0]


@torch.library.custom_op("andfast::dense_block_forward", mutates_args=())
def _forward(x: Tensor, weights: list[Tensor], biases: list[Tensor], backend: str, keep: bool) -> list[Tensor]:
    """y (B, features, H, W), and, to `keep`, the parts (B, H, W, 4 growth) and their signs."""
    kernels = generator_kernels_of(backend, x.dtype)
    weights, biases = [dense_weight(weight) for weight in weights], [bias.contiguous() for bias in biases]
    y, *kept = kernels.dense(nhwc(x), weights, biases, keep)
    return [y.permute(0, 3, 1, 2), *kept] if keep else [y.permute(0, 3, 1, 2)]


@_forward.register_fake
def _(x: Tensor, weights: list[Tensor], biases: list[Tensor], backend: str, keep: bool) -> list[Tensor]:
    batch, features, height, width = x.shape
    growth = weights[0].shape[0]
    grown = x.new_empty(batch, height, width, 4 * growth)
    signs = x.new_empty(batch, height, width, 4, (growth + 7) // 8, dtype=torch.uint8)
    y = x.new_empty(batch, height, width, features).permute(0, 3, 1, 2)
    return [y, grown, signs] if keep else [y]


@torch.library.custom_op("andfast::dense_block_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor | None,
    grown: Tensor | None,
    signs: Tensor,
    weights: list[Tensor],
    backend: str,
) -> list[Tensor]:
    """The gradients of x and, where x and the parts are given, of the weights and the biases."""
    kernels = generator_kernels_of(backend, dy.dtype)
    dy, weights = nhwc(dy), [dense_weight(weight) for weight in weights]
    dx, dgrown = kernels.dense_input_grad(dy, weights, signs)
    grads = [dx.permute(0, 3, 1, 2)]
    if x is not None:
        grads += kernels.dense_weight_grad(nhwc(x), grown, dy, dgrown, weights)
        sums = dgrown.sum((0, 1, 2)).split(len(weights[0]))
        grads += [*(part.clone() for part in reversed(sums)), dy.sum((0, 1, 2)) * GAIN]
    return grads


@_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor | None,
    grown: Tensor | None,
    signs: Tensor,
    weights: list[Tensor],
    backend: str,
) -> list[Tensor]:
    batch, features, height, width = dy.shape
    grads = [dy.new_empty(batch, height, width, features).permute(0, 3, 1, 2)]
    if x is not None:
        grads += [torch.empty_like(dense_weight(weight)) for weight in weights]
        grads += [dy.new_empty(len(weight)) for weight in weights]
    return grads


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: list[Tensor]) -> None:
    x, weights, biases, ctx.backend, _ = inputs
    _, grown, signs = output
    ctx.set_materialize_grads(False)  # zeros for everything kept, otherwise
    ctx.for_parameters = any(tensor.requires_grad for tensor in (*weights, *biases))
    for_them = (x, grown) if ctx.for_parameters else (None, None)
    ctx.save_for_backward(*for_them, signs, *weights)


def _autograd(ctx: torch.autograd.function.FunctionCtx, grads: list[Tensor | None]) -> tuple:
    x, grown, signs, *weights = ctx.saved_tensors
    dx, *others = _backward(grads[0], x, grown, signs, weights, ctx.backend)
    none = [None] * len(weights)
    return dx, others[:5] or none, others[5:] or none, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)

dispatch.register("dense_block", "reference", dense_block_reference)
dispatch.register("dense_block", "triton", _forward, device="cuda", dtypes=GPU_TYPES)
dispatch.register("dense_block", "cuda", _forward, device="cuda", dtypes=GPU_TYPES)
dispatch.register("dense_block", "cpu", _forward, device="cpu", dtypes=CPU_TYPES)
