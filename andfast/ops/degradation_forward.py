"""The whole degradation network as one operation with one backward pass (Sec 3.1 and 3.2).

Blocks, pooling, blocks, last convolution; in between nothing returns to autograd. Kept for the backward pass are the
blocks' outputs, which the weight gradients need, and one bit an element for the LeakyReLUs. The gradient of theta is
written into one (N, P) matrix.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from andfast.ops import dispatch
from andfast.ops.backends.network_kernels import CPU_TYPES, GPU_TYPES, Kernels, Noise, kernels_of
from andfast.ops.blur_pool import blur_pool_reference, pooling_taps
from andfast.ops.degradation_block import one_network_block, split_conv
from andfast.ops.noise import gaussian_field
from andfast.ops.rotate_taps import rotate_taps
from andfast.ops.theta_layout import ThetaLayout, moment_basis


def degradation_forward_reference(
    hr: Tensor, theta_id: Tensor, delta: Tensor, noise_seed: Tensor, layout: ThetaLayout, dtype: torch.dtype
) -> Tensor:
    """`degradation_forward` in plain PyTorch: any device and floating-point type, gradients by autograd."""
    images = hr.to(dtype, memory_format=torch.channels_last).chunk(len(theta_id))
    # Rows apart, so that the gradient of one is not spread over a matrix of zeros.
    rows = zip(images, theta_id, layout.to_taps(delta).unbind(), noise_seed, strict=True)
    return torch.cat([_one_network(*row, layout) for row in rows])


def _one_network(x: Tensor, theta_id: Tensor, deviation: Tensor, noise_seed: Tensor, layout: ThetaLayout) -> Tensor:
    """One network of the bank: rows (P,) of `theta_id` and of the deviation with convolutions as taps."""
    conv_id, _, slope_id = layout.split(theta_id)
    conv, noise, slope = layout.split(deviation)
    centres = [taps[..., 4].to(x.dtype) for taps in conv_id]
    deviations = [taps.to(x.dtype).unflatten(-1, (3, 3)) for taps in conv]
    for layer in range(2 * layout.blocks):
        added = noise[layer]
        if layout.noise_kind == "gaussian":
            added = added * gaussian_field(noise_seed, layer, x.shape[0], (x.shape[2], x.shape[3]))
        bend = (slope_id[layer] - 1 + slope[layer]).squeeze()
        x = one_network_block(x, centres[layer], deviations[layer], bend.to(x.dtype), added.to(x.dtype))
        if layer == layout.blocks - 1:
            x = blur_pool_reference(x, layout.scale)
    return split_conv(x, centres[-1], deviations[-1])


def degradation_forward(
    hr: Tensor, theta_id: Tensor, delta: Tensor, noise_seed: Tensor, layout: ThetaLayout, dtype: torch.dtype
) -> Tensor:
    """Degrade a batch with a bank of N networks.

    Args:
        hr: (B, 3, H, W), floating point, of the size that `layout` is for; B a multiple of N.
        theta_id: (N, P) float32, the identity, as `DegradationNetwork.reset_identity` draws it.
        delta: (N, P) float32, the deviation; its convolutions in moments (`ThetaLayout`).
        noise_seed: (N,) int64, for noise of the kind "gaussian".
        layout: which columns of theta hold what.
        dtype: the type to compute in; sums are float32. In half types this is float16 or bfloat16.

    Returns:
        (B, 3, H/scale, W/scale) in `dtype`, not clamped. Gradients flow to `delta` and `hr`; computed are those that
        are asked for. Twice differentiable is the reference alone. That slopes near zero lose their own gradient is
        said in `andfast.ops.block_tail`.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or device; the message names it.
    """
    _check(hr, theta_id, delta, noise_seed, layout)
    probe = hr.new_empty(0, dtype=dtype)
    backend = dispatch.select_name("degradation_forward", probe)
    if backend == "reference":
        return degradation_forward_reference(hr, theta_id, delta, noise_seed, layout, dtype)
    sizes = (layout.scale, layout.channels, layout.blocks, layout.noise_kind == "gaussian")
    keep = torch.is_grad_enabled() and (delta.requires_grad or hr.requires_grad)
    return _forward(hr, theta_id, delta, noise_seed, *sizes, dtype, backend, keep)[0]


def _check(hr: Tensor, theta_id: Tensor, delta: Tensor, noise_seed: Tensor, layout: ThetaLayout) -> None:
    """Raise what `degradation_forward` says about wrong arguments."""
    if not hr.is_floating_point():
        raise TypeError(f"hr is {hr.dtype}; it must be a floating-point image in [0, 1]")
    count = theta_id.shape[0] if theta_id.ndim == 2 else -1
    size = (layout.conv[0].shape[1], *layout.image_size)
    if hr.ndim != 4 or tuple(hr.shape[1:]) != size:
        raise ValueError(f"hr has shape {tuple(hr.shape)}; for this layout it must be (B, {', '.join(map(str, size))})")
    for name, tensor, shape, dtype in (
        ("theta_id", theta_id, (count, layout.size), torch.float32),
        ("delta", delta, (count, layout.size), torch.float32),
        ("noise_seed", noise_seed, (count,), torch.int64),
    ):
        if tuple(tensor.shape) != shape:
            wanted = f"(N, {layout.size})" if count < 0 else shape
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {wanted}")
        if tensor.dtype != dtype and tensor.dtype != torch.float64:
            raise TypeError(f"{name} is {tensor.dtype}; it must be {dtype}")
        if tensor.device != hr.device:
            raise ValueError(f"{name} is on {tensor.device}; it must be on {hr.device} like hr")
    if count < 1 or hr.shape[0] % count:
        raise ValueError(f"hr holds {hr.shape[0]} images; it must be a multiple of the number of networks, {count}")


@lru_cache(maxsize=16)
def _layout(size: tuple[int, ...], scale: int, channels: int, blocks: int, gaussian: bool) -> ThetaLayout:
    return ThetaLayout(size[1:], scale, channels, blocks, "gaussian" if gaussian else "map", size[0])


class _Bank:
    """The parameters of some rows of theta, as the kernels want them."""

    def __init__(
        self,
        kernels: Kernels,
        layout: ThetaLayout,
        theta_id: Tensor,
        delta: Tensor,
        noise_seed: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self.kernels, self.layout, self.theta_id, self.delta, self.dtype = kernels, layout, theta_id, delta, dtype
        self.seed = noise_seed if layout.noise_kind == "gaussian" else None

    def weights(self, layer: int, backward: bool = False) -> tuple[Tensor, ...]:
        segment = self.layout.conv[layer]
        taps = rotate_taps(self.delta[:, segment.start : segment.stop], _basis(self.delta.device))
        centre = segment.view(self.theta_id)[..., 4]
        return self.kernels.pack(centre, taps.unflatten(1, segment.shape), self.dtype, backward)

    def bend(self, layer: int) -> Tensor:
        column = self.layout.slope[layer].start
        return self.theta_id[:, column] - 1 + self.delta[:, column]

    def noise(self, layer: int) -> Noise:
        values = self.layout.noise[layer].view(self.delta)
        values = values[:, 0] if self.seed is None else values[..., 0, 0]
        return Noise(values.contiguous(), self.seed, layer)


@lru_cache
def _basis(device: torch.device) -> Tensor:
    return moment_basis().float().to(device)


@lru_cache
def _pooling_matrix(size: int, scale: int, device: torch.device) -> Tensor:
    """The pooling of a line of `size` pixels as a matrix (size / scale, size), reflection included."""
    matrix = torch.zeros(size // scale, size, dtype=torch.float64)
    for row in range(size // scale):
        for i, tap in enumerate(pooling_taps(scale)):
            column = abs(scale * row + i - 1)
            matrix[row, min(column, 2 * size - 2 - column)] += tap
    return matrix.float().to(device)


def _run_forward(bank: _Bank, hr: Tensor, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """LR (B, h, w, 3), and what the backward pass needs besides `hr`: blocks' outputs, signs, the pooled negatives.

    Where it is not to be kept, the list is empty and every activation lives only until the next one.
    """
    kernels, layout = bank.kernels, bank.layout
    x = kernels.enter(hr, bank.dtype)
    outputs, signs, negatives = [], [], []
    for layer in range(2 * layout.blocks):
        parameters = (bank.weights(layer), bank.bend(layer), bank.noise(layer))
        if layer == layout.blocks - 1:
            x, negative, sign = kernels.block_pool(x, *parameters, layout.scale)
            negatives += [negative] * keep
        else:
            x, sign = kernels.block(x, *parameters)
        outputs += [x] * keep
        signs += [sign] * keep
    return kernels.conv(x, bank.weights(2 * layout.blocks)), [*outputs, *signs, *negatives]


def _run_backward(
    bank: _Bank, grad_lr: Tensor, hr: Tensor, saved: list[Tensor], grad: Tensor, needs_hr: bool
) -> Tensor | None:
    """Fill the rows `grad` (N, P); return the gradient of the HR images, (B, H, W, 3), if it is needed.

    Args:
        grad_lr: (B, h, w, 3) in the compute type.
        hr, saved: what `_run_forward` was given, and what it left.
    """
    kernels, layout, count = bank.kernels, bank.layout, len(grad)
    blocks = layout.blocks
    outputs, signs, negative = saved[: 2 * blocks], saved[2 * blocks : -1], saved[-1]
    to_moments = _basis(grad.device).T.contiguous()
    dz = [grad_lr]  # in a list, to be handed over: the kernels then free it as soon as it is used up
    del grad_lr
    for layer in range(2 * blocks, -1, -1):
        block = layer - 1  # the one that made this convolution's input
        x = outputs[block] if layer else kernels.enter(hr, bank.dtype)
        taps = kernels.weight_grad(x, dz[0], count)
        grad[:, layout.conv[layer].start : layout.conv[layer].stop] = rotate_taps(taps.flatten(1), to_moments)
        del taps
        if layer == 0:
            break
        bend, noise = bank.bend(block), bank.noise(block)
        weights = bank.weights(layer, backward=True)
        if layer == blocks:
            dpooled = kernels.input_grad(dz.pop(), weights)
            dbend = (dpooled.float() * negative).unflatten(0, (count, -1)).sum(dim=(1, 2, 3, 4))
            dnoise = _pooled_noise_grad(dpooled, noise, layout)
            dz.append(kernels.pool_grad(dpooled, signs[block], bend, layout.scale))
        else:
            below, dbend, dnoise = kernels.input_grad_block(dz.pop(), weights, x, signs[block], bend, noise)
            dz.append(below)
            del below
        grad[:, layout.slope[block].start] = dbend
        grad[:, layout.noise[block].start : layout.noise[block].stop] = dnoise.flatten(1)
    return kernels.input_grad(dz.pop(), bank.weights(0, backward=True)) if needs_hr else None


def _pooled_noise_grad(dpooled: Tensor, noise: Noise, layout: ThetaLayout) -> Tensor:
    """The gradient of the noise before the pooling: pooling is linear, and noise far smaller than activations."""
    rows, columns = (_pooling_matrix(size, layout.scale, dpooled.device) for size in layout.image_size)
    by_network = dpooled.unflatten(0, (len(noise.values), -1))
    if noise.seed is None:
        summed = by_network.sum(dim=(1, 4), dtype=torch.float32)
        return rows.T @ summed @ columns
    fields = torch.stack(
        [gaussian_field(seed, noise.layer, by_network.shape[1], layout.image_size)[:, 0] for seed in noise.seed]
    )
    return torch.einsum("nbhw,nbhwc->nc", rows @ fields @ columns.T, by_network.float())


def _banks(
    hr_size: torch.Size,
    theta_id: Tensor,
    delta: Tensor,
    noise_seed: Tensor,
    sizes: tuple[int, int, int, bool],
    dtype: torch.dtype,
    backend: str,
) -> list[_Bank]:
    """The rows of theta in the pieces that the backend can do at once."""
    kernels, layout = kernels_of(backend, dtype), _layout(tuple(hr_size[1:]), *sizes)
    pieces = len(theta_id) if kernels.one_network else 1
    rows = zip(theta_id.detach().chunk(pieces), delta.detach().chunk(pieces), noise_seed.chunk(pieces), strict=True)
    return [_Bank(kernels, layout, *row, dtype) for row in rows]


@torch.library.custom_op("andfast::degradation_forward", mutates_args=())
def _forward(
    hr: Tensor,
    theta_id: Tensor,
    delta: Tensor,
    noise_seed: Tensor,
    scale: int,
    channels: int,
    blocks: int,
    gaussian: bool,
    dtype: torch.dtype,
    backend: str,
    keep: bool,
) -> list[Tensor]:
    """The LR images, and, to `keep`, what the backward pass needs."""
    banks = _banks(hr.shape, theta_id, delta, noise_seed, (scale, channels, blocks, gaussian), dtype, backend)
    done = [_run_forward(bank, images, keep) for bank, images in zip(banks, hr.chunk(len(banks)), strict=True)]
    lr = done[0][0] if len(done) == 1 else torch.cat([lr for lr, _ in done])
    return [lr.permute(0, 3, 1, 2), *(tensor for _, saved in done for tensor in saved)]


@_forward.register_fake
def _(
    hr: Tensor,
    theta_id: Tensor,
    delta: Tensor,
    noise_seed: Tensor,
    scale: int,
    channels: int,
    blocks: int,
    gaussian: bool,
    dtype: torch.dtype,
    backend: str,
    keep: bool,
) -> list[Tensor]:
    kernels = kernels_of(backend, dtype)
    pieces = theta_id.shape[0] if kernels.one_network else 1
    batch, image_channels, height, width = hr.shape
    sign_bytes = (channels + 7) // 8
    low = (height // scale, width // scale)

    def activation(size: tuple[int, int], border: int = kernels.border) -> Tensor:
        return hr.new_empty(batch // pieces, size[0] + 2 * border, size[1] + 2 * border, channels, dtype=dtype)

    saved = []
    for _ in range(pieces):
        saved += [activation((height, width)) for _ in range(blocks - 1)]
        saved += [activation(low) for _ in range(blocks + 1)]
        for size in [(height, width)] * blocks + [low] * blocks:
            saved.append(hr.new_empty(batch // pieces, *size, sign_bytes, dtype=torch.uint8))
        saved.append(activation(low, 0))
    return [hr.new_empty(batch, *low, image_channels, dtype=dtype).permute(0, 3, 1, 2), *(saved if keep else [])]


@torch.library.custom_op("andfast::degradation_backward", mutates_args=())
def _backward(
    grad_lr: Tensor,
    theta_id: Tensor,
    delta: Tensor,
    noise_seed: Tensor,
    hr: Tensor,
    saved: list[Tensor],
    scale: int,
    channels: int,
    blocks: int,
    gaussian: bool,
    dtype: torch.dtype,
    backend: str,
    needs_hr: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of delta (N, P) and of the HR images in the compute type (empty where it is not needed)."""
    banks = _banks(hr.shape, theta_id, delta, noise_seed, (scale, channels, blocks, gaussian), dtype, backend)
    pieces, each = len(banks), len(saved) // len(banks)
    # The one place where layouts of any kind arrive: a sum's gradient, for one, has strides of 0.
    grad_lr = grad_lr.permute(0, 2, 3, 1).to(dtype).contiguous()
    grad = torch.empty_like(delta, memory_format=torch.contiguous_format)
    parts = zip(banks, grad_lr.chunk(pieces), hr.chunk(pieces), grad.chunk(pieces), strict=True)
    hr_grads = [
        _run_backward(bank, part, images, saved[i * each : (i + 1) * each], rows, needs_hr)
        for i, (bank, part, images, rows) in enumerate(parts)
    ]
    hr_grad = torch.cat(hr_grads).permute(0, 3, 1, 2) if needs_hr else grad.new_empty(0, dtype=dtype)
    return grad, hr_grad


