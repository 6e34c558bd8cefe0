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
from andfast.ops.backends.base import Bank
from andfast.ops.blur_pool import blur_pool_reference
from andfast.ops.degradation_block import check_tensor, concatenate, one_network_block, split_conv
from andfast.ops.noise import gaussian_field
from andfast.ops.theta_layout import ThetaLayout


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
        if layer == layout.pooled_layer:
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
        raise ValueError(f"the batch size of hr, {hr.shape[0]}, must be a multiple of the number of networks, {count}")


@lru_cache(maxsize=16)
def _layout(size: tuple[int, ...], scale: int, channels: int, blocks: int, gaussian: bool) -> ThetaLayout:
    return ThetaLayout(size[1:], scale, channels, blocks, "gaussian" if gaussian else "map", size[0])


def _run_forward(bank: Bank, save_for_backward: bool) -> tuple[Tensor, list[Tensor]]:
    """LR (B, h, w, 3), and what the backward pass needs besides HR: blocks' outputs, sign masks, any pooled negatives.

    Without `save_for_backward` the list is empty, and every activation lives only until the next one.
    """
    kernels, layout = bank.kernels, bank.layout
    x = bank.image()
    outputs, masks, negatives = [], [], []
    for layer in range(2 * layout.blocks):
        parameters = bank.weights(layer), bank.epilogue(layer)
        if layer == layout.pooled_layer:
            x, negative, mask = kernels.block_pool(x, *parameters, layout.scale)
            negatives += [negative] * save_for_backward
        else:
            x, mask = kernels.block(x, *parameters)
        outputs += [x] * save_for_backward
        masks += [mask] * save_for_backward
    return kernels.conv(x, bank.weights(2 * layout.blocks)), [*outputs, *masks, *negatives]


def _run_backward(bank: Bank, grad_lr: Tensor, saved: list[Tensor], needs_hr: bool) -> Tensor | None:
    """Fill the bank's rows of the gradient; return that of the HR images, (B, H, W, 3), if it is needed.

    Args:
        grad_lr: (B, h, w, 3) in the compute type.
        saved: the tensors that `_run_forward` saved.
    """
    layers = 2 * bank.layout.blocks
    outputs, masks, negatives = saved[:layers], saved[layers : 2 * layers], saved[2 * layers :]
    dz = [grad_lr]
    del grad_lr
    for layer in range(layers, 0, -1):
        block = layer - 1  # the one that made this convolution's input
        bank.conv_weight_grad(layer, outputs[block], dz[0])
        if block == bank.layout.pooled_layer:
            dz.append(bank.block_pool_grad(layer, dz, *negatives, masks[block]))
        else:
            dz.append(bank.block_input_grad(layer, dz, outputs[block], masks[block]))
    bank.conv_weight_grad(0, bank.image(), dz[0])
    bank.finish()
    return bank.kernels.conv_input_grad(dz.pop(), bank.weights(0)) if needs_hr else None


def _banks(
    hr: Tensor,
    theta_id: Tensor,
    delta: Tensor,
    noise_seed: Tensor,
    sizes: tuple[int, int, int, bool],
    dtype: torch.dtype,
    implementation: str,
    grad: Tensor | None = None,
) -> list[Bank]:
    """The rows of theta, with their images and the rows of their gradient, in pieces that kernels compute at once."""
    kernels, layout = dispatch.load(implementation), _layout(tuple(hr.shape[1:]), *sizes)
    pieces = len(theta_id) if kernels.loops_over_bank else 1
    rows = zip(*(tensor.detach().chunk(pieces) for tensor in (hr, theta_id, delta, noise_seed)), strict=True)
    grads = [None] * pieces if grad is None else grad.chunk(pieces)
    return [kernels.bank_type(kernels, layout, *row, dtype, part) for row, part in zip(rows, grads, strict=True)]


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
    banks = _banks(hr, theta_id, delta, noise_seed, (scale, channels, blocks, gaussian), dtype, implementation)
    done = [_run_forward(bank, save_for_backward) for bank in banks]
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
        saved += [activation(low, 0)] * (scale > 1)
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
    grad = torch.empty_like(delta, memory_format=torch.contiguous_format)
    sizes = (scale, channels, blocks, gaussian)
    banks = _banks(hr, theta_id, delta, noise_seed, sizes, dtype, implementation, grad)
    each = len(saved) // len(banks)
    # Layouts of any kind arrive here alone: the gradient of a sum, for one, has strides of 0.
    grad_lr = grad_lr.permute(0, 2, 3, 1).to(dtype).contiguous()
    hr_grads = [
        _run_backward(bank, part, saved[i * each : (i + 1) * each], needs_hr)
        for i, (bank, part) in enumerate(zip(banks, grad_lr.chunk(len(banks)), strict=True))
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
