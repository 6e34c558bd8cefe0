"""The layout of theta, against the moments' own definitions in NumPy."""

import math
from dataclasses import FrozenInstanceError
from itertools import pairwise

import numpy as np
import pytest
import torch

from andfast.ops.theta_layout import ScaleFactors, ThetaLayout, moment_basis

# Taps in row-major order: x runs fastest.
Y, X = (axis.ravel().astype(np.float64) for axis in np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"))


def layout(noise: str = "map") -> ThetaLayout:
    return ThetaLayout((12, 8), scale=2, channels=5, blocks=2, noise_kind=noise)


def matrix(columns: int, rows: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("noise", ["map", "gaussian"])
def test_segments_fill_the_row_without_gaps_or_overlaps(noise):
    segments = layout(noise).segments
    assert segments[0].start == 0
    assert segments[-1].stop == layout(noise).size
    for left, right in pairwise(segments):
        assert left.stop == right.start
    assert [segment.group for segment in segments] == ["conv"] * 5 + ["noise"] * 4 + ["slope"] * 4
    assert [segment.layer for segment in segments] == [*range(5), *range(4), *range(4)]


def test_shapes_are_those_of_the_paper():
    """Sec 3.1: 5 blocks before and after the pooling, a conv at the end, 64 channels but 3 at both ends."""
    paper = ThetaLayout((256, 256), scale=4)
    assert [segment.shape for segment in paper.conv] == [(64, 3, 9)] + [(64, 64, 9)] * 9 + [(3, 64, 9)]
    assert [segment.shape for segment in paper.noise] == [(1, 256, 256)] * 5 + [(1, 64, 64)] * 5
    assert len(paper.slope) == 10
    weights = 2 * 9 * 3 * 64 + 9 * 9 * 64 * 64
    assert paper.size == weights + 5 * 256**2 + 5 * 64**2 + 10
    assert ThetaLayout((256, 256), scale=4, noise_kind="gaussian").size == weights + 10 * 64 + 10
    odd = ThetaLayout((9, 15), scale=3, channels=4, blocks=1)
    assert [segment.shape for segment in odd.noise] == [(1, 9, 15), (1, 3, 5)]


def test_a_segment_views_its_own_columns():
    theta = torch.zeros(2, layout().size)
    segment = layout().noise[2]
    view = segment.view(theta)
    assert view.shape == (2, 1, 6, 4)
    view[1, 0, 2, 3] = 7
    assert theta[1, segment.start + 2 * 4 + 3] == 7
    assert theta.count_nonzero() == 1


@pytest.mark.parametrize("noise", ["map", "gaussian"])
def test_split_gives_the_segments_views(noise):
    theta = torch.arange(float(layout(noise).size))[None]
    parts = layout(noise).split(theta[0])
    for views, segments in zip(parts, (layout(noise).conv, layout(noise).noise, layout(noise).slope), strict=True):
        for view, segment in zip(views, segments, strict=True):
            assert torch.equal(view, segment.view(theta)[0])
            assert view.data_ptr() == theta[0, segment.start :].data_ptr()


def test_basis_is_orthonormal_and_means_what_it_says():
    basis = moment_basis().numpy()
    assert basis.dtype == np.float64
    np.testing.assert_allclose(basis @ basis.T, np.eye(9), atol=1e-15)
    np.testing.assert_allclose(basis[0], np.full(9, 1 / 3), atol=1e-15)
    np.testing.assert_allclose(basis[1], X / np.sqrt(6), atol=1e-15)
    np.testing.assert_allclose(basis[2], Y / np.sqrt(6), atol=1e-15)
    # The other six neither brighten nor translate: no sum, no first moments.
    np.testing.assert_allclose(basis[3:] @ np.stack([np.ones(9), X, Y], axis=1), 0, atol=1e-15)


def test_to_taps_gives_kernels_with_those_moments():
    delta = matrix(layout().size)
    segment = layout().conv[1]
    taps = segment.view(layout().to_taps(delta)).double().numpy()
    moments = segment.view(delta).double().numpy()
    np.testing.assert_allclose(taps.sum(-1) / 3, moments[..., 0], atol=1e-6)
    np.testing.assert_allclose(taps @ X / np.sqrt(6), moments[..., 1], atol=1e-6)
    np.testing.assert_allclose(taps @ Y / np.sqrt(6), moments[..., 2], atol=1e-6)


def test_to_taps_turns_each_kernel_by_itself_and_nothing_else():
    delta = torch.zeros(1, layout().size)
    segment = layout().conv[2]
    segment.view(delta)[0, 3, 1, 4] = 1
    start = layout().noise[0].start
    delta[0, start:] = matrix(layout().size - start, rows=1)
    taps = layout().to_taps(delta)
    np.testing.assert_allclose(segment.view(taps)[0, 3, 1].numpy(), moment_basis()[4].numpy(), atol=1e-7)
    assert taps[0, :start].count_nonzero() == moment_basis()[4].count_nonzero()
    assert torch.equal(taps[:, start:], delta[:, start:])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_to_moments_is_the_inverse_and_norms_stay(dtype, tolerance):
    delta = matrix(layout().size).to(dtype)
    taps = layout().to_taps(delta)
    assert taps.dtype == dtype
    assert not torch.allclose(taps, delta, atol=0.1)
    torch.testing.assert_close(layout().to_moments(taps), delta, rtol=0, atol=tolerance)
    torch.testing.assert_close(layout().to_taps(layout().to_moments(delta)), delta, rtol=0, atol=tolerance)
    norms = np.linalg.norm(delta.double().numpy(), axis=1)
    np.testing.assert_allclose(np.linalg.norm(taps.double().numpy(), axis=1), norms, rtol=tolerance)


@pytest.mark.parametrize("noise", ["map", "gaussian"])
def test_scale_vector_holds_each_group_s_factor(noise):
    factors = ScaleFactors(conv_dc=2.0, conv_shift=3.0, conv=5.0, noise=7.0, slope=11.0)
    scale = layout(noise).scale_vector(factors)
    assert scale.dtype == torch.float32
    assert scale.shape == (layout(noise).size,)
    kernels = 3 * 5 + 3 * 5 * 5 + 5 * 3
    injections = 2 * 12 * 8 + 2 * 6 * 4 if noise == "map" else 4 * 5
    expected = [2.0, 3.0, 3.0, *[5.0] * 6] * kernels + [7.0] * injections + [11.0] * 4
    assert scale.tolist() == expected


def test_scale_vector_forbids_with_infinity():
    scale = layout().scale_vector(ScaleFactors())  # no colour, no translation
    kernels = layout().conv[1].view(scale[None])
    assert torch.isinf(kernels[..., :3]).all()
    assert (kernels[..., 3:] == 1).all()
    assert torch.isinf(scale).sum() == 3 * (3 * 5 + 3 * 5 * 5 + 5 * 3)
    assert (1 / scale == 0).sum() == torch.isinf(scale).sum()


@pytest.mark.parametrize("name", ["conv_dc", "conv_shift", "conv", "noise", "slope"])
@pytest.mark.parametrize("value", [0.0, -1.0, -math.inf, math.nan])
def test_factors_must_be_positive(name, value):
    with pytest.raises(ValueError, match=rf"\b{name} is {value}"):
        ScaleFactors(**{name: value})


def test_one_group_at_least_must_be_free():
    with pytest.raises(ValueError, match="at least one group"):
        ScaleFactors(**dict.fromkeys(("conv_dc", "conv_shift", "conv", "noise", "slope"), math.inf))


def test_equal_layouts_are_one_key():
    assert {layout("map"): 1, layout("gaussian"): 2}[layout("map")] == 1
    with pytest.raises(FrozenInstanceError):
        layout().channels = 6


@pytest.mark.parametrize("noise", ["map", "gaussian"])
def test_groups_are_the_columns_of_their_segments(noise):
    own = layout(noise)
    columns = torch.arange(own.size)
    assert list(own.groups) == ["conv", "noise", "slope"]
    for group, columns_of in own.groups.items():
        wanted = [columns[segment.start : segment.stop] for segment in own.segments if segment.group == group]
        assert torch.equal(columns[columns_of], torch.cat(wanted))
