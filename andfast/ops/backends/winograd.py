"""Our own convolutions on the CPU in float32, all networks of a bank at once (csrc/cpu/).

By Winograd's algorithm in tiles of 4 x 4 results (of 2 x 2, where an image's size wastes less of them), which take 36
products where the sums have 144, and round a little more for it. The compiled kernels, `torch.ops.andfast.*` on
contiguous float32 images (B, H, W, C), are called from inside our own operators, so torch.compile never meets them.
Of F, with `weights` (N, out, in, 9), taps in row-major order:

* `conv(x, weights, padding, backward) -> z`: (B, H, W, in) -> (B, H + 2 padding - 2, W + 2 padding - 2, out), zeros
  around. `backward`: from `out` channels to `in`, with flipped taps, as in the gradient of the input.
* `conv_block(x, weights, slope_minus_one, noise, border) -> (y, sign_mask)`: `conv` without padding, and
  `block_epilogue` with a noise map.
* `conv_weight_grad(x, dz, networks) -> grad`: the gradient of `weights` without padding, from x (B, H, W, in) and
  dz (B, H - 2, W - 2, out).

Of the generators, with weights (out, in, 3, 3), contiguous or channels_last: `conv_act`, `conv_act_input_grad`,
`conv_act_weight_grad`, `dense_block`, `dense_block_input_grad` and `dense_block_weight_grad`, as in `Backend`.

Large tiles (csrc/cpu/inference.cpp) compute 36 results from 64 products and keep nothing for a backward pass:

* `large_chain(x, weights, biases, slopes, repeats) -> y`: see `andfast.ops.conv_chain`; a slope is (out,) or None.
* `large_dense_block(x, weights, biases, slope, gain) -> y`: see `andfast.ops.dense_block`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from andfast.ops.backends.base import GAIN, SLOPE, Epilogue, merge_taps
from andfast.ops.backends.library import OneDnnBackend

_ops = torch.ops.andfast

# Fewer channels do not fill the vectors: there the library's weight gradient is faster (bench/test_conv.py).
_FEW = 16


class WinogradBackend(OneDnnBackend):
    """Everything in float32 on the CPU; see `Backend`."""

    loops_over_bank = False

    def pack_weights(self, centre: Tensor, deviation: Tensor, dtype: torch.dtype, backward: bool) -> tuple[Tensor, ...]:
        return (merge_taps(centre, deviation),)  # float32 can hold the sum

    def _summands(self, x: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, None]:
        return _ops.conv(x, *weights, 0, False), None

    def _bordered_input_grad(self, dz: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        return _ops.conv(dz, *weights, 2, True)

    def conv_weight_grad(self, x: Tensor, dz: Tensor, num_networks: int) -> Tensor:
        if x.shape[3] < _FEW:
            pairs = zip(x.chunk(num_networks), dz.chunk(num_networks), strict=True)
            return torch.cat([super(WinogradBackend, self).conv_weight_grad(*pair, 1) for pair in pairs])
        return _ops.conv_weight_grad(x, dz, num_networks)

    def block(
        self, x: Tensor, weights: tuple[Tensor, ...], epilogue: Epilogue, bordered: bool = True
    ) -> tuple[Tensor, Tensor]:
        if epilogue.seed is not None:  # drawn for four pixels in a row, not for tiles: not fused
            return super().block(x, weights, epilogue, bordered)
        return _ops.conv_block(x, *weights, epilogue.slope_minus_one, epilogue.noise, int(bordered))

    def conv_act(
        self, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, save_for_backward: bool
    ) -> tuple[Tensor, Tensor]:
        slope = bias.new_ones(bias.shape) if slope is None else slope
        return _ops.conv_act(x, weight, bias, slope, save_for_backward)

    def conv_act_input_grad(self, dz: Tensor, weight: Tensor) -> Tensor:
        return _ops.conv_act_input_grad(dz, weight)

    def conv_act_weight_grad(self, x: Tensor, dz: Tensor, weight: Tensor) -> Tensor:
        if min(weight.shape[:2]) < _FEW:
            return super().conv_act_weight_grad(x, dz, weight)
        return _ops.conv_act_weight_grad(x, dz, weight)

    def dense_block(
        self, x: Tensor, weights: list[Tensor], biases: list[Tensor], save_for_backward: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _ops.dense_block(x, weights, biases, SLOPE, GAIN, save_for_backward)

    def dense_block_input_grad(self, dy: Tensor, weights: list[Tensor], sign_mask: Tensor) -> tuple[Tensor, Tensor]:
        return _ops.dense_block_input_grad(dy, weights, sign_mask, SLOPE, GAIN)

    def dense_block_weight_grad(
        self, x: Tensor, intermediates: Tensor, dy: Tensor, dintermediates: Tensor, weights: list[Tensor]
    ) -> list[Tensor]:
        return _ops.dense_block_weight_grad(x, intermediates, dy, dintermediates, weights, GAIN)


class LargeTilesBackend(WinogradBackend):
    """The generators' forward passes in large tiles, for inference (`andfast.ops.dispatch.allow_large_tiles`)."""

    def conv_act(
        self, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, save_for_backward: bool
    ) -> tuple[Tensor, Tensor]:
        nothing = x.new_empty(0, *x.shape[1:3], (len(weight) + 7) // 8, dtype=torch.uint8)
        return _ops.large_chain(x, [weight], [bias], [slope], [1]), nothing

    def dense_block(
        self, x: Tensor, weights: list[Tensor], biases: list[Tensor], save_for_backward: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        nothing = x.new_empty(0)
        return _ops.large_dense_block(x, weights, biases, SLOPE, GAIN), nothing, nothing
