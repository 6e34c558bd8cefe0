"""How training and attacks look through G: in a type of its own, and for the adversary without weight gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from andfast.models.spectral_norm import SpectralNormConv2d


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
        return self.of(self.module, lr)

    def of(self, part: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """What a part of the module gives for an image, as the whole would be computed."""
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(image.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return part(image)


class FrozenView(View):
    """A module in evaluation mode whose weights take no gradient, for those who need none of them.

    That is the adversary, which looks through G and D, and G, which looks through D: a pass changes nothing and no
    image sees another. In float32 its weights are the source's own memory. In a half type they are a copy in that
    type, for autocast keeps its casts for weights alone that want a gradient, and would cast these anew in every pass;
    but for those of batch norms, which stay in float32 as their statistics do, and those that are normalised in each
    pass. Buffers are the source's own.

    Args:
        source: the module to look through, on its device; not changed.
        dtype: what to compute in.
    """

    def __init__(self, source: nn.Module, dtype: torch.dtype) -> None:
        wide = [module for module in source.modules() if isinstance(module, (nn.BatchNorm2d, SpectralNormConv2d))]
        kept = {id(weight) for module in wide for weight in module.parameters()}
        # A deep copy copies what it does not find in its memo: all but weights and buffers.
        memo: dict[int, Tensor] = {id(buffer): buffer for buffer in source.buffers()}
        self._source: list[Tensor] = []
        self._weights: list[Tensor] = []
        for weight in source.parameters():
            own = weight.detach() if id(weight) in kept else weight.detach().to(dtype)
            memo[id(weight)] = nn.Parameter(own, requires_grad=False)
            if own.dtype != weight.dtype:
                self._source.append(weight)
                self._weights.append(memo[id(weight)])
        super().__init__(copy.deepcopy(source, memo).eval(), dtype)

    @property
    def own_bytes(self) -> int:
        """The memory of the weights, where it is not the source's."""
        return sum(weight.nbytes for weight in self._weights)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the source's weights, which have changed."""
        if self._weights:
            torch._foreach_copy_(self._weights, self._source)
