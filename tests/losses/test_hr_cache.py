"""Results for a step's HR images are computed once, and are never another batch's."""

import pytest
import torch

from andfast.losses.common import HRCache


class Doubled:
    """A function of images that counts how many it has seen."""

    def __init__(self):
        self.images = 0

    def __call__(self, hr):
        self.images += len(hr)
        return [2 * hr, hr.sum(dim=(1, 2, 3))]


@pytest.fixture
def doubled():
    return Doubled()


@pytest.fixture
def targets(doubled):
    return HRCache(doubled)


def check(targets, hr):
    double, total = targets(hr)
    assert torch.equal(double, 2 * hr)
    assert torch.equal(total, hr.sum(dim=(1, 2, 3)))
    assert not double.requires_grad


PARTS = {
    "itself": lambda hr: [hr, hr.detach(), hr.view(hr.shape)],
    "its rows": lambda hr: [hr[:2], hr[2:], hr[1:3], hr[3:4], hr[1:][1:]],
    "its split": lambda hr: hr.split([1, 0, 3]),
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("within", [False, True])
def test_what_is_known(targets, doubled, parts, layout, within):
    hr = torch.rand(6, 3, 4, 5).contiguous(memory_format=layout)
    hr = hr[1:5] if within else hr[:4].clone(memory_format=torch.preserve_format)
    targets.remember(hr)
    for part in parts(hr):
        check(targets, part)
    assert doubled.images == 4


def test_what_is_not_known_is_computed(targets, doubled):
    hr = torch.rand(6, 3, 4, 5)
    targets.remember(hr[1:5])
    seen = 4
    for other in (
        hr,
        hr[:2],
        hr[4:],
        hr[1:5:2],
        hr[1:5].clone(),
        torch.cat([hr[1:5], hr[:1]]),
        hr[1:5, :, :2],
        hr[1:5].transpose(2, 3),
        hr[1:5].double(),
        torch.rand(4, 3, 4, 5),
    ):
        check(targets, other)
        seen += len(other)
        assert doubled.images == seen


def test_images_that_were_written_to_are_not_known(targets, doubled):
    hr = torch.rand(4, 3, 4, 5)
    targets.remember(hr)
    hr[2:].mul_(0.5)
    check(targets, hr)
    assert doubled.images == 8
    targets.remember(hr)
    check(targets, hr)
    assert doubled.images == 12


def test_the_next_batch_and_none(targets, doubled):
    """Memory that is given back and taken again holds other images."""
    for _ in range(5):
        hr = torch.rand(4, 3, 16, 16)
        targets.remember(hr)
        check(targets, hr)
    assert doubled.images == 20
    targets.forget()
    check(targets, hr)
    assert doubled.images == 24


def test_gradients_are_not_asked_for(targets):
    hr = torch.rand(2, 3, 4, 5, requires_grad=True)
    targets.remember(hr)
    check(targets, hr)
    targets.forget()
    check(targets, hr)
