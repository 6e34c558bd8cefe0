"""Tiles against the image at once."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from upscaling_models import compact

from andfast.inference import upscaler as upscaler_module
from andfast.inference.receptive_field import LONGEST, TOLERANCE, measured, receptive_field
from andfast.inference.tiles import NonFiniteError, cut, largest_patch, resized_rows, resized_size
from andfast.inference.upscaler import Upscaler, by_row_chunks, parts_of, upscale_tensor
from andfast.models import Compact, RRDBNet
from andfast.models.frozen import FrozenModule
from andfast.ops import dispatch
from andfast.utils.memory import LiveBytes


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [(40, 61), (33, 32), (7, 50)])
@pytest.mark.parametrize("tile", [13, 32])
def test_tiles_equal_the_whole(scale, size, tile):
    model = compact(scale)
    image = torch.rand(1, 3, *size)
    whole = model(image).detach()
    assert (whole - F.interpolate(image, scale_factor=scale)).std() > 0.02  # it does something
    for overlap in (5, None):
        tiled = upscale_tensor(model, image, tile, overlap)
        torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


def test_context_is_what_makes_them_equal():
    model, image = compact(), torch.rand(1, 3, 40, 61)
    tiled = upscale_tensor(model, image, 16, overlap=0)
    assert (tiled - model(image)).abs().max() > 1e-2


@pytest.mark.parametrize("scale", [1, 2])
def test_tiles_keep_the_grouping_of_pixels(scale):
    """Moving 2x2 or 4x4 pixels into channels works on the same groups in a tile as in the whole image."""
    torch.manual_seed(0)
    model = RRDBNet(scale, features=8, blocks=1, growth=4).eval()
    image = torch.rand(1, 3, 150, 70)
    tiled = upscale_tensor(model, image, tile=61, overlap=24 * 4 // scale)
    torch.testing.assert_close(tiled, model(image).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (16, 16), (17, 15)])
@pytest.mark.parametrize("tile", [0, 1, 5, 16])
def test_small_images(size, tile):
    for model in (compact(), RRDBNet(1, features=4, blocks=1, growth=2)):
        image = torch.rand(2, 3, *size)
        result = upscale_tensor(model, image, tile, overlap=16)
        torch.testing.assert_close(result, model(image).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 31, 64, 101, 1000])
@pytest.mark.parametrize("tile", [1, 7, 30, 64])
@pytest.mark.parametrize("overlap", [0, 3, 7, 16, 100])
def test_every_pixel_is_kept_and_sees_its_surroundings(size, tile, overlap):
    spans = cut(size, tile, overlap)
    assert (spans[0].begin, spans[-1].end) == (0, size)
    assert (spans[0].fades_in, spans[-1].fades_out) == (0, 0)
    for one, next_ in pairwise(spans):
        assert one.end - next_.begin == one.fades_out == next_.fades_in
        assert one.fades_in + one.fades_out <= one.end - one.begin
    for span in spans:
        assert span.context_begin == max(0, span.begin - overlap) // 4 * 4
        assert min(size, span.end + overlap) <= span.context_end <= size
        assert span.context_end - span.context_begin <= largest_patch(tile, overlap)


def test_tiles_fade_into_each_other():
    """Of a network that sees where its tile begins and ends, no trace of a seam is left but a ramp."""

    class Gain(torch.nn.Module):  # brighter, the farther right the tile begins
        scale = 2

        def __init__(self):
            super().__init__()
            self.calls = 0
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return F.interpolate(x, scale_factor=2) * 0 + self.calls

    flat = upscale_tensor(Gain(), torch.zeros(1, 3, 8, 96), tile=48, overlap=32)[0, 0, 0]
    step = flat.diff()
    assert (flat[0], flat[-1]) == (1, 2)
    assert step.min() >= 0
    assert step.max() <= 1 / 31.9  # over 2 x 8 pixels of the input
    assert (step > 0).sum() == 33
    down = upscale_tensor(Gain(), torch.zeros(1, 3, 96, 8), tile=48, overlap=32)[0, 0, :, 0]
    torch.testing.assert_close(down, flat)


def test_memory_is_bounded_by_the_tile():
    model, seen = compact(), []
    upscaler = Upscaler(model, tile=30, overlap=7)
    upscaler._views[torch.float32].module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2:]))
    upscaler.tensor(torch.rand(1, 3, 101, 99))
    assert len(seen) == 16
    assert max(max(size) for size in seen) <= largest_patch(30, 7)


@pytest.mark.parametrize("tile", [0, 16, 30])
def test_progress_counts_every_pixel_once(tile):
    counted = []
    Upscaler(compact(), tile=tile).pixels(np.zeros((50, 61, 3), np.uint8), None, counted.append)
    assert sum(counted) == 50 * 61
    assert (len(counted) > 1) == (tile > 0)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_progress_is_also_seen_within_a_tile(precision):
    """After each block, also where images of 8 bits are computed in another type than others."""
    torch.manual_seed(0)
    upscaler = Upscaler(RRDBNet(4, features=4, blocks=5, growth=4).eval(), precision, deep=torch.float32)
    image, counted = np.zeros((20, 21, 3), np.uint8), []
    for pixels in (image, image.astype(np.uint16)):
        upscaler.pixels(pixels, None, counted.append)
        assert counted == [84] * 5 + [0]
        counted.clear()
    upscaler.pixels(image)  # no part keeps its hook
    assert not counted


def test_what_a_model_is_made_of():
    generator = RRDBNet(4, features=4, blocks=3, growth=4)
    assert parts_of(generator) == list(generator.body)
    first, inner = nn.Linear(2, 2), [nn.Sequential(*(nn.Linear(9, 9) for _ in range(5))) for _ in range(3)]
    assert parts_of(nn.ModuleDict({"first": first, "body": nn.ModuleList(inner)})) == inner  # longer rows are repeated
    assert parts_of(first) == []


def test_result_needs_no_gradient_and_is_an_ordinary_tensor():
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    result = upscale_tensor(compact(), image)
    assert not result.requires_grad
    assert not result.is_inference()


@pytest.mark.parametrize(
    ("shape", "tile", "overlap"),
    [((1, 3, 4, 4), -1, 0), ((1, 3, 4, 4), 8, -1), ((3, 4, 4), 8, 0), ((1, 3, 0, 4), 8, 0)],
)
def test_tensor_arguments(shape, tile, overlap):
    with pytest.raises(ValueError, match="not"):
        upscale_tensor(compact(), torch.rand(shape), tile, overlap)


@pytest.mark.parametrize("tile", [0, 3])
def test_output_that_is_not_finite(tile):
    model = compact()
    with torch.no_grad():
        model.body[0].weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="not finite"):
        upscale_tensor(model, torch.rand(1, 3, 4, 4), tile, 0)


# How far a network looks


@pytest.mark.parametrize("convs", [0, 3, 9])
def test_reach_of_a_compact_is_that_of_its_convolutions(convs):
    model = compact(convs=convs)
    assert receptive_field(model) == -(-(convs + 2) // 4) * 4
    assert measured(model) <= receptive_field(model)
    x = torch.rand(1, 3, 1, 64, requires_grad=True)
    model(x)[..., 64].sum().backward()
    touched = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    assert max(32 - touched.min(), touched.max() - 32) == convs + 2


def test_what_is_measured_is_enough():
    torch.manual_seed(0)
    model = RRDBNet(features=16, blocks=3, growth=8).eval()
    with torch.no_grad():  # a network that looks farther than a fresh one
        for name, weight in model.named_parameters():
            weight.mul_(3 if "rdb" in name else 1.5)
    overlap = receptive_field(model)
    assert 4 <= overlap < LONGEST
    image = torch.rand(1, 3, 100, 90)
    with torch.no_grad():
        whole = model(image)
    error = (upscale_tensor(model, image, tile=32, overlap=None) - whole).abs().max()
    assert error < TOLERANCE
    less = (upscale_tensor(model, image, tile=32, overlap=overlap // 4) - whole).abs().max()
    assert less > TOLERANCE


def test_no_end_of_the_reach():
    class Mean(torch.nn.Module):
        scale = 1

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x + x[..., :8].mean((2, 3), keepdim=True)

    assert receptive_field(Mean()) == LONGEST


# Memory


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (31, 9), (32, 9), (33, 9), (150, 10)])
def test_strips_equal_the_whole(scale, size):
    torch.manual_seed(0)
    model, image = RRDBNet(scale, features=8, blocks=1, growth=4).eval(), torch.rand(2, 3, *size)
    expected = model(image).detach()
    torch.testing.assert_close(by_row_chunks(FrozenModule(model, torch.float32), image), expected, rtol=0, atol=1e-5)
    with torch.no_grad(), dispatch.allow_large_tiles():
        found = by_row_chunks(FrozenModule(model, torch.float32), image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_strips_bound_the_memory_at_four_times_the_size():
    model = RRDBNet(features=16, blocks=1, growth=8).eval()
    peaks = []
    for height in (200, 400):
        with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as memory, torch.inference_mode():
            by_row_chunks(FrozenModule(model, torch.float32), torch.zeros(1, 3, height, 64))
        peaks.append(memory.peak)
    at_four_times = 4 * 16 * 16  # bytes of a pixel's features there, of which two or more are held at once
    assert (peaks[1] - peaks[0]) / (200 * 64) < 0.6 * at_four_times


def test_tiles_fit_the_free_memory(monkeypatch):
    upscaler = Upscaler(Compact(4, features=16, convs=4), overlap=8)
    assert 4 * 16 < upscaler.bytes_a_pixel < 4 * (2 * 16 + 4 * 48 + 6)
    monkeypatch.setattr(upscaler_module, "free_memory", lambda device: 10**12)
    assert upscaler.tile_for(1000, 1000) == 0
    assert upscaler.tile_for(5000, 5000) == upscaler_module.LARGEST
    monkeypatch.setattr(upscaler_module, "free_memory", lambda device: 2**25)
    assert upscaler.tile_for(100, 100) == 0
    tile = upscaler.tile_for(1000, 1000)
    taken = largest_patch(tile, 8) ** 2 * upscaler.bytes_a_pixel
    assert 0.8 * 2**24 < taken < 2**24
    monkeypatch.setattr(upscaler_module, "free_memory", lambda device: 0)
    assert upscaler.tile_for(1000, 1000) == upscaler_module.SMALLEST
    monkeypatch.setattr(upscaler_module, "free_memory", lambda device: None)
    assert upscaler.tile_for(1000, 1000) == 0


def test_tiles_of_wide_images_are_less_high(monkeypatch):
    """A row of them is held at once, of all the width; they equal the whole image as well."""
    model, image, seen = compact(2), torch.rand(1, 3, 150, 400), []
    upscaler = Upscaler(model)
    monkeypatch.setattr(upscaler, "tile_for", lambda *_: 100)
    monkeypatch.setattr(upscaler_module, "BAND", 30 * 2 * 800 * 3 * 4)
    upscaler._views[torch.float32].module.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-2:]))
    places, parts = zip(*upscaler.rows(image), strict=True)
    assert [place.start for place in places] == [0, *(place.stop for place in places[:-1])]
    torch.testing.assert_close(torch.cat(parts, -2), model(image).detach(), rtol=0, atol=1e-5)
    assert len(seen) == 5 * 4
    assert max(high for high, _ in seen) <= largest_patch(30, upscaler.overlap) < max(wide for _, wide in seen)
    held = max(part.untyped_storage().nbytes() for part in parts)
    assert held <= largest_patch(30, upscaler.overlap) * 2 * 800 * 3 * 4


def test_rows_of_tiles_as_wide_as_the_image_overlap(monkeypatch):
    model, image = compact(2), torch.rand(1, 3, 150, 80)
    upscaler = Upscaler(model)
    monkeypatch.setattr(upscaler, "tile_for", lambda *_: 200)  # as after running out of memory
    monkeypatch.setattr(upscaler_module, "BAND", 30 * 2 * 160 * 3 * 4)
    torch.testing.assert_close(upscaler.tensor(image), model(image).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tile", [None, 0, 90])
def test_where_memory_runs_out_tiles_are_halved(tile):
    model, seen = compact(), []
    upscaler = Upscaler(model, tile=tile)

    def fail(_, inputs):
        seen.append(max(inputs[0].shape[-2:]))
        if seen[-1] > 75:
            raise torch.OutOfMemoryError("CUDA out of memory")

    upscaler._views[torch.float32].module.register_forward_pre_hook(fail)
    image = torch.rand(1, 3, 90, 80)
    result = upscaler.tensor(image)
    torch.testing.assert_close(result, model(image).detach(), rtol=0, atol=1e-5)
    assert max(seen) > 75
    seen.clear()
    upscaler.tensor(image)
    assert max(seen) <= 75  # it has learned


def test_memory_that_is_never_enough():
    upscaler = Upscaler(compact())

    def fail(*_):
        raise MemoryError

    upscaler._views[torch.float32].module.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        upscaler.tensor(torch.rand(1, 3, 90, 80))


# Resizing


@pytest.mark.parametrize("wanted", [(50, 60), (97, 131), (300, 400), (13, 7), (1, 1), (96, 130)])
@pytest.mark.parametrize("step", [7, 97])
def test_resized_row_by_row(wanted, step):
    image = torch.rand(2, 3, 97, 131)
    rows = ((slice(top, min(top + step, 97)), image[..., top : top + step, :]) for top in range(0, 97, step))
    places, parts = zip(*resized_rows(rows, (97, 131), wanted), strict=True)
    assert [place.start for place in places] == [0, *(place.stop for place in places[:-1])]
    expected = F.interpolate(image, wanted, mode="bicubic", antialias=True)
    torch.testing.assert_close(torch.cat(parts, -2), expected, rtol=0, atol=3e-5)


def test_size_after_resizing():
    assert resized_size((10, 15), 1.5) == (15, 22)
    assert resized_size((1, 1000), 0.1) == (1, 100)


@pytest.mark.parametrize("tile", [0, 16])
@pytest.mark.parametrize("factor", [0.7, 1.5, 2, 3, 5.3])
def test_another_factor_than_the_model_s(tile, factor):
    model, image = compact(2), torch.rand(1, 3, 30, 41)
    result = Upscaler(model, tile=tile).tensor(image, factor)
    size = (round(30 * factor), round(41 * factor))
    expected = F.interpolate(model(image).detach(), size, mode="bicubic", antialias=True)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


# Pixels


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_array_is_the_rounded_and_clipped_tensor(precision):
    model = compact()
    image = np.random.default_rng(1).integers(0, 256, (20, 23, 3), dtype=np.uint8)
    result = Upscaler(model, precision, 8, 5).pixels(image)
    expected = model(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0).detach().numpy() * 255
    assert expected.min() < 0  # else clipping is not tested
    assert expected.max() > 255
    error = np.abs(result - expected.clip(0, 255)).max()
    assert error < (0.51 if precision == torch.float32 else 4)


def test_compiled():
    model, image = compact(), torch.rand(1, 3, 30, 41)
    upscaler = Upscaler(model, tile=16, compiled=True)
    torch.testing.assert_close(upscaler.tensor(image), model(image).detach(), rtol=0, atol=1e-5)
    from torch._dynamo.utils import counters

    assert counters["stats"]["unique_graphs"] >= 1
