"""What a pass of F prepares in one launch, and the gradient that it adds up in one launch."""

import pytest
import torch
from torch import Tensor
from triton_reference import TYPES, check

from andfast.ops.backends.triton import conv_weight_grad, gradient
from andfast.ops.backends.triton.backend import TritonBackend
from andfast.ops.backends.triton.bank import PackedBank
from andfast.ops.backends.triton.gradient import Partials
from andfast.ops.backends.triton.prepare import prepare
from andfast.ops.theta_layout import ThetaLayout, moment_basis

# Image size, scale, channels, blocks, noise; N, images a network: odd channels, fewer than the image's, several squares
# of channels and several blocks of values.
BANKS = [
    ((18, 20), 2, 5, 2, "map", 3, 2),
    ((16, 32), 4, 20, 1, "gaussian", 1, 1),
    ((3, 9), 3, 2, 1, "map", 2, 1),
    ((4, 4), 2, 16, 1, "gaussian", 2, 3),
    ((5, 1), 1, 4, 1, "map", 2, 2),
]


def rows(networks: int, size: int, seed: int, device: str) -> Tensor:
    """(N, P) of which only each row is contiguous."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(networks, 2, size + 3, generator=generator).to(device)[:, 1, 2:-1]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("bank", "dtype"), list(zip(BANKS, (*TYPES, *TYPES[:2]), strict=True)))
def test_prepare(bank, dtype, backward, device):
    *sizes, networks, images = bank
    layout = ThetaLayout(*sizes)
    theta_id, delta = (rows(networks, layout.size, seed, device) for seed in range(2))
    hr = torch.rand(networks * images, 3, layout.image_size[0], 2 * layout.image_size[1], device=device)[..., ::2]
    hr = hr.to({torch.float32: torch.float64, torch.float16: torch.bfloat16}.get(dtype, torch.float32))
    for given in (hr, hr.contiguous(memory_format=torch.channels_last), hr[:1].expand(len(hr), -1, -1, -1)):
        image, weights, slope_minus_one = prepare(layout, given, theta_id, delta, dtype, backward)
        assert torch.equal(image, given.to(dtype).permute(0, 2, 3, 1))
        assert image.is_contiguous()
    slopes = torch.cat([part.view(theta_id - 1 + delta).flatten(1) for part in layout.slope], 1)
    assert torch.equal(slope_minus_one, slopes.T)
    for part, packed in zip(layout.conv, weights, strict=True):

        def expected(precision, part=part):
            deviation = part.view(delta).to(precision) @ moment_basis(device).to(precision)
            centre = part.view(theta_id)[..., 4:5].to(precision)
            if not backward:
                return torch.cat([deviation, centre], -1).permute(0, 3, 2, 1)
            deviation[..., 4:5] += centre
            return deviation.permute(0, 3, 1, 2)

        assert packed.is_contiguous()
        check(packed, expected(torch.float64), expected(torch.float32).to(dtype))


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("sizes", [None, (8, 64, 4, 16)], ids=["as is", "many programs"])
def test_add_partials(bank, sizes, device, monkeypatch):
    """Of every part of the gradient, from sums that are given."""
    if sizes is not None:
        monkeypatch.setattr(conv_weight_grad, "_PATCHES", 1)
        for name, size in zip(("_KERNELS", "_WIDE", "_LONG", "_TERMS"), sizes, strict=True):
            monkeypatch.setattr(gradient, name, size)
    gradient._plan.cache_clear()
    *layout_sizes, networks, images = bank
    layout = ThetaLayout(*layout_sizes)
    partials = Partials(layout, networks, images, torch.float16, torch.device(device))
    generator = torch.Generator().manual_seed(0)
    exact, single = (torch.zeros(networks, layout.size, dtype=kind, device=device) for kind in (torch.float64, None))
    for part in layout.segments:
        given = partials.part(part.group, part.layer)
        given.copy_(torch.randn(given.shape, generator=generator))
        for grad in (exact, single):
            terms = given.to(grad.dtype)
            if part.group == "conv":  # (N, shares, 9, out, in)
                value = terms.sum(1).permute(0, 2, 3, 1) @ moment_basis(device).T.to(grad.dtype)
            else:  # (B, blocks of channels or patches, noise of a term)
                each = len(terms[0]) if part.group == "noise" else terms[0].numel()
                value = terms.reshape(networks, images * each, -1).sum(1)
            grad[:, part.start : part.stop] = value.flatten(1)
    found, again = (torch.empty(networks, layout.size + 3, device=device)[:, 2:-1] for _ in range(2))
    partials.add(found)
    partials.add(again)
    gradient._plan.cache_clear()
    check(found, exact, single)
    assert torch.equal(found, again)


def test_any_strides_of_theta(device):
    """A bank's rows may lie across each other, and its seeds may be one."""
    layout = ThetaLayout((2, 2), 2, 2, 1, "gaussian")
    theta_id, delta = (rows(2, layout.size, seed, device) for seed in range(2))
    hr, seed = torch.rand(2, 3, 2, 2, device=device), torch.tensor([5], device=device).expand(2)
    across = theta_id.T.contiguous().T, delta.T.contiguous().T, seed
    found, expected = (
        PackedBank(TritonBackend(), layout, hr, *given, torch.float32, None)
        for given in (across, (theta_id, delta, seed))
    )
    for layer in range(2):
        assert torch.equal(found.weights(layer)[0], expected.weights(layer)[0])
        assert torch.equal(found.epilogue(layer).slope_minus_one, expected.epilogue(layer).slope_minus_one)
        noise = layout.noise[layer].view(delta).flatten(1)
        for bank in (found, expected):
            assert torch.equal(bank.epilogue(layer).noise, noise)
            assert bank.epilogue(layer).noise.stride(1) == 1  # which is what the kernels take
            assert bank.epilogue(layer).seed.is_contiguous()
