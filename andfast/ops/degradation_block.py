"""One layer of the degradation network: conv 3x3 -> LeakyReLU -> noise injection (Sec 3.1), for N networks at once.

`degradation_forward` runs all layers of the network in one operation and is what training uses; this is its block on
its own, for other networks made of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.ops import block_tail, dispatch  # noqa: F401  block_tail registers its operators
from andfast.ops.backends.network_kernels import CPU_TYPES, GPU_TYPES, Kernels, Noise, kernels_of
from andfast.ops.noise import gaussian_field


def split_conv(x: Tensor, centre: Tensor, deviation: Tensor) -> Tensor:
    """A 3x3 convolution whose weight is an identity network's centre tap plus a small deviation, kept apart.

    Half types cannot hold the sum: beside a centre of 0.125, bfloat16 rounds in steps of 5e-4, which is the size
    of a deviation. Each part alone keeps its own relative precision, and so does a deviation's zero sum of taps.

    Args:
        x: (B, in, H, W).
        centre: (out, in), in the type of `x`.
        deviation: (out, in, 3, 3), in the type of `x`.

    Returns:
        (B, out, H, W). The border is replicated: zeros would draw a dark frame.
    """
    identity = F.conv2d(x, centre[:, :, None, None])
    return identity + F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), deviation)


def one_network_block(x: Tensor, centre: Tensor, deviation: Tensor, bend: Tensor, noise: Tensor) -> Tensor:
    """conv 3x3 -> LeakyReLU -> noise injection of a single network in plain PyTorch.

    Args:
        x, centre, deviation: as in `split_conv`.
        bend: a scalar tensor (no dimensions) in the type of `x`; see `degradation_block`.
        noise: what is added, broadcastable to (B, out, H, W), in the type of `x`.

    Returns:
        (B, out, H, W) in the type of `x`.
    """
    y = split_conv(x, centre, deviation)
    # hardtanh is min(y, 0) with a backward pass of one read and one write; clamp's takes three of each.
    return torch.addcmul(y, bend, F.hardtanh(y, -math.inf, 0.0)).add_(noise)


def degradation_block_reference(
    x: Tensor,
    centre: Tensor,
    deviation: Tensor,
    bend: Tensor,
    noise: Tensor,
    seed: Tensor | None = None,
    layer: int = 0,
) -> Tensor:
    """`degradation_block` in plain PyTorch: any device and floating-point type, arguments not checked."""
    done = []
    for network, images in enumerate(x.chunk(len(bend))):
        added = noise[network]
        if seed is not None:
            field = gaussian_field(seed[network], layer, images.shape[0], (x.shape[2], x.shape[3]))
            added = added[:, None, None] * field.to(added.dtype)
        parts = (tensor.to(x.dtype) for tensor in (centre[network], deviation[network], bend[network], added))
        done.append(one_network_block(images, *parts))
    return torch.cat(done)


def degradation_block(
    x: Tensor,
    centre: Tensor,
    deviation: Tensor,
    bend: Tensor,
    noise: Tensor,
    seed: Tensor | None = None,
    layer: int = 0,
) -> Tensor:
    """conv 3x3 -> LeakyReLU -> noise injection, for a bank of N networks at once.

    Equivalent to, for image b of network n = b // (B / N), with the border replicated:

        z = conv1x1(x, centre[n]) + conv3x3(x, deviation[n])
        z + bend[n] * min(z, 0) + noise[n]                          # without a seed
        z + bend[n] * min(z, 0) + noise[n] * gaussian_field(seed[n], layer, ...)    # with one

    Args:
        x: (B, in, H, W), floating point, any memory format; B a multiple of N. Its type is the one computed in; sums
            are float32.
        centre: (N, out, in) float32: the identity's centre taps, kept apart for the reason `split_conv` gives.
        deviation: (N, out, in, 3, 3) float32.
        bend: (N,) float32: each LeakyReLU's negative slope minus one, 0 at the identity. The slope itself would lose
            small deviations, for half types are coarse near one.
        noise: float32. Without a seed (N, H, W): a map, the same in all channels and in all images of a network. With
            one (N, out): strengths.
        seed: (N,) int64, >= 0, or None.
        layer: which noise injection this is: the field depends on it.

    Returns:
        (B, out, H, W) in the type of `x`, channels_last (the reference: in the memory format of `x`). Gradients flow
        to `x`, `centre`, `deviation`, `bend` and `noise`; computed are those that are asked for. Twice differentiable
        is the reference alone. That slopes near zero lose their own gradient is said in `andfast.ops.block_tail`.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or device; the message names it.
    """
    _check(x, centre, deviation, bend, noise, seed)
    backend = dispatch.select_name("degradation_block", x)
    if backend == "reference":
        return degradation_block_reference(x, centre, deviation, bend, noise, seed, layer)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, centre, deviation, bend, noise))
    return _forward(x, centre, deviation, bend, noise, seed, layer, backend, keep)[0]


def _check(x: Tensor, centre: Tensor, deviation: Tensor, bend: Tensor, noise: Tensor, seed: Tensor | None) -> None:
    """Raise what `degradation_block` says about wrong arguments."""
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; it must be of a floating-point type")
    if x.ndim != 4 or min(x.shape[1:]) < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (B, in, H, W) and hold pixels")
    if centre.ndim != 3 or centre.shape[2] != x.shape[1] or min(centre.shape) < 1:
        raise ValueError(f"centre has shape {tuple(centre.shape)}; for this x it must be (N, out, {x.shape[1]})")
    networks, out, into = centre.shape
    added = (networks, *x.shape[2:]) if seed is None else (networks, out)
    for name, tensor, shape, dtype in (
        ("centre", centre, (networks, out, into), torch.float32),
        ("deviation", deviation, (networks, out, into, 3, 3), torch.float32),
        ("bend", bend, (networks,), torch.float32),
        ("noise", noise, added, torch.float32),
        ("seed", seed, (networks,), torch.int64),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {shape}")
        # float64 throughout is for checking gradients of the reference.
        if tensor.dtype != dtype and not tensor.dtype == x.dtype == torch.float64:
            raise TypeError(f"{name} is {tensor.dtype}; it must be {dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}; it must be on {x.device} like x")
    if x.shape[0] % networks:
        raise ValueError(f"x holds {x.shape[0]} images; it must be a multiple of the number of networks, {networks}")


def _by_piece(
    kernels: Kernels,
    images: Tensor,
    centre: Tensor,
    deviation: Tensor,
    bend: Tensor,
    noise: Tensor,
    seed: Tensor | None,
    layer: int,
) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor], Tensor, Noise]]:
    """The images and their networks' parameters, in the pieces that the kernels can do at once."""
    pieces = len(bend) if kernels.one_network else 1
    seeds = [None] * pieces if seed is None else seed.contiguous().chunk(pieces)
    tensors = (images, centre, deviation.flatten(3), bend.contiguous(), noise.contiguous())
    for part, *taps, bends, values, keys in zip(*(t.detach().chunk(pieces) for t in tensors), seeds, strict=True):
        yield part, tuple(taps), bends, Noise(values, keys, layer)


