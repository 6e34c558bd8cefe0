"""A network that upscales images of any size and kind, within the memory that there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from andfast.inference.alpha import without_holes
from andfast.inference.receptive_field import reach
from andfast.inference.resize import resized_rows, resized_size
from andfast.inference.row_chunks import by_strips
from andfast.inference.tiles import ALIGN, cut, largest_patch, upscaled_rows
from andfast.models import RRDBNet
from andfast.models.frozen import FrozenModule
from andfast.ops import dispatch
from andfast.utils.memory import LiveBytes, free_memory, is_out_of_memory

#: Tiles that are chosen are no larger and no smaller: larger ones gain nothing, smaller ones are mostly overlap.
LARGEST, SMALLEST = 1024, 16

# Images of no more pixels than this, high and wide, are taken whole without counting.
_SMALL = 128

# Of the free memory, the share that tiles may take by what their tensors hold: libraries take more for themselves.
_SHARE = 0.5

_PROBE = 64  # pixels high and wide of the image whose memory is counted


class Upscaler:
    """Upscales images with one model.

    Args:
        model: has `scale` and maps (B, 3, h, w) in [0, 1] to (B, 3, scale * h, scale * w); on its device, not changed.
            Where it has `align`, parts of images must begin at its multiples; where it has `tiles` and that is False,
            images are taken whole.
        precision: what it computes in.
        tile: height and width of what is computed at once, in pixels of the input, its surroundings not counted;
            0: the whole image; None: as much as fits into half of the free memory.
        overlap: how much of the image each kept pixel sees around it; None: as much as the model needs, see
            `andfast.inference.receptive_field`.
        compiled: compile the model when it is first called.
        deep: what it computes in for images of more than 8 bits, which are all but those of uint8; None: the same.

    Raises:
        ValueError: `tile` or `overlap` is negative.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: torch.dtype = torch.float32,
        tile: int | None = None,
        overlap: int | None = None,
        compiled: bool = False,
        deep: torch.dtype | None = None,
    ) -> None:
        if (tile or 0) < 0 or (overlap or 0) < 0:
            raise ValueError(f"tile and overlap must not be negative, as {tile} and {overlap}")
        self.model, self.precision, self.deep = model, precision, deep or precision
        self.scale: int = model.scale
        self.device = next(model.parameters()).device
        self.align: int = getattr(model, "align", ALIGN)
        self._views = {dtype: FrozenModule(model, dtype) for dtype in {self.precision, self.deep}}
        self._by_strips = isinstance(model, RRDBNet) and not compiled
        if compiled:
            for view in self._views.values():
                view.module.compile(dynamic=True)
        self._tile = tile if getattr(model, "tiles", True) else 0
        self._overlap = overlap
        self._limit: int | None = None  # what was found to fit where memory ran out

    @property
    def types(self) -> str:
        """What it computes in, for people."""
        precision, deep = (str(dtype).removeprefix("torch.") for dtype in (self.precision, self.deep))
        return precision if precision == deep else f"{precision} ({deep} for images of more than 8 bits)"

    @cached_property
    def overlap(self) -> int:
        """How much of the image each kept pixel sees around it."""
        return reach(self.model) if self._overlap is None else self._overlap

    @cached_property
    def bytes_a_pixel(self) -> float:
        """About what the model's tensors take at once, for each pixel of the input."""

        def count(mode: FakeTensorMode | nullcontext) -> int:
            with mode, LiveBytes() as memory, torch.inference_mode():
                self._run(torch.zeros(1, 3, _PROBE, _PROBE, device=self.device))
                return memory.peak

        try:
            return count(FakeTensorMode(allow_non_fake_inputs=True)) / _PROBE**2
        except Exception:  # models that look at values need some
            return count(nullcontext()) / _PROBE**2

    def tile_for(self, height: int, width: int, images: int = 1) -> int:
        """Height and width of the tiles for an image of that size; 0: it is taken whole."""
        tile = self._tile
        if tile is None and height * width <= _SMALL**2:
            tile = 0
        if tile is None:
            free = free_memory(self.device)
            side = LARGEST if free is None else math.isqrt(int(_SHARE * free / (images * self.bytes_a_pixel)))
            if height * width <= min(side, LARGEST) ** 2:
                tile = 0
            else:
                around = largest_patch(0, self.overlap, self.align)
                tile = min(max(side - around, SMALLEST), LARGEST)
        if self._limit is not None:
            tile = min(tile or self._limit, self._limit)
        return tile

    def rows(
        self,
        image: Tensor,
        factor: float | None = None,
        done: Callable[[int], object] | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """The result from top to bottom: (rows, result[..., rows, :]), float32, not clipped, on the device of `image`.

        Args:
            image: (B, 3, H, W), in floating point in [0, 1] or in uint8 or uint16.
            factor: of the result's size to the image's; None: the model's own.
            done: is told after each tile how many pixels of the image are finished.

        Raises:
            NonFiniteError: the model's output holds NaN or infinity.
        """
        height, width = image.shape[-2:]
        tile = self.tile_for(height, width, len(image))
        overlap = self.overlap if tile and max(height, width) > tile else 0
        rows = upscaled_rows(self._patch, self.scale, image, tile, overlap, self.align, done)
        if factor is None or factor == self.scale:
            return rows
        size = (height * self.scale, width * self.scale)
        return resized_rows(rows, size, resized_size((height, width), factor))

    def _patch(self, patch: Tensor) -> Tensor:
        weight = next(self.model.parameters())
        image = patch.to(weight.device, weight.dtype)
        if not patch.dtype.is_floating_point:
            image /= torch.iinfo(patch.dtype).max
        with torch.inference_mode(), dispatch.allow_large_tiles():
            return self._run(image, patch.dtype).float()

    def _run(self, image: Tensor, pixels: torch.dtype = torch.float32) -> Tensor:
        """The model's result for an image that was of the type `pixels`."""
        view = self._views[self.precision if pixels == torch.uint8 else self.deep]
        return by_strips(view, image) if self._by_strips else view(image)

    def tensor(self, image: Tensor, factor: float | None = None) -> Tensor:
        """All of the result: float32 (B, 3, H', W'), not clipped, on the device of `image`; see `rows`."""
        height, width = resized_size(image.shape[-2:], self.scale if factor is None else factor)
        result = torch.empty(*image.shape[:-2], height, width, dtype=torch.float32, device=image.device)

        def fill() -> None:
            for rows, part in self.rows(image, factor):
                result[..., rows, :] = part

        self._within_memory(fill, image.shape[-2:])
        return result

    def pixels(
        self, image: np.ndarray, factor: float | None = None, done: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """Upscale an image as files hold it; alpha, too, and colours of transparent pixels leave no trace.

        Args:
            image: (H, W, C) of uint8 or uint16, or of floating point in [0, 1]; C is 1 for gray, 2 with alpha, 3 for
                RGB, 4 with alpha.
            factor, done: see `rows`.

        Returns:
            (H', W', C) of the same type, clipped and, to whole numbers, rounded.
        """
        height, width = resized_size(image.shape[:2], self.scale if factor is None else factor)
        result = np.empty((height, width, image.shape[2]), image.dtype)
        colours = image.shape[2] - 1 if image.shape[2] in (2, 4) else image.shape[2]
        planes = [(image, slice(0, colours))]
        if colours < image.shape[2]:
            alpha = image[..., colours:]
            if alpha.min() == alpha.max():  # nothing to compute
                result[..., colours:] = alpha[0, 0]
            else:
                planes = [(without_holes(image), slice(0, colours)), (image, slice(colours, colours + 1))]

        def fill() -> None:
            for source, channels in planes:
                plane = torch.from_numpy(source[..., channels]).permute(2, 0, 1)[None]
                for rows, part in self.rows(plane.expand(1, 3, -1, -1), factor, done):
                    if channels.stop - channels.start == 1:  # gray, as the model sees it
                        part = part.mean(1, keepdim=True)
                    result[rows, :, channels] = quantised(part[0], image.dtype)

        self._within_memory(fill, image.shape[:2])
        return result

    def _within_memory(self, function: Callable[[], None], size: tuple[int, ...]) -> None:
        """Do it; where memory runs out, again with tiles of half the size, as often as it takes."""
        while True:
            try:
                return function()
            except Exception as error:
                tile = self.tile_for(*size[:2])
                tile = min(tile or max(size), max(size))
                if not is_out_of_memory(error) or tile <= SMALLEST or not getattr(self.model, "tiles", True):
                    raise
            self._limit = max(tile // 2, SMALLEST)  # outside of the handler, whose error holds on to what was taken
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def tiles_of(self, height: int, width: int) -> int:
        """How many tiles an image of that size takes."""
        tile = self.tile_for(height, width)
        return len(cut(height, tile, 0)) * len(cut(width, tile, 0))


def quantised(image: Tensor, dtype: np.dtype) -> np.ndarray:
    """float (C, H, W) -> (H, W, C) of a type: clipped to [0, 1] and rounded to the levels of uint8 or uint16."""
    image = image.clamp(0, 1).permute(1, 2, 0)
    if dtype.kind == "u":
        image = (image * np.iinfo(dtype).max).round_()
    return image.cpu().numpy().astype(dtype)


def upscale_tensor(model: nn.Module, image: Tensor, tile: int | None = 256, overlap: int | None = 16) -> Tensor:
    """Upscale an image of any size tile by tile; by default by tiles that depend on nothing but the image.

    Args:
        model: has `scale` and maps (B, 3, h, w) to (B, 3, scale * h, scale * w).
        image: float (B, 3, H, W) in [0, 1], on any device; tiles move to the model's one by one.
        tile, overlap: see `Upscaler`.

    Returns:
        float32 (B, 3, scale * H, scale * W), not clipped, on the device of `image`.

    Raises:
        ValueError: `tile` or `overlap` is negative, or the image is empty or of another shape.
        NonFiniteError: the model's output holds NaN or infinity.
    """
    if image.ndim != 4 or image.numel() == 0:
        raise ValueError(f"an image batch is (B, 3, H, W) and not empty, not {tuple(image.shape)}")
    return Upscaler(model, tile=tile, overlap=overlap).tensor(image.detach())
