"""3x3 convolutions of N networks at once on the CPU in float32: compiled operators (csrc/cpu/conv.cpp).

`torch.ops.andfast.*`, all on contiguous float32 tensors, images in channels-last order; `weights` is (N, out, in, 9),
the taps in row-major order, and image b belongs to network b // (B / N):

* `conv(x, weights, padding, backward) -> z`: (B, H, W, in) -> (B, H + 2 padding - 2, W + 2 padding - 2, out), zeros
  around. `backward`: from `out` channels to `in`, the taps turned round, as in the gradient of the input.
* `conv_block(x, weights, bend, noise, border) -> (y, signs)`: `conv` without padding, and in the same pass the
  `block_tail` after it, of a noise map.
* `conv_weight_grad(x, dz, networks) -> grad`: the gradient of `weights` without padding, from x (B, H, W, in) and
  dz (B, H - 2, W - 2, out).

By Winograd's algorithm, which multiplies 16 times where the sum has 36 products, and rounds a little more for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from andfast.ops import dispatch

if "cpu" not in dispatch.unavailable:

    @torch.library.register_fake("andfast::conv")
    def _(x: Tensor, weights: Tensor, padding: int, backward: bool) -> Tensor:
        batch, height, width, _ = x.shape
        grown = 2 * padding - 2
        return x.new_empty(batch, height + grown, width + grown, weights.shape[2 if backward else 1])

    @torch.library.register_fake("andfast::conv_block")
    def _(x: Tensor, weights: Tensor, bend: Tensor, noise: Tensor, border: int) -> tuple[Tensor, Tensor]:
        batch, height, width, _ = x.shape
        out, grown = weights.shape[1], 2 * border - 2
        signs = x.new_empty(batch, height - 2, width - 2, (out + 7) // 8, dtype=torch.uint8)
        return x.new_empty(batch, height + grown, width + grown, out), signs

    @torch.library.register_fake("andfast::conv_weight_grad")
    def _(x: Tensor, dz: Tensor, networks: int) -> Tensor:
        return x.new_empty(networks, dz.shape[3], x.shape[3], 9)
