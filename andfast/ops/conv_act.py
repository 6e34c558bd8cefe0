"""conv 3x3 -> LeakyReLU, the layer that generators are made of, with one backward pass.

PyTorch keeps the input of every convolution, also where no weight requires a gradient. Here the input is kept only
where one does: an attack on frozen weights keeps one sign bit an element and nothing else.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops import dispatch


def conv_act_reference(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | float | None = None) -> Tensor:
    """`conv_act` in plain PyTorch: any device and floating-point type, arguments not checked."""
    z = F.conv2d(x, weight, bias, padding=1)
    if slope is None:
        return z
    # In place: a convolution's backward needs its input and its weight, never its output.
    return F.prelu(z, slope) if isinstance(slope, Tensor) else F.leaky_relu(z, slope, inplace=True)


def conv_act(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | float | None = None) -> Tensor:
    """A 3x3 convolution with zeros around the image, a bias and a LeakyReLU.

    Equivalent to:

        z = F.conv2d(x, weight, bias, padding=1)
        torch.where(z > 0, z, slope * z)            # without a slope: z

    Args:
        x: (B, in, H, W), floating point, any memory format. Under autocast all are computed in its type.
        weight: (out, in, 3, 3) in the type of `x`.
        bias: (out,) likewise.
        slope: for negative values: a number, a number a channel, (out,), or None.

    Returns:
        (B, out, H, W), channels_last (the reference: as `F.conv2d` returns it). Gradients flow to all tensors that
        require one. Only the reference is twice differentiable.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or device; the message names it.
    """
    if wants_reference():
        return conv_act_reference(x, weight, bias, slope)
    x, weight, bias = cast(x, weight, bias)
    check_image(x)
    check_conv(x, weight, bias, x.shape[1], -1)
    if isinstance(slope, Tensor):
        if slope.shape != bias.shape:
            raise ValueError(f"slope has shape {tuple(slope.shape)}; it must be {tuple(bias.shape)}, like bias")
        if torch.is_grad_enabled() and slope.requires_grad:  # its gradient needs z
            return F.prelu(conv_act(x, weight, bias), slope.to(x.dtype))
    implementation = dispatch.resolve("conv_act", x.device, x.dtype, (x.shape[1], len(bias), *work(x, weight, bias)))
    if implementation == "reference":
        return conv_act_reference(x, weight, bias, slope.to(x.dtype) if isinstance(slope, Tensor) else slope)
    if isinstance(slope, float | int):
        slope = bias.new_full(bias.shape, slope, dtype=torch.float32)
    save = slope is not None and torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, bias))
    return _forward(x, weight, bias, None if slope is None else slope.float(), implementation, save)[0]


def cast(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All tensors in autocast's type, where autocast is enabled for their device."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return x, *others
    dtype = torch.get_autocast_dtype(kind)
    return tuple(tensor.to(dtype) for tensor in (x, *others))


def wants_reference() -> bool:
    """Whether a program is being exported: our operators do not exist where it will run."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def check_image(x: Tensor) -> None:
    """Raise what the generators' operations document for an invalid image."""
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; it must be of a floating-point type")
    if x.ndim != 4 or min(x.shape[1:]) < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (B, in, H, W) and hold pixels")


def check_conv(x: Tensor, weight: Tensor, bias: Tensor, inputs: int, outputs: int) -> None:
    """Raise what the generators' operations document for weights that do not fit `x`; -1: any number of outputs."""
    wanted = f"({'out' if outputs < 0 else outputs}, {inputs}, 3, 3)"
    fits = weight.ndim == 4 and weight.shape[0] >= 1 and tuple(weight.shape[1:]) == (inputs, 3, 3)
    if not fits or (outputs >= 0 and weight.shape[0] != outputs):
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be {wanted}")
    if tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be ({weight.shape[0]},)")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name} is {tensor.dtype}; it must be {x.dtype} like x")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}; it must be on {x.device} like x")