@torch.library.custom_op("andfast::degradation_block", mutates_args=())
def _forward(
    x: Tensor,
    centre: Tensor,
    deviation: Tensor,
    bend: Tensor,
    noise: Tensor,
    seed: Tensor | None,
    layer: int,
    backend: str,
    keep: bool,
) -> list[Tensor]:
    """y, and, to `keep`, the signs of each piece."""
    kernels = kernels_of(backend, x.dtype)
    results, signs = [], []
    for images, taps, *tail in _by_piece(kernels, x, centre, deviation, bend, noise, seed, layer):
        weights = kernels.pack(*taps, x.dtype, backward=False)
        y, sign = kernels.block(kernels.enter(images, x.dtype), weights, *tail, bordered=False)
        results.append(y)
        signs += [sign] * keep
    y = results[0] if len(results) == 1 else torch.cat(results)
    return [y.permute(0, 3, 1, 2), *signs]


@_forward.register_fake
def _(
    x: Tensor,
    centre: Tensor,
    deviation: Tensor,
    bend: Tensor,
    noise: Tensor,
    seed: Tensor | None,
    layer: int,
    backend: str,
    keep: bool,
) -> list[Tensor]:
    batch, _, height, width = x.shape
    out = centre.shape[1]
    pieces = bend.shape[0] if kernels_of(backend, x.dtype).one_network else 1
    sign_bytes = (out + 7) // 8
    signs = [
        x.new_empty(batch // pieces, height, width, sign_bytes, dtype=torch.uint8) for _ in range(pieces if keep else 0)
    ]
    return [x.new_empty(batch, height, width, out).permute(0, 3, 1, 2), *signs]


@torch.library.custom_op("andfast::degradation_block_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor,
    y: Tensor,
    signs: list[Tensor],
    centre: Tensor,
    deviation: Tensor,
    bend: Tensor,
    noise: Tensor,
    seed: Tensor | None,
    layer: int,
    backend: str,
    needs_x: bool,
    needs_taps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x and of the deviation (each empty where it is not needed), of bend and of the noise."""
    kernels = kernels_of(backend, x.dtype)
    # The one place where layouts of any kind arrive: a sum's gradient, for one, has strides of 0.
    dy = dy.permute(0, 2, 3, 1).to(x.dtype).contiguous()
    results = y.permute(0, 2, 3, 1).contiguous().chunk(len(signs))
    grads = []
    pieces = _by_piece(kernels, dy, centre, deviation, bend, noise, seed, layer)
    for (grad, taps, *tail), images, result, sign in zip(pieces, x.chunk(len(signs)), results, signs, strict=True):
        dz, dbend, dnoise = kernels.block_grad(grad, result, sign, *tail)
        dx, dtaps = x.new_empty(0), centre.new_empty(0)
        if needs_taps:
            dtaps = kernels.weight_grad(kernels.enter(images, x.dtype), dz, len(dbend))
        if needs_x:
            dx = kernels.input_grad(dz, kernels.pack(*taps, x.dtype, backward=True))
        grads.append((dx, dtaps, dbend, dnoise))
    dx, dtaps, dbend, dnoise = grads[0] if len(grads) == 1 else map(torch.cat, zip(*grads, strict=True))
    return (
        dx.permute(0, 3, 1, 2) if needs_x else dx,
        dtaps.unflatten(3, (3, 3)) if needs_taps else dtaps,
        dbend,
        dnoise,
    )


@_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    y: Tensor,
    signs: list[Tensor],
    centre: Tensor,
    deviation: Tensor,
    bend: Tensor,
    noise: Tensor,
    seed: Tensor | None,
    layer: int,
    backend: str,
    needs_x: bool,
    needs_taps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, into, height, width = x.shape
    return (
        x.new_empty(batch, height, width, into).permute(0, 3, 1, 2) if needs_x else x.new_empty(0),
        deviation.new_empty(deviation.shape) if needs_taps else deviation.new_empty(0),
        bend.new_empty(bend.shape),
        noise.new_empty(noise.shape),
    )


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: list[Tensor]) -> None:
    *tensors, ctx.layer, ctx.backend, _ = inputs
    ctx.set_materialize_grads(False)  # zeros for the signs, otherwise
    ctx.save_for_backward(*tensors, *output)


def _autograd(ctx: torch.autograd.function.FunctionCtx, grads: list[Tensor | None]) -> tuple:
    x, *parameters, y, signs = *ctx.saved_tensors[:7], ctx.saved_tensors[7:]
    needs_x, needs_centre, needs_deviation, needs_bend, needs_noise, *_ = ctx.needs_input_grad
    dx, dtaps, dbend, dnoise = _backward(
        grads[0], x, y, list(signs), *parameters, ctx.layer, ctx.backend, needs_x, needs_centre or needs_deviation
    )
    return (
        dx if needs_x else None,
        dtaps[..., 1, 1] if needs_centre else None,
        dtaps if needs_deviation else None,
        dbend if needs_bend else None,
        dnoise if needs_noise else None,
        *(None,) * 4,
    )


_forward.register_autograd(_autograd, setup_context=_setup_context)

dispatch.register("degradation_block", "reference", degradation_block_reference)
dispatch.register("degradation_block", "triton", _forward, device="cuda", dtypes=GPU_TYPES)
dispatch.register("degradation_block", "cuda", _forward, device="cuda", dtypes=GPU_TYPES)
dispatch.register("degradation_block", "cpu", _forward, device="cpu", dtypes=CPU_TYPES)
