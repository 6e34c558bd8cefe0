"""One layer of the degradation network: conv 3x3 -> LeakyReLU -> noise injection (Sec 3.1), for N networks at once.

Training runs all layers in one operation, `degradation_forward`; this is the same block by itself, made of the same
kernels, for other networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops import dispatch
from andfast.ops.backends.base import Backend, Epilogue
from andfast.ops.noise import gaussian_field


def split_conv(x: Tensor, centre: Tensor, deviation: Tensor) -> Tensor:
    """A 3x3 convolution whose weight is an identity network's centre tap plus a small deviation, as two convolutions.

    Half types cannot hold the sum: beside a centre of 0.125, bfloat16 rounds in steps of 5e-4, which is the size
    of a deviation. Apart, each keeps its own relative precision, and a deviation whose taps sum to zero keeps that.

    Args:
        x: (B, in, H, W).
        centre: (out, in), in the type of `x`.
        deviation: (out, in, 3, 3), in the type of `x`.

    Returns:
        (B, out, H, W). The border is replicated: zeros would draw a dark frame.
    """
    identity = F.conv2d(x, centre[:, :, None, None])
    return identity + F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), deviation)


def one_network_block(x: Tensor, centre: Tensor, deviation: Tensor, slope_minus_one: Tensor, noise: Tensor) -> Tensor:
    """conv 3x3 -> LeakyReLU -> noise injection of a single network in plain PyTorch.

    Args:
        x, centre, deviation: as in `split_conv`.
        slope_minus_one: a scalar tensor (no dimensions) in the type of `x`; see `degradation_block`.
        noise: what is added, broadcastable to (B, out, H, W), in the type of `x`.

    Returns:
        (B, out, H, W) in the type of `x`.
    """
    y = split_conv(x, centre, deviation)
    # hardtanh is min(y, 0) with a backward pass of one read and one write; clamp's takes three of each.
    return torch.addcmul(y, slope_minus_one, F.hardtanh(y, -math.inf, 0.0)).add_(noise)


def degradation_block_reference(
    x: Tensor,
    centre: Tensor,
    deviation: Tensor,
    slope_minus_one: Tensor,
    noise: Tensor,
    seed: Tensor | None = None,
    layer: int = 0,
) -> Tensor:
    """`degradation_block` in plain PyTorch: any device and floating-point type, arguments not checked."""
    results = []
    for network, images in enumerate(x.chunk(len(centre))):
        added = noise[network]
        if seed is not None:
            field = gaussian_field(seed[network], layer, images.shape[0], (x.shape[2], x.shape[3]))
            added = added[:, None, None] * field.to(added.dtype)
        parts = (centre[network], deviation[network], slope_minus_one[network], added)
        results.append(one_network_block(images, *(part.to(x.dtype) for part in parts)))
    return torch.cat(results)


def degradation_block(
    x: Tensor,
    centre: Tensor,
    deviation: Tensor,
    slope_minus_one: Tensor,
    noise: Tensor,
    seed: Tensor | None = None,
    layer: int = 0,
) -> Tensor:
    """conv 3x3 -> LeakyReLU -> noise injection, for a bank of N networks at once.

    Equivalent to, for image b of network n = b // (B / N), with the border replicated:

        z = conv1x1(x, centre[n]) + conv3x3(x, deviation[n])
        z + slope_minus_one[n] * min(z, 0) + noise[n]                                       # without a seed
        z + slope_minus_one[n] * min(z, 0) + noise[n] * gaussian_field(seed[n], layer, ...)    # with one

    Args:
        x: (B, in, H, W), floating point, any memory format; B a multiple of N. It is computed in the type of `x`, with
            sums in float32.
        centre: (N, out, in) float32: the identity's centre taps, kept apart for the reason `split_conv` gives.
        deviation: (N, out, in, 3, 3) float32.
        slope_minus_one: (N,) float32: each LeakyReLU's negative slope minus one, 0 at the identity. The slope itself
            would lose small deviations, since half types are coarse near one.
        noise: float32. Without a seed (N, H, W): a map, the same in all channels and in all images of a network. With
            one (N, out): strengths.
        seed: (N,) int64, >= 0, or None.
        layer: the number of this noise injection: the field depends on it.

    Returns:
        (B, out, H, W) in the type of `x`, channels_last (the reference: in the memory format of `x`). Gradients flow to
        all floating-point tensors that require one. Only the reference is twice differentiable. The gradient of a slope
        within 1/1024 of zero comes out too small (`andfast.ops.backends.library`).

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or device; the message names it.
    """
    _check(x, centre, deviation, slope_minus_one, noise, seed)
    parameters = (centre, deviation, slope_minus_one, noise)
    sizes = (len(centre), centre.shape[2], centre.shape[1], int(seed is not None), x.shape[0], *x.shape[2:])
    implementation = dispatch.resolve("degradation_block", x.device, x.dtype, sizes)
    if implementation == "reference":
        return degradation_block_reference(x, *parameters, seed, layer)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *parameters))
    return _forward(x, list(parameters), seed, layer, implementation, save)[0]


def check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], like: tuple[str, Tensor]
) -> None:
    """Raise a TypeError or ValueError where a tensor has another shape, type or device than the tensor `like`."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {shape}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} is {tensor.dtype}; it must be {dtypes[0]}")
    if tensor.device != like[1].device:
        raise ValueError(f"{name} is on {tensor.device}; it must be on {like[1].device} like {like[0]}")


