"""How training and attacks look through G: in a type of its own, and for the adversary without weight gradients."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class View:
    """A module as images see it: channels_last, and autocast to a type.

    Args:
        module: (B, 3, h, w) -> images.
        dtype: what it computes in; the type of its weights stays what it is.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.module = module
        self.dtype = dtype

    def __call__(self, lr: Tensor) -> Tensor:
        lr = lr.contiguous(memory_format=torch.channels_last)
        with torch.autocast(lr.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.module(lr)


class FrozenView(View):
    """A module whose weights take no gradient, for an adversary that needs none of them.

    In float32 its weights are the source's own memory. In a half type they are a copy in that type, for autocast keeps
    its casts for weights alone that want a gradient, and would cast these anew in every pass.

    Args:
        source: the module to look through, on its device; not changed.
        dtype: what to compute in.
    """

    def __init__(self, source: nn.Module, dtype: torch.dtype) -> None:
        self._source = list(source.parameters())
        frozen = [nn.Parameter(weight.detach().to(dtype), requires_grad=False) for weight in self._source]
        # A deep copy copies what it does not find in its memo: all but the weights.
        memo = {id(weight): own for weight, own in zip(self._source, frozen, strict=True)}
        super().__init__(copy.deepcopy(source, memo), dtype)
        self._weights = frozen if dtype != torch.float32 else []

    @property
    def own_bytes(self) -> int:
        """The memory of the weights, where it is not the source's."""
        return sum(weight.nbytes for weight in self._weights)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the source's weights, which have changed."""
        if self._weights:
            torch._foreach_copy_(self._weights, self._source)
