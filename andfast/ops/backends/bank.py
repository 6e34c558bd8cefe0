"""A bank of degradation networks, converted layer by layer to what a backend's kernels take, and its gradient back."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from andfast.ops.backends.base import Bank, Epilogue
from andfast.ops.blur_pool import pooling_taps
from andfast.ops.theta_layout import moment_basis


@lru_cache
def tap_basis(device: torch.device) -> Tensor:
    """`moment_basis` in float32."""
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


class LayerBank(Bank):
    """Each layer is converted when it is asked for, and its gradient written when it is known."""

    def image(self) -> Tensor:
        return self.kernels.to_nhwc(self.hr, self.dtype)

    def weights(self, layer: int) -> tuple[Tensor, ...]:
        segment = self.layout.conv[layer]
        taps = self.kernels.rotate_taps(self.delta[:, segment.start : segment.stop], tap_basis(self.delta.device))
        centre = segment.view(self.theta_id)[..., 4]
        return self.kernels.pack_weights(centre, taps.unflatten(1, segment.shape), self.dtype, self.grad is not None)

    def epilogue(self, layer: int) -> Epilogue:
        column = self.layout.slope[layer].start
        slope_minus_one = self.theta_id[:, column] - 1 + self.delta[:, column]
        return Epilogue(slope_minus_one, self.noise(layer).contiguous(), self.seed, layer)

    def conv_weight_grad(self, layer: int, x: Tensor, dz: Tensor) -> None:
        taps = self.kernels.conv_weight_grad(x, dz, len(self.grad))
        to_moments = tap_basis(self.grad.device).T.contiguous()
        segment = self.layout.conv[layer]
        self.grad[:, segment.start : segment.stop] = self.kernels.rotate_taps(taps.flatten(1), to_moments)

    def block_input_grad(self, layer: int, dz: list[Tensor], y: Tensor, sign_mask: Tensor) -> Tensor:
        weights, epilogue = self.weights(layer), self.epilogue(layer - 1)
        below, dslope, dnoise = self.kernels.block_input_grad(dz.pop(), weights, y, sign_mask, epilogue)
        self._write(layer - 1, dslope, dnoise)
        return below

    def block_pool_grad(self, layer: int, dz: list[Tensor], negative: Tensor, sign_mask: Tensor) -> Tensor:
        weights, epilogue = self.weights(layer), self.epilogue(layer - 1)
        dpooled = self.kernels.conv_input_grad(dz.pop(), weights)
        dslope = (dpooled.float() * negative).unflatten(0, (len(self.grad), -1)).sum(dim=(1, 2, 3, 4))
        self._write(layer - 1, dslope, self._pooled_noise_grad(dpooled, epilogue))
        return self.kernels.block_pool_grad(dpooled, sign_mask, epilogue.slope_minus_one, self.layout.scale)

    def finish(self) -> None:
        pass

    def _write(self, layer: int, dslope: Tensor, dnoise: Tensor) -> None:
        slope, noise = self.layout.slope[layer], self.layout.noise[layer]
        self.grad[:, slope.start] = dslope
        self.grad[:, noise.start : noise.stop] = dnoise.flatten(1)

    def _pooled_noise_grad(self, dpooled: Tensor, epilogue: Epilogue) -> Tensor:
        """The gradient of the noise before the pooling: pooling is linear, and noise far smaller than activations."""
        size, scale = self.layout.image_size, self.layout.scale
        rows, columns = (_pooling_matrix(side, scale, dpooled.device) for side in size)
        by_network = dpooled.unflatten(0, (len(epilogue.noise), -1))
        if epilogue.seed is None:
            summed = by_network.sum(dim=(1, 4), dtype=torch.float32)
            return rows.T @ summed @ columns
        fields = self.kernels.gaussian_field(epilogue.seed, epilogue.layer, by_network.shape[1], size)
        fields = fields.unflatten(0, by_network.shape[:2])
        return torch.einsum("nbhw,nbhwc->nc", rows @ fields @ columns.T, by_network.float())