def _check(
    x: Tensor, centre: Tensor, deviation: Tensor, slope_minus_one: Tensor, noise: Tensor, seed: Tensor | None
) -> None:
    """Raise what `degradation_block` documents for invalid arguments."""
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; it must be of a floating-point type")
    if x.ndim != 4 or min(x.shape[1:]) < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (B, in, H, W) and hold pixels")
    if centre.ndim != 3 or centre.shape[2] != x.shape[1] or min(centre.shape) < 1:
        raise ValueError(f"centre has shape {tuple(centre.shape)}; for this x it must be (N, out, {x.shape[1]})")
    networks, out, into = centre.shape
    # float64 throughout is for checking gradients of the reference.
    types = (torch.float32, torch.float64) if x.dtype == torch.float64 else (torch.float32,)
    for name, tensor, shape in (
        ("centre", centre, (networks, out, into)),
        ("deviation", deviation, (networks, out, into, 3, 3)),
        ("slope_minus_one", slope_minus_one, (networks,)),
        ("noise", noise, (networks, *x.shape[2:]) if seed is None else (networks, out)),
    ):
        check_tensor(name, tensor, shape, types, ("x", x))
    if seed is not None:
        check_tensor("seed", seed, (networks,), (torch.int64,), ("x", x))
    if x.shape[0] % networks:
        raise ValueError(f"the batch size of x, {x.shape[0]}, must be a multiple of the number of networks, {networks}")


