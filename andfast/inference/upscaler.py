"""Upscale images of any size and type within the free memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from andfast.inference.receptive_field import receptive_field
from andfast.inference.tiles import ALIGN, largest_patch, resized_rows, resized_size, upscaled_rows
from andfast.models import RRDBNet
from andfast.models.frozen import AutocastModule, FrozenModule, on_a_copy
from andfast.models.rrdbnet import TAIL_REACH
from andfast.ops import dispatch
from andfast.ops.conv_chain import by_rows
from andfast.utils.formatting import dtype_name
from andfast.utils.memory import LiveBytes, free_memory, is_out_of_memory

#: Bounds of automatic tile sizes: larger tiles are no faster, smaller ones are mostly overlap.
LARGEST, SMALLEST = 1024, 16

#: Bytes that a row of automatic tiles of float32 takes at most: those of wide images are less high.
BAND = 2**30

# Images up to this height and width are taken whole without measuring memory.
_SMALL = 128

# The share of the free memory that the tensors of a tile may take; libraries need the rest.
_SHARE = 0.5

_PROBE = 64  # height and width of the image whose memory is measured

# Rows of features of RRDBNet that are enlarged at once; a few percent of them are computed twice.
_CHUNK_ROWS = 32


class Upscaler:
    """Upscales images with one model.

    Args:
        model: has `scale` and maps (B, 3, h, w) in [0, 1] to (B, 3, scale * h, scale * w). It stays on its device.
            If it has `align`, tiles begin at multiples of it; if it has `tiles = False`, images are never cut.
        precision: the type to compute in.
        tile: height and width of a tile in input pixels, without its context; 0: the whole image; None: as much as
            fits into half of the free memory.
        overlap: context around each kept pixel, in input pixels; None: the model's receptive field.
        compiled: compile the model at its first call.
        deep: the type to compute images of more than 8 bits in, that is, all but uint8; None: `precision`.

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
        self._views = {dtype: FrozenModule(model, dtype, gradients=False) for dtype in {self.precision, self.deep}}
        self._compiled = compiled
        self._by_chunks = isinstance(model, RRDBNet) and not compiled
        if compiled:
            for view in self._views.values():
                view.module.compile(dynamic=True)
        self._tile = tile if getattr(model, "tiles", True) else 0
        self._overlap = overlap
        self._limit: int | None = None  # the largest tile, after memory ran out

    @property
    def types(self) -> str:
        """The types it computes in, for messages."""
        precision, deep = map(dtype_name, (self.precision, self.deep))
        return precision if precision == deep else f"{precision} ({deep} for images of more than 8 bits)"

    @cached_property
    def overlap(self) -> int:
        """Context around each kept pixel, in input pixels."""
        return receptive_field(self.model) if self._overlap is None else self._overlap

    @cached_property
    def bytes_a_pixel(self) -> float:
        """Peak memory of the model's tensors per input pixel, approximately."""

        def count(mode: FakeTensorMode | nullcontext) -> int:
            with on_a_copy(self._views[self.deep]), mode, LiveBytes() as memory, torch.inference_mode():
                self._run(torch.zeros(1, 3, _PROBE, _PROBE, device=self.device))
                return memory.peak

        try:
            return count(FakeTensorMode(allow_non_fake_inputs=True)) / _PROBE**2
        except Exception:  # models whose code depends on values
            return count(nullcontext()) / _PROBE**2

    def tile_for(self, height: int, width: int, images: int = 1) -> int:
        """Height and width of the tiles for a batch of `images` of `height` x `width` pixels; 0: the whole image."""
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
        """Yield (rows, result[..., rows, :]) from top to bottom: float32, not clipped, on the device of `image`.

        Args:
            image: (B, 3, H, W), floating point in [0, 1], uint8 or uint16.
            factor: size of the result relative to the image; None: the model's scale.
            done: called with the number of input pixels finished since its last call: after each of a row of equal
                parts that the model has, as RRDBNet's blocks, and after each tile.

        Raises:
            NonFiniteError: the model's output holds NaN or infinity.
        """
        height, width = image.shape[-2:]
        tile = high = self.tile_for(height, width, len(image))
        if tile and self._tile is None:
            line = 4 * len(image) * 3 * self.scale**2 * width  # bytes of the result of a row of pixels
            high = min(tile, max(BAND // line, SMALLEST))
        overlap = self.overlap if tile and (width > tile or height > high) else 0
        working = partial(self._working, done, image.dtype)
        rows = upscaled_rows(self._patch, self.scale, image, tile, overlap, self.align, working, high)
        if factor is None or factor == self.scale:
            return rows
        size = (height * self.scale, width * self.scale)
        return resized_rows(rows, size, resized_size((height, width), factor))

    @contextmanager
    def _working(self, done: Callable[[int], object] | None, dtype: torch.dtype, pixels: int) -> Iterator[None]:
        """Call `done` along a tile that finishes `pixels`: when one of the model's parts has run, and at the end."""
        if done is None:
            yield
            return
        parts = [] if self._compiled else parts_of(self._view(dtype).module)
        left = pixels

        def advance(*_: object) -> None:
            nonlocal left
            step = min(pixels // len(parts), left)
            left -= step
            done(step)

        with ExitStack() as hooks:
            for part in parts:
                hooks.callback(part.register_forward_hook(advance).remove)
            yield
        done(left)

    def _patch(self, patch: Tensor) -> Tensor:
        weight = next(self.model.parameters())
        image = patch.to(weight.device, weight.dtype)
        if not patch.dtype.is_floating_point:
            image /= torch.iinfo(patch.dtype).max
        with torch.inference_mode(), dispatch.allow_large_tiles():
            return self._run(image, patch.dtype).float()

    def _run(self, image: Tensor, pixels: torch.dtype = torch.float32) -> Tensor:
        """Run the model in the precision for images of the type `pixels`."""
        view = self._view(pixels)
        return by_row_chunks(view, image) if self._by_chunks else view(image)

    def _view(self, pixels: torch.dtype) -> FrozenModule:
        return self._views[self.precision if pixels == torch.uint8 else self.deep]

    def tensor(self, image: Tensor, factor: float | None = None) -> Tensor:
        """Return the whole result, float32 (B, 3, H', W'), not clipped; `image` and `factor` as in `rows`."""
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
        """Upscale an array of pixels, with its alpha channel if it has one.

        Args:
            image: (H, W, C), uint8, uint16 or floating point in [0, 1]; C is 1 for gray, 2 for gray with alpha, 3 for
                RGB, 4 for RGBA.
            factor, done: see `rows`.

        Returns:
            (H', W', C) of the same type, clipped, and rounded if it is an integer type.
        """
        height, width = resized_size(image.shape[:2], self.scale if factor is None else factor)
        # Filled, so that the free memory no longer counts it when the tiles are chosen.
        result = np.full((height, width, image.shape[2]), 0, image.dtype)
        colours = image.shape[2] - 1 if image.shape[2] in (2, 4) else image.shape[2]
        planes = [(image, slice(0, colours))]
        if colours < image.shape[2]:
            alpha = image[..., colours:]
            if alpha.min() == alpha.max():
                result[..., colours:] = alpha[0, 0]
            else:
                planes = [(bleed_alpha(image), slice(0, colours)), (image, slice(colours, colours + 1))]

        def fill() -> None:
            for source, channels in planes:
                plane = torch.from_numpy(source[..., channels]).permute(2, 0, 1)[None]
                for rows, part in self.rows(plane.expand(1, 3, -1, -1), factor, done):
                    if channels.stop - channels.start == 1:  # gray, which the model computed as RGB
                        part = part.mean(1, keepdim=True)
                    result[rows, :, channels] = quantised(part[0], image.dtype)

        self._within_memory(fill, image.shape[:2])
        return result

    def _within_memory(self, function: Callable[[], None], size: tuple[int, ...]) -> None:
        """Call the function; if memory runs out, again with tiles of half the size, down to `SMALLEST`."""
        while True:
            try:
                return function()
            except Exception as error:
                tile = self.tile_for(*size[:2])
                tile = min(tile or max(size), max(size))
                if not is_out_of_memory(error) or tile <= SMALLEST or not getattr(self.model, "tiles", True):
                    raise
            self._limit = max(tile // 2, SMALLEST)  # outside of the handler: its error keeps tensors alive
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def upscale_tensor(model: nn.Module, image: Tensor, tile: int | None = 256, overlap: int | None = 16) -> Tensor:
    """Upscale an image batch of any size in tiles.

    The default tiles do not depend on the free memory, so that results can be reproduced.

    Args:
        model, tile, overlap: see `Upscaler`.
        image: float (B, 3, H, W) in [0, 1], on any device; tiles move to the model's device one by one.

    Returns:
        float32 (B, 3, scale * H, scale * W), not clipped, on the device of `image`.

    Raises:
        ValueError: `tile` or `overlap` is negative, or the image is empty or of another shape.
        NonFiniteError: the model's output holds NaN or infinity.
    """
    if image.ndim != 4 or image.numel() == 0:
        raise ValueError(f"an image batch is (B, 3, H, W) and not empty, not {tuple(image.shape)}")
    return Upscaler(model, tile=tile, overlap=overlap).tensor(image.detach())


def parts_of(model: nn.Module) -> list[nn.Module]:
    """The longest row of modules that holds most of a model's weights, as RRDBNet's blocks; empty if there is none."""
    most = sum(weight.numel() for weight in model.parameters()) / 2
    rows = (row for row in model.modules() if isinstance(row, (nn.Sequential, nn.ModuleList)))
    large = (list(row) for row in rows if sum(weight.numel() for weight in row.parameters()) > most)
    return max(large, key=len, default=[])


def by_row_chunks(view: AutocastModule, image: Tensor) -> Tensor:
    """Run an `RRDBNet`, its last convolutions on some rows at a time: the same result up to rounding, in less memory.

    Nearly all of RRDBNet's work is done at the size of its features, but nearly all of its memory is needed at four or
    eight times that size. If the convolutions themselves keep only some rows of features, nothing is cut.
    """
    model = view.module
    height, width = (model.scale * length for length in image.shape[-2:])
    factor = model.scale * model.unshuffle  # of the last part
    features = view.run_part(model.look, image)
    if by_rows(features, features.shape[1]):
        return view.run_part(model.enlarge, features)[..., :height, :width]
    result: Tensor | None = None
    for top in range(0, features.shape[-2], _CHUNK_ROWS):
        begin, end = max(top - TAIL_REACH, 0), top + _CHUNK_ROWS + TAIL_REACH
        large = view.run_part(model.enlarge, features[..., begin:end, :])[..., factor * (top - begin) :, :width]
        if result is None:
            result = large.new_empty(*large.shape[:2], height, width)
        rows = min(factor * _CHUNK_ROWS, height - factor * top)
        result[..., factor * top : factor * top + rows, :] = large[..., :rows, :]
    assert result is not None
    return result


def quantised(image: Tensor, dtype: np.dtype) -> np.ndarray:
    """Convert float (C, H, W) to (H, W, C) of `dtype`, clipped to [0, 1]; uint8 and uint16 are rounded."""
    image = image.clamp(0, 1).permute(1, 2, 0)
    if dtype.kind == "u":
        image = (image * np.iinfo(dtype).max).round_()
    return image.cpu().numpy().astype(dtype)


def bleed_alpha(image: np.ndarray) -> np.ndarray:
    """Give fully transparent pixels of (H, W, C), with alpha last, the colours of the visible pixels around them.

    Files often store black there, which a network would draw into the visible edges. The colours come from coarser and
    coarser means of the visible pixels ("pull-push", Gortler et al., The lumigraph, 1996).
    """
    alpha = image[..., -1:]
    if alpha.min() > 0 or alpha.max() == 0:
        return image
    filled = _fill(image[..., :-1].astype(np.float32), (alpha > 0).astype(np.float32))
    if image.dtype.kind == "u":
        filled = np.rint(filled)
    colours = np.where(alpha > 0, image[..., :-1], filled.astype(image.dtype))
    return np.concatenate([colours, alpha], axis=2)


def _fill(colours: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Keep colours where `weight` is not 0; elsewhere take those of the next coarser image."""
    if weight.min() > 0:
        return colours
    height, width = weight.shape[:2]
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    sums, weights = (
        np.pad(values, pad).reshape((height + 1) // 2, 2, (width + 1) // 2, 2, -1).sum((1, 3))
        for values in (colours * weight, weight)
    )
    coarse = _fill(sums / np.maximum(weights, 1), np.minimum(weights, 1))
    large = coarse.repeat(2, 0).repeat(2, 1)[:height, :width]
    return np.where(weight > 0, colours, large)
