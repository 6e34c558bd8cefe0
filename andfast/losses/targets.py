"""What a loss computes of the HR images alone: once a step, for all passes of the attack and for the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Targets:
    """A function of HR images that can remember what it gave for a batch.

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
        """Compute what belongs to the batch of a step, in the place of any other batch's.

        From then on it is known for `hr` and for a range of its rows (`hr[2:4]`, a part of `hr.split(2)`), until it is
        written to, or `forget` is called. Call it anew when what computes has changed.
        """
        self._rows, self._hr, self._version = self._computed(hr), hr.detach(), hr._version

    def forget(self) -> None:
        """Let go of the batch and of what was computed of it."""
        self._rows, self._hr, self._version = [], None, -1

    def __call__(self, hr: Tensor) -> list[Tensor]:
        """What belongs to `hr`, without gradients: remembered, or else computed now."""
        first = self._first_row(hr)
        return self._computed(hr) if first is None else [rows[first : first + len(hr)] for rows in self._rows]

    def _first_row(self, hr: Tensor) -> int | None:
        """Where the images lie in the batch that is remembered; None: they do not."""
        if self._hr is None or self._hr._version != self._version or not self._hr.stride(0):
            return None
        # The batch is held, so its memory cannot have become another's.
        first = (hr.storage_offset() - self._hr.storage_offset()) // self._hr.stride(0)
        rows = self._hr[max(first, 0) : max(first, 0) + len(hr)]
        return max(first, 0) if _place(rows) == _place(hr) else None

    @torch.no_grad()
    def _computed(self, hr: Tensor) -> list[Tensor]:
        return list(self._compute(hr))


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Where its values lie. Unlike `is_set_to` this knows also tensors without content, whose memory is estimated."""
    return tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
