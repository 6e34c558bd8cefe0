"""Convolutions with spectral normalisation (Miyato et al., ICLR 2018, arXiv:1802.05957)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# As PyTorch's newer parametrisation does: the norm is near its value before the first training pass.
_FIRST_ITERATIONS = 15


class SpectralNormConv2d(nn.Module):
    """A convolution without bias whose weight is divided by its largest singular value, as an (out, in k k) matrix.

    The value comes from a power iteration, of which each pass in training mode does one step. The names in the state
    dict are those of `torch.nn.utils.spectral_norm`: `weight_orig`, `weight_u`, `weight_v`. Unlike there, the value is
    accurate from the start and computed in float32 under autocast, and a module that has been called can be copied.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        self.weight_orig = nn.Parameter(torch.empty(outputs, inputs, kernel_size, kernel_size))
        nn.init.kaiming_uniform_(self.weight_orig, a=math.sqrt(5))  # nn.Conv2d's
        self.register_buffer("weight_u", F.normalize(torch.randn(outputs), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(inputs * kernel_size**2), dim=0))
        for _ in range(_FIRST_ITERATIONS):
            self._iterate(self.weight_orig.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.normalised(), None, self.stride, self.padding)

    def normalised(self) -> Tensor:
        """The weight over its largest singular value, (out, in, k, k), in float32 or wider; in training mode after a
        step of the power iteration, whose vectors are constants for the gradient."""
        weight = self.weight_orig.to(torch.promote_types(self.weight_orig.dtype, torch.float32))
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)
            # Copies: the next pass overwrites the buffers, which must not change tensors of the graph.
            u, v = self._iterate(matrix) if self.training else (self.weight_u.clone(), self.weight_v.clone())
            return weight / torch.dot(u.to(matrix), matrix @ v.to(matrix))

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        v = F.normalize(matrix.T @ self.weight_u.to(matrix), dim=0)
        u = F.normalize(matrix @ v, dim=0)
        self.weight_u.copy_(u)
        self.weight_v.copy_(v)
        return u, v
