"""What comes after a block's convolution, in one pass over memory: compiled operators (csrc/).

`torch.ops.andfast.*`, all on contiguous tensors in channels-last order, (B, H, W, C), of type T; networks N, image b
belonging to network b // (B / N); `noise` and `seed` as in `network_kernels.Noise`, `bend` (N,) and `signs`
(B, H, W, ceil(C / 8)) as in `network_kernels.Kernels`:

* `block_tail(a, b?, bend, noise, seed?, layer, border) -> (y, signs)`: z = a + b, y = z + bend min(z, 0) + noise. y has
  a replicated border of `border` (0 or 1) pixels around it: the next convolution then needs no padding.
* `block_tail_grad(dy, y, signs, bend, noise, seed?, layer, border) -> (dz, dbend, dnoise)`: the way back, from the
  gradient of the bordered y. min(z, 0) is not stored but recovered, (y - noise) / slope (Rota Bulo et al., "In-place
  activated BatchNorm", 2018); for slopes nearer to zero than 1/1024 the division is by 1/1024, and dbend comes out
  smaller than it is, down to 0 for a slope of 0.
* `block_tail_pool(a, b?, bend, noise, seed?, layer, scale, border) -> (pooled, negative, signs)`: y pooled, with
  border, and min(z, 0) pooled, without; y itself is never stored.
* `block_tail_pool_grad(dpooled, signs, bend, scale) -> dz`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from andfast.ops import dispatch

if "cpu" not in dispatch.unavailable:

    def _signs(shape: torch.Size, like: Tensor) -> Tensor:
        return like.new_empty((*shape[:3], (shape[3] + 7) // 8), dtype=torch.uint8)

    def _bordered(like: Tensor, border: int, scale: int = 1) -> Tensor:
        batch, height, width, channels = like.shape
        return like.new_empty(batch, height // scale + 2 * border, width // scale + 2 * border, channels)

    @torch.library.register_fake("andfast::block_tail")
    def _(
        a: Tensor, b: Tensor | None, bend: Tensor, noise: Tensor, seed: Tensor | None, layer: int, border: int
    ) -> tuple[Tensor, Tensor]:
        return _bordered(a, border), _signs(a.shape, a)

    @torch.library.register_fake("andfast::block_tail_grad")
    def _(
        dy: Tensor,
        y: Tensor,
        signs: Tensor,
        bend: Tensor,
        noise: Tensor,
        seed: Tensor | None,
        layer: int,
        border: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _bordered(dy, -border), torch.empty_like(bend), torch.empty_like(noise)

    @torch.library.register_fake("andfast::block_tail_pool")
    def _(
        a: Tensor,
        b: Tensor | None,
        bend: Tensor,
        noise: Tensor,
        seed: Tensor | None,
        layer: int,
        scale: int,
        border: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _bordered(a, border, scale), _bordered(a, 0, scale), _signs(a.shape, a)

    @torch.library.register_fake("andfast::block_tail_pool_grad")
    def _(dpooled: Tensor, signs: Tensor, bend: Tensor, scale: int) -> Tensor:
        batch, height, width, channels = dpooled.shape
        return dpooled.new_empty(batch, height * scale, width * scale, channels)