def concatenate(pieces: list[Tensor]) -> Tensor:
    """`torch.cat` without a copy of a single one."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _pieces(
    kernels: Backend, parameters: list[Tensor], seed: Tensor | None, layer: int, *images: Tensor
) -> Iterator[tuple]:
    """The centre, deviation and epilogue of as many networks as the kernels do at once, and their images."""
    count = len(parameters[0]) if kernels.loops_over_bank else 1
    seeds = [None] * count if seed is None else seed.contiguous().chunk(count)
    tensors = (tensor.detach().contiguous().chunk(count) for tensor in parameters)
    parts = (tensor.chunk(count) for tensor in images)
    for seed, centre, deviation, slope_minus_one, noise, *rest in zip(seeds, *tensors, *parts, strict=True):
        yield centre, deviation.flatten(3), Epilogue(slope_minus_one, noise, seed, layer), *rest


# `parameters`: centre, deviation, slope_minus_one and noise, as `degradation_block` takes them.
@torch.library.custom_op("andfast::degradation_block", mutates_args=())
def _forward(
    x: Tensor, parameters: list[Tensor], seed: Tensor | None, layer: int, implementation: str, save_for_backward: bool
) -> tuple[Tensor, Tensor]:
    """y and its sign mask, which is empty without `save_for_backward`."""
    kernels, results = dispatch.load(implementation), []
    for *taps, epilogue, images in _pieces(kernels, parameters, seed, layer, x):
        weights = kernels.pack_weights(*taps, x.dtype, backward=False)
        y, mask = kernels.block(kernels.to_nhwc(images, x.dtype), weights, epilogue, bordered=False)
        results.append((y, mask if save_for_backward else mask[:0].clone()))
    y, mask = (concatenate(list(tensors)) for tensors in zip(*results, strict=True))
    return y.permute(0, 3, 1, 2), mask


@_forward.register_fake
def _(
    x: Tensor, parameters: list[Tensor], seed: Tensor | None, layer: int, implementation: str, save_for_backward: bool
) -> tuple[Tensor, Tensor]:
    (batch, _, height, width), out = x.shape, parameters[0].shape[1]
    mask = x.new_empty(batch if save_for_backward else 0, height, width, (out + 7) // 8, dtype=torch.uint8)
    return x.new_empty(batch, height, width, out).permute(0, 3, 1, 2), mask


@torch.library.custom_op("andfast::degradation_block_backward", mutates_args=())
def _backward(
    saved: list[Tensor],
    parameters: list[Tensor],
    seed: Tensor | None,
    layer: int,
    implementation: str,
    needs: list[bool],
) -> list[Tensor]:
    """The gradients of x and of the deviation (`needs`: else empty), of the slope and of the noise.

    `saved`: dy, x, y and the sign mask.
    """
    kernels, grads = dispatch.load(implementation), []
    dy, x, y, sign_mask = saved
    # Layouts of any kind arrive here alone: the gradient of a sum, for one, has strides of 0.
    dy, y = (tensor.permute(0, 2, 3, 1).to(x.dtype).contiguous() for tensor in (dy, y))
    images = (x, dy, y, sign_mask)
    for centre, deviation, epilogue, x_piece, *passed in _pieces(kernels, parameters, seed, layer, *images):
        dz, dslope, dnoise = kernels.block_grad(*passed, epilogue)
        dx, dtaps = x.new_empty(0), parameters[1].new_empty(0)
        if needs[0]:
            weights = kernels.pack_weights(centre, deviation, x.dtype, backward=True)
            dx = kernels.conv_input_grad(dz, weights).permute(0, 3, 1, 2)
        if needs[1]:
            dtaps = kernels.conv_weight_grad(kernels.to_nhwc(x_piece, x.dtype), dz, len(dslope)).unflatten(3, (3, 3))
        grads.append((dx, dtaps, dslope, dnoise))
    return [concatenate(list(tensors)) for tensors in zip(*grads, strict=True)]


@_backward.register_fake
def _(
    saved: list[Tensor],
    parameters: list[Tensor],
    seed: Tensor | None,
    layer: int,
    implementation: str,
    needs: list[bool],
) -> list[Tensor]:
    x, (_, *others) = saved[1], parameters
    batch, into, height, width = x.shape
    dx = x.new_empty(batch, height, width, into).permute(0, 3, 1, 2) if needs[0] else x.new_empty(0)
    dtaps, *rest = (tensor.new_empty(tensor.shape) for tensor in others)
    return [dx, dtaps if needs[1] else dtaps.new_empty(0), *rest]


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, parameters, seed, ctx.layer, ctx.implementation, _ = inputs
    ctx.set_materialize_grads(False)  # or autograd would make zeros for the sign mask's gradient
    ctx.needs = [tensor.requires_grad for tensor in (x, *parameters)]
    ctx.save_for_backward(x, *output, *parameters, seed)


def _autograd(ctx: torch.autograd.function.FunctionCtx, dy: Tensor, _: None) -> tuple:
    *saved, seed = ctx.saved_tensors
    needs_x, needs_centre, needs_deviation, needs_slope, needs_noise = ctx.needs
    needs = [needs_x, needs_centre or needs_deviation]
    grads = _backward([dy, *saved[:3]], saved[3:], seed, ctx.layer, ctx.implementation, needs)
    dx, dtaps, dslope, dnoise = grads
    parameters = [
        dtaps[..., 1, 1] if needs_centre else None,
        dtaps if needs_deviation else None,
        dslope if needs_slope else None,
        dnoise if needs_noise else None,
    ]
    return dx if needs_x else None, parameters, None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
dispatch.register_convolutional("degradation_block", degradation_block_reference)