@_backward.register_fake
def _(
    grad_lr: Tensor,
    theta_id: Tensor,
    delta: Tensor,
    noise_seed: Tensor,
    hr: Tensor,
    saved: list[Tensor],
    scale: int,
    channels: int,
    blocks: int,
    gaussian: bool,
    dtype: torch.dtype,
    backend: str,
    needs_hr: bool,
) -> tuple[Tensor, Tensor]:
    batch, image_channels, height, width = hr.shape
    hr_grad = delta.new_empty(batch, height, width, image_channels, dtype=dtype).permute(0, 3, 1, 2)
    grad = torch.empty_like(delta, memory_format=torch.contiguous_format)
    return grad, hr_grad if needs_hr else delta.new_empty(0, dtype=dtype)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: list[Tensor]) -> None:
    hr, theta_id, delta, noise_seed, *ctx.settings, _ = inputs
    ctx.set_materialize_grads(False)  # zeros for everything saved, otherwise
    ctx.save_for_backward(theta_id, delta, noise_seed, hr, *output[1:])


def _autograd(ctx: torch.autograd.function.FunctionCtx, grads: list[Tensor | None]) -> tuple:
    theta_id, delta, noise_seed, hr, *saved = ctx.saved_tensors
    needs_hr = ctx.needs_input_grad[0]
    grad, hr_grad = _backward(grads[0], theta_id, delta, noise_seed, hr, saved, *ctx.settings, needs_hr=needs_hr)
    return (hr_grad.to(hr.dtype) if needs_hr else None, None, grad, None, *(None for _ in ctx.settings), None)


_forward.register_autograd(_autograd, setup_context=_setup_context)

dispatch.register("degradation_forward", "reference", degradation_forward_reference)
dispatch.register("degradation_forward", "triton", _forward, device="cuda", dtypes=GPU_TYPES)
dispatch.register("degradation_forward", "cuda", _forward, device="cuda", dtypes=GPU_TYPES)
dispatch.register("degradation_forward", "cpu", _forward, device="cpu", dtypes=CPU_TYPES)
