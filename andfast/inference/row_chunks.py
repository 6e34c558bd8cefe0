"""RRDBNet in a fraction of its memory: what it does at four times the size is done strip by strip."""

from __future__ import annotations

from torch import Tensor

from andfast.models.frozen import AutocastModule
from andfast.models.rrdbnet import TAIL_REACH
from andfast.ops.conv_chain import by_rows

# Rows of features at once: a few percent of them are computed twice.
_ROWS = 32


def by_strips(view: AutocastModule, image: Tensor) -> Tensor:
    """What view(image) gives, up to rounding.

    Nearly all of RRDBNet's work is done at the input's size, nearly all of its memory is taken at four times that.
    Where a chain of convolutions holds no more than rows of its features itself, nothing is cut.

    Args:
        view: of an `RRDBNet`.
        image: (B, 3, H, W).
    """
    model = view.module
    height, width = (model.scale * length for length in image.shape[-2:])
    features = view.run_part(model.look, image)
    if by_rows(features):
        return view.run_part(model.enlarge, features)[..., :height, :width]
    result: Tensor | None = None
    for top in range(0, features.shape[-2], _ROWS):
        begin, end = max(top - TAIL_REACH, 0), top + _ROWS + TAIL_REACH
        large = view.run_part(model.enlarge, features[..., begin:end, :])[..., 4 * (top - begin) :, :width]
        if result is None:
            result = large.new_empty(*large.shape[:2], height, width)
        rows = min(4 * _ROWS, height - 4 * top)
        result[..., 4 * top : 4 * top + rows, :] = large[..., :rows, :]
    assert result is not None
    return result
