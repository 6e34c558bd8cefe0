"""G and D as training and attacks call them: under autocast, and for the adversary without weight gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from andfast.models.foreign import ForeignModel
from andfast.models.spectral_norm import SpectralNormConv2d


class AutocastModule:
    """Calls a module on channels_last images under autocast.

    Args:
        module: (B, 3, h, w) -> images.
        dtype: what autocast computes in; float32: no autocast. The weights keep their type.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.module = module
        self.dtype = dtype

    def __call__(self, images: Tensor) -> Tensor:
        return self.run_part(self.module, images)

    def run_part(self, part: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Call a part of the module in the same way."""
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return part(images)


@contextmanager
def on_a_copy(view: AutocastModule) -> Iterator[None]:
    """Inside, `view` calls a copy that shares the weights' memory, if its module is an architecture of spandrel.

    Some store tensors in themselves when they are called, which must not be those without content that a measurement
    of memory makes.
    """
    module = view.module
    if isinstance(module, ForeignModel):
        memo: dict[int, Any] = {id(buffer): buffer.clone() for buffer in module.buffers()}
        for weight in module.parameters():
            memo[id(weight)] = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
        view.module = copy.deepcopy(module, memo)
    try:
        yield
    finally:
        view.module = module


class FrozenModule(AutocastModule):
    """A copy of a module in evaluation mode whose weights take no gradient.

    The adversary calls G and D in this way, and so does G with D: a pass changes no buffers, and batch norms do not
    couple the images of a batch. Buffers are shared with `source`, and in float32 weights, too. In a half type weights
    are cast once, since autocast caches only casts of weights that take a gradient; those of batch norms and of
    spectrally normalised convolutions stay in float32.

    Args:
        source: the module.
        dtype: as for `AutocastModule`.
        gradients: whether gradients with respect to the images are taken, which some architectures of spandrel need
            other code for.
    """

    def __init__(self, source: nn.Module, dtype: torch.dtype, gradients: bool = True) -> None:
        wide = [module for module in source.modules() if isinstance(module, (nn.BatchNorm2d, SpectralNormConv2d))]
        kept = {id(weight) for module in wide for weight in module.parameters()}
        # A deep copy takes objects from its memo: all weights and buffers are there.
        memo: dict[int, Tensor] = {id(buffer): buffer for buffer in source.buffers()}
        self._source: list[Tensor] = []
        self._casts: list[Tensor] = []
        for weight in source.parameters():
            cast = weight.detach() if id(weight) in kept else weight.detach().to(dtype)
            memo[id(weight)] = nn.Parameter(cast, requires_grad=False)
            if cast.dtype != weight.dtype:
                self._source.append(weight)
                self._casts.append(memo[id(weight)])
        module = copy.deepcopy(source, memo).eval()
        # Asked of the source, which is in float32.
        if gradients and isinstance(source, ForeignModel) and source.has_training_paths():
            assert isinstance(module, ForeignModel)
            module.use_training_paths()
        super().__init__(module, dtype)

    @property
    def copied_bytes(self) -> int:
        """The memory of the weights that are not shared with the source."""
        return sum(weight.nbytes for weight in self._casts)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the source's weights after an update."""
        if self._casts:
            torch._foreach_copy_(self._casts, self._source)
