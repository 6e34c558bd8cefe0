"""What the losses share: means over an image, and results for HR images that are computed once a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def per_image(values: Tensor) -> Tensor:
    """(B, ...) -> (B,), the mean over all other dimensions."""
    return values.mean(dim=tuple(range(1, values.ndim))) if values.ndim > 1 else values


def at_least_float32(values: Tensor) -> Tensor:
    """`values` in float32 or their own wider type: half types are too narrow for sums and logarithms."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class HRCache:
    """A function of HR images whose results for a step's batch are kept: for all passes of attack and update.

    Args:
        compute: (B, 3, H, W) -> tensors with a row for each image, which depends on that image alone. Called without
            gradients.
    """

    _rows: Sequence[Tensor]
    _hr: Tensor | None

    def __init__(self, compute: Callable[[Tensor], Sequence[Tensor]]) -> None:
        self._compute = compute
        self.forget()

    def remember(self, hr: Tensor) -> None:
        """Compute and keep the results for a batch, and for ranges of its rows (`hr[2:4]`, a part of `hr.split(2)`).

        They are used until the batch is written to, or `forget` is called. Call it again when the function has changed.
        """
        self._rows, self._hr, self._version = self._computed(hr), hr.detach(), hr._version

    def forget(self) -> None:
        """Free the batch and its results."""
        self._rows, self._hr, self._version = [], None, -1

    def __call__(self, hr: Tensor) -> list[Tensor]:
        """The results for `hr`, without gradients: kept ones, or else computed now."""
        first = self._first_row(hr)
        return self._computed(hr) if first is None else [rows[first : first + len(hr)] for rows in self._rows]

    def _first_row(self, hr: Tensor) -> int | None:
        """The row of the kept batch where `hr` begins; None: it is not a part of it."""
        if self._hr is None or self._hr._version != self._version or not self._hr.stride(0):
            return None
        # The batch is kept, so its memory cannot have become another's.
        first = (hr.storage_offset() - self._hr.storage_offset()) // self._hr.stride(0)
        rows = self._hr[max(first, 0) : max(first, 0) + len(hr)]
        return max(first, 0) if _memory(rows) == _memory(hr) else None

    @torch.no_grad()
    def _computed(self, hr: Tensor) -> list[Tensor]:
        return list(self._compute(hr))


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """The memory of a tensor's values. Unlike `is_set_to` this works for fake tensors, too."""
    return tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
