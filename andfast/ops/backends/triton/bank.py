"""A bank of degradation networks for the Triton kernels in few launches: one before a pass, and one after backward."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from andfast.ops.backends.base import Bank, Epilogue
from andfast.ops.backends.triton.common import images_per_network
from andfast.ops.backends.triton.conv_input_grad import partial_block_input_grad, pooled_input_grad
from andfast.ops.backends.triton.conv_weight_grad import partial_weight_grad
from andfast.ops.backends.triton.gradient import Partials
from andfast.ops.backends.triton.pool import block_pool_grad, pool_noise
from andfast.ops.backends.triton.prepare import prepare


class PackedBank(Bank):
    """All layers are converted at once, and the gradient is added up at once.

    Equivalent to `LayerBank`.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.theta_id, self.delta = (
            rows if rows.stride(1) == 1 else rows.contiguous() for rows in (self.theta_id, self.delta)
        )
        self.seed = None if self.seed is None else self.seed.contiguous()
        layout, delta, backward = self.layout, self.delta, self.grad is not None
        self._image, self._weights, self._slopes = prepare(layout, self.hr, self.theta_id, delta, self.dtype, backward)
        if backward:
            self._images = images_per_network(len(self.hr), len(delta))
            self._partials = Partials(layout, len(delta), self._images, self.dtype, self.hr.device)

    def image(self) -> Tensor:
        return self._image

    def weights(self, layer: int) -> tuple[Tensor, ...]:
        return (self._weights[layer],)

    def epilogue(self, layer: int) -> Epilogue:
        return Epilogue(self._slopes[layer], self.noise(layer), self.seed, layer)

    def _sums(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._partials.part("slope", layer), self._partials.part("noise", layer)

    def conv_weight_grad(self, layer: int, x: Tensor, dz: Tensor) -> None:
        partial_weight_grad(x, dz, self._partials.part("conv", layer))

    def block_input_grad(self, layer: int, dz: list[Tensor], y: Tensor, sign_mask: Tensor) -> Tensor:
        epilogue, sums = self.epilogue(layer - 1), self._sums(layer - 1)
        return partial_block_input_grad(dz.pop(), self._weights[layer], y, sign_mask, epilogue, *sums)

    def block_pool_grad(self, layer: int, dz: list[Tensor], negative: Tensor, sign_mask: Tensor) -> Tensor:
        epilogue, (dslope, dnoise) = self.epilogue(layer - 1), self._sums(layer - 1)
        scale, field = self.layout.scale, None
        if self.seed is not None:
            field = pool_noise(epilogue, self._images, *negative.shape[1:3], scale)
        dpooled = pooled_input_grad(dz.pop(), self._weights[layer], negative, field, dslope, dnoise)
        maps = dnoise if self.seed is None else None
        return block_pool_grad(dpooled, sign_mask, epilogue.slope_minus_one, scale, maps)

    def finish(self) -> None:
        self._partials.add(self.grad)