def work(x: Tensor, *parameters: Tensor) -> tuple[int, int, int, int]:
    """What else than channels the speed of a generator's operation depends on.

    Returns:
        The passes: 0 if there is only a forward pass, 1 with a backward pass to `x`, 2 with one to the parameters, 3
        for only a forward pass in large tiles; then (B, H, W).
    """
    if torch.is_grad_enabled():
        passes = 2 if any(tensor.requires_grad for tensor in parameters) else int(x.requires_grad)
    else:
        passes = 0 if torch.compiler.is_compiling() or not dispatch.large_tiles_allowed() else 3
    return passes, x.shape[0], x.shape[2], x.shape[3]


def nhwc(image: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H, W, C), contiguous."""
    return image.permute(0, 2, 3, 1).contiguous()


def dense_weight(weight: Tensor) -> Tensor:
    """A weight, contiguous or channels_last, which the kernels read; copied only if it is neither."""
    known = (torch.contiguous_format, torch.channels_last)
    return weight if any(weight.is_contiguous(memory_format=kind) for kind in known) else weight.contiguous()


@torch.library.custom_op("andfast::conv_act_forward", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, implementation: str, save_for_backward: bool
) -> list[Tensor]:
    """y (B, out, H, W), and its sign mask."""
    kernels = dispatch.load(implementation, inference=not save_for_backward)
    y, sign_mask = kernels.conv_act(nhwc(x), dense_weight(weight), bias.contiguous(), slope, save_for_backward)
    return [y.permute(0, 3, 1, 2), sign_mask]


@_forward.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, implementation: str, save_for_backward: bool
) -> list[Tensor]:
    batch, _, height, width = x.shape
    out = weight.shape[0]
    sign_mask = x.new_empty(batch if save_for_backward else 0, height, width, (out + 7) // 8, dtype=torch.uint8)
    return [x.new_empty(batch, height, width, out).permute(0, 3, 1, 2), sign_mask]


@torch.library.custom_op("andfast::conv_act_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor | None,
    weight: Tensor,
    slope: Tensor | None,
    sign_mask: Tensor | None,
    implementation: str,
    needs_x: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of the weight (if x is given) and of the bias; those that are not needed are empty."""
    kernels = dispatch.load(implementation)
    dz = nhwc(dy)
    if slope is not None:
        dz = kernels.leaky_relu_backward(dz, sign_mask, slope)
    weight = dense_weight(weight)
    dx = kernels.conv_act_input_grad(dz, weight).permute(0, 3, 1, 2) if needs_x else dy.new_empty(0)
    dweight = kernels.conv_act_weight_grad(nhwc(x), dz, weight) if x is not None else dy.new_empty(0)
    return dx, dweight, dz.sum((0, 1, 2)) if needs_bias else dy.new_empty(0)


@_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor | None,
    weight: Tensor,
    slope: Tensor | None,
    sign_mask: Tensor | None,
    implementation: str,
    needs_x: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, height, width = dy.shape
    return (
        dy.new_empty(batch, height, width, weight.shape[1]).permute(0, 3, 1, 2) if needs_x else dy.new_empty(0),
        torch.empty_like(dense_weight(weight)) if x is not None else dy.new_empty(0),
        dy.new_empty(weight.shape[0] if needs_bias else 0),
    )


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: list[Tensor]) -> None:
    x, weight, _, slope, ctx.implementation, _ = inputs
    ctx.set_materialize_grads(False)  # or autograd would make zeros for the sign mask's gradient
    sign_mask = None if slope is None else output[1]
    ctx.save_for_backward(x if weight.requires_grad else None, weight, slope, sign_mask)


def _autograd(ctx: torch.autograd.function.FunctionCtx, grads: list[Tensor | None]) -> tuple:
    needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    dx, dweight, dbias = _backward(grads[0], *ctx.saved_tensors, ctx.implementation, needs_x, needs_bias)
    return (
        dx if needs_x else None,
        dweight if needs_weight else None,
        dbias if needs_bias else None,
        *(None,) * 3,
    )


_forward.register_autograd(_autograd, setup_context=_setup_context)
dispatch.register_convolutional("conv_act", conv_act_reference)
