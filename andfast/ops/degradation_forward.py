"""The whole degradation network as one operation with one backward pass (Sec 3.1 and 3.2).

Blocks, pooling, blocks, last convolution, without autograd between them. The blocks' outputs, which the weight
gradients need, and one sign bit an element are kept for the backward pass. The gradient of theta is written into one
(N, P) matrix.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from andfast.ops import dispatch
from andfast.ops.backends.base import Backend, Epilogue
from andfast.ops.blur_pool import blur_pool_reference, pooling_taps
from andfast.ops.degradation_block import check_tensor, concatenate, one_network_block, split_conv
from andfast.ops.noise import gaussian_field
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
        slope_minus_one = (slope_id[layer] - 1 + slope[layer]).squeeze().to(x.dtype)
        x = one_network_block(x, centres[layer], deviations[layer], slope_minus_one, added.to(x.dtype))
        if layer == layout.blocks - 1:
            x = blur_pool_reference(x, layout.scale)
    return split_conv(x, centres[-1], deviations[-1])


def degradation_forward(
    hr: Tensor, theta_id: Tensor, delta: Tensor, noise_seed: Tensor, layout: ThetaLayout, dtype: torch.dtype
) -> Tensor:
    """Degrade a batch with a bank of N networks.

    Equivalent to `degradation_forward_reference`, the layers one by one in plain PyTorch.

    Args:
        hr: (B, 3, H, W), floating point, of the size that `layout` is for; B a multiple of N.
        theta_id: (N, P) float32, the identity, as `DegradationNetwork.reset_identity` draws it.
        delta: (N, P) float32, the deviation; its convolutions in moments (`ThetaLayout`).
        noise_seed: (N,) int64, for noise of the kind "gaussian".
        layout: the columns of theta.
        dtype: the type to compute in, float16 or bfloat16 for half types; sums are float32.

    Returns:
        (B, 3, H/scale, W/scale) in `dtype`, not clamped. Gradients flow to `delta` and `hr` where they require one.
        Only the reference is twice differentiable. The gradient of a slope within 1/1024 of zero comes out too small
        (`andfast.ops.backends.library`).

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape or device; the message names it.
    """
    _check(hr, theta_id, delta, noise_seed, layout)
    sizes = (layout.scale, layout.channels, layout.blocks, layout.noise_kind == "gaussian")
    implementation = forward_implementation(hr, theta_id, layout, dtype)
    if implementation == "reference":
        return degradation_forward_reference(hr, theta_id, delta, noise_seed, layout, dtype)
    save = torch.is_grad_enabled() and (delta.requires_grad or hr.requires_grad)
    return _forward(hr, theta_id, delta, noise_seed, *sizes, dtype, implementation, save)[0]


def forward_implementation(hr: Tensor, theta_id: Tensor, layout: ThetaLayout, dtype: torch.dtype) -> str:
    """The implementation that `degradation_forward` runs for these arguments; see `dispatch.resolve`."""
    structure = len(theta_id), layout.image_channels, layout.channels, layout.blocks, layout.scale
    sizes = *structure, int(layout.noise_kind == "gaussian"), len(hr), *layout.image_size
    return dispatch.resolve("degradation_forward", hr.device, dtype, sizes)


def _check(hr: Tensor, theta_id: Tensor, delta: Tensor, noise_seed: Tensor, layout: ThetaLayout) -> None:
    """Raise what `degradation_forward` documents for invalid arguments."""
    if not hr.is_floating_point():
        raise TypeError(f"hr is {hr.dtype}; it must be a floating-point image in [0, 1]")
    size = (layout.conv[0].shape[1], *layout.image_size)
    if hr.ndim != 4 or tuple(hr.shape[1:]) != size:
        raise ValueError(f"hr has shape {tuple(hr.shape)}; for this layout it must be (B, {', '.join(map(str, size))})")
    if theta_id.ndim != 2:
        raise ValueError(f"theta_id has shape {tuple(theta_id.shape)}; it must be (N, {layout.size})")
    count = len(theta_id)
    for name, tensor, shape, dtype in (
        ("theta_id", theta_id, (count, layout.size), torch.float32),
        ("delta", delta, (count, layout.size), torch.float32),
        ("noise_seed", noise_seed, (count,), torch.int64),
    ):
        check_tensor(name, tensor, shape, (dtype, torch.float64), ("hr", hr))
    if count < 1 or hr.shape[0] % count:
        raise ValueError(f"hr holds {hr.shape[0]} images; it must be a multiple of the number of networks, {count}")


@lru_cache(maxsize=16)
def _layout(size: tuple[int, ...], scale: int, channels: int, blocks: int, gaussian: bool) -> ThetaLayout:
    return ThetaLayout(size[1:], scale, channels, blocks, "gaussian" if gaussian else "map", size[0])


class _Bank:
    """The parameters of some rows of theta in a backend's layout."""

    def __init__(
        self,
        kernels: Backend,
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
        taps = self.kernels.rotate_taps(self.delta[:, segment.start : segment.stop], _basis(self.delta.device))
        centre = segment.view(self.theta_id)[..., 4]
        return self.kernels.pack_weights(centre, taps.unflatten(1, segment.shape), self.dtype, backward)

    def epilogue(self, layer: int) -> Epilogue:
        column = self.layout.slope[layer].start
        slope_minus_one = self.theta_id[:, column] - 1 + self.delta[:, column]
        noise = self.layout.noise[layer].view(self.delta)
        noise = noise[:, 0] if self.seed is None else noise[..., 0, 0]
        return Epilogue(slope_minus_one, noise.contiguous(), self.seed, layer)


@lru_cache
def _basis(device: torch.device) -> Tensor:
    return moment_basis(device).float()


@lru_cache
def _pooling_matrix(size: int, scale: int, device: torch.device) -> Tensor:
    """The pooling of a line of `size` pixels as a matrix (size / scale, size), reflection included."""
    matrix = torch.zeros(size // scale, size, dtype=torch.float64)
    for row in range(size // scale):
        for i, tap in enumerate(pooling_taps(scale)):
            column = abs(scale * row + i - 1)
            matrix[row, min(column, 2 * size - 2 - column)] += tap
    return matrix.float().to(device)


def _run_forward(bank: _Bank, hr: Tensor, save_for_backward: bool) -> tuple[Tensor, list[Tensor]]:
    """LR (B, h, w, 3), and what the backward pass needs besides `hr`: blocks' outputs, sign masks, pooled negatives.

    Without `save_for_backward` the list is empty, and every activation lives only until the next one.
    """
    kernels, layout = bank.kernels, bank.layout
    x = kernels.to_nhwc(hr, bank.dtype)
    outputs, masks, negatives = [], [], []
    for layer in range(2 * layout.blocks):
        parameters = bank.weights(layer), bank.epilogue(layer)
        if layer == layout.blocks - 1:
            x, negative, mask = kernels.block_pool(x, *parameters, layout.scale)
            negatives += [negative] * save_for_backward
        else:
            x, mask = kernels.block(x, *parameters)
        outputs += [x] * save_for_backward
        masks += [mask] * save_for_backward
    return kernels.conv(x, bank.weights(2 * layout.blocks)), [*outputs, *masks, *negatives]


def _run_backward(
    bank: _Bank, grad_lr: Tensor, hr: Tensor, saved: list[Tensor], grad: Tensor, needs_hr: bool
) -> Tensor | None:
    """Fill the rows `grad` (N, P); return the gradient of the HR images, (B, H, W, 3), if it is needed.

    Args:
        grad_lr: (B, h, w, 3) in the compute type.
        hr, saved: the input of `_run_forward`, and the tensors it saved.
    """
    kernels, layout, count = bank.kernels, bank.layout, len(grad)
    blocks = layout.blocks
    outputs, masks, negative = saved[: 2 * blocks], saved[2 * blocks : -1], saved[-1]
    to_moments = _basis(grad.device).T.contiguous()
    dz = [grad_lr]  # a list, from which it is popped: the kernels then free it as soon as it is no longer needed
    del grad_lr
    for layer in range(2 * blocks, -1, -1):
        block = layer - 1  # the one that made this convolution's input
        x = outputs[block] if layer else kernels.to_nhwc(hr, bank.dtype)
        taps = kernels.conv_weight_grad(x, dz[0], count)
        columns = slice(layout.conv[layer].start, layout.conv[layer].stop)
        grad[:, columns] = kernels.rotate_taps(taps.flatten(1), to_moments)
        del taps
        if layer == 0:
            break
        weights, epilogue = bank.weights(layer, backward=True), bank.epilogue(block)
        if layer == blocks:
            dpooled = kernels.conv_input_grad(dz.pop(), weights)
            dslope = (dpooled.float() * negative).unflatten(0, (count, -1)).sum(dim=(1, 2, 3, 4))
            dnoise = _pooled_noise_grad(kernels, dpooled, epilogue, layout)
            dz.append(kernels.block_pool_grad(dpooled, masks[block], epilogue.slope_minus_one, layout.scale))
        else:
            below, dslope, dnoise = kernels.block_input_grad(dz.pop(), weights, x, masks[block], epilogue)
            dz.append(below)
            del below
        grad[:, layout.slope[block].start] = dslope
        grad[:, layout.noise[block].start : layout.noise[block].stop] = dnoise.flatten(1)
    return kernels.conv_input_grad(dz.pop(), bank.weights(0, backward=True)) if needs_hr else None


def _pooled_noise_grad(kernels: Backend, dpooled: Tensor, epilogue: Epilogue, layout: ThetaLayout) -> Tensor:
    """The gradient of the noise before the pooling: pooling is linear, and noise far smaller than activations."""
    rows, columns = (_pooling_matrix(size, layout.scale, dpooled.device) for size in layout.image_size)
    by_network = dpooled.unflatten(0, (len(epilogue.noise), -1))
    if epilogue.seed is None:
        summed = by_network.sum(dim=(1, 4), dtype=torch.float32)
        return rows.T @ summed @ columns
    fields = kernels.gaussian_field(epilogue.seed, epilogue.layer, by_network.shape[1], layout.image_size)
    fields = fields.unflatten(0, by_network.shape[:2])
    return torch.einsum("nbhw,nbhwc->nc", rows @ fields @ columns.T, by_network.float())


def _banks(
    hr_size: torch.Size,
    theta_id: Tensor,
    delta: Tensor,
    noise_seed: Tensor,
    sizes: tuple[int, int, int, bool],
    dtype: torch.dtype,
    implementation: str,
) -> list[_Bank]:
    """The rows of theta in the pieces that the kernels compute at once."""
    kernels, layout = dispatch.load(implementation), _layout(tuple(hr_size[1:]), *sizes)
    pieces = len(theta_id) if kernels.loops_over_bank else 1
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
    implementation: str,
    save_for_backward: bool,
) -> list[Tensor]:
    """The LR images, and with `save_for_backward` what the backward pass needs."""
    banks = _banks(hr.shape, theta_id, delta, noise_seed, (scale, channels, blocks, gaussian), dtype, implementation)
    pieces = zip(banks, hr.chunk(len(banks)), strict=True)
    done = [_run_forward(bank, images, save_for_backward) for bank, images in pieces]
    lr = concatenate([lr for lr, _ in done])
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
    implementation: str,
    save_for_backward: bool,
) -> list[Tensor]:
    kernels = dispatch.load(implementation)
    pieces = theta_id.shape[0] if kernels.loops_over_bank else 1
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
    return [
        hr.new_empty(batch, *low, image_channels, dtype=dtype).permute(0, 3, 1, 2),
        *(saved if save_for_backward else []),
    ]


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
    implementation: str,
    needs_hr: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of delta (N, P) and of the HR images in the compute type (empty if not needed)."""
    banks = _banks(hr.shape, theta_id, delta, noise_seed, (scale, channels, blocks, gaussian), dtype, implementation)
    pieces, each = len(banks), len(saved) // len(banks)
    # Layouts of any kind arrive here alone: the gradient of a sum, for one, has strides of 0.
    grad_lr = grad_lr.permute(0, 2, 3, 1).to(dtype).contiguous()
    grad = torch.empty_like(delta, memory_format=torch.contiguous_format)
    parts = zip(banks, grad_lr.chunk(pieces), hr.chunk(pieces), grad.chunk(pieces), strict=True)
    hr_grads = [
        _run_backward(bank, part, images, saved[i * each : (i + 1) * each], rows, needs_hr)
        for i, (bank, part, images, rows) in enumerate(parts)
    ]
    hr_grad = concatenate(hr_grads).permute(0, 3, 1, 2) if needs_hr else grad.new_empty(0, dtype=dtype)
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
    implementation: str,
    needs_hr: bool,
) -> tuple[Tensor, Tensor]:
    batch, image_channels, height, width = hr.shape
    hr_grad = delta.new_empty(batch, height, width, image_channels, dtype=dtype).permute(0, 3, 1, 2)
    grad = torch.empty_like(delta, memory_format=torch.contiguous_format)
    return grad, hr_grad if needs_hr else delta.new_empty(0, dtype=dtype)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: list[Tensor]) -> None:
    hr, theta_id, delta, noise_seed, *ctx.settings, _ = inputs
    ctx.set_materialize_grads(False)  # or autograd would make zeros for all that is saved
    ctx.save_for_backward(theta_id, delta, noise_seed, hr, *output[1:])


def _autograd(ctx: torch.autograd.function.FunctionCtx, grads: list[Tensor | None]) -> tuple:
    theta_id, delta, noise_seed, hr, *saved = ctx.saved_tensors
    needs_hr = ctx.needs_input_grad[0]
    grad, hr_grad = _backward(grads[0], theta_id, delta, noise_seed, hr, saved, *ctx.settings, needs_hr=needs_hr)
    return (hr_grad.to(hr.dtype) if needs_hr else None, None, grad, None, *(None for _ in ctx.settings), None)


_forward.register_autograd(_autograd, setup_context=_setup_context)
dispatch.register_convolutional("degradation_forward", degradation_forward_reference)
