"""HR patches made softer, against SciPy."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from tiny_trainer import make, patches

from andfast.training.config import parse_config
from andfast.training.softening import soften, soften_patches


def test_each_image_is_blurred_by_a_gaussian_of_its_own_width() -> None:
    images = torch.rand(4, 3, 40, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.0, 0.4, 1.3, 2.5], dtype=torch.float64)
    found = soften(images, sigma, 2.5)
    for image, width, blurred in zip(images.numpy(), sigma.tolist(), found.numpy(), strict=True):
        axes = [width and scipy.ndimage.gaussian_filter(channel, width, mode="mirror", radius=10) for channel in image]
        wanted = np.stack(axes) if width else image
        np.testing.assert_allclose(blurred, wanted, atol=1e-12)


def test_kernels_end_where_small_images_do() -> None:
    found = soften(torch.full((2, 3, 4, 5), 0.3), torch.tensor([1.0, 3.0]), 3.0)
    torch.testing.assert_close(found, torch.full((2, 3, 4, 5), 0.3))


def test_widths_hang_on_seed_and_step_alone_and_fill_their_range() -> None:
    # Of an impulse's blur the middle is 1 / (2 pi sigma^2), nearly.
    impulse = torch.zeros(64, 1, 33, 33)
    impulse[:, :, 16, 16] = 1
    first = soften_patches(impulse, (1.0, 2.0), seed=3, step=5)
    assert torch.equal(first, soften_patches(impulse, (1.0, 2.0), seed=3, step=5))
    assert not torch.equal(first, soften_patches(impulse, (1.0, 2.0), seed=3, step=6))
    sigma = (2 * torch.pi * first[:, 0, 16, 16]).rsqrt()
    assert 0.98 < sigma.min() < 1.1
    assert 1.9 < sigma.max() < 2.02


def test_a_step_trains_on_softened_images() -> None:
    """A generator that has learnt nothing yet does better on what has less detail."""
    crisp = make(attack__method="none").train_step(patches()).read().loss
    soft = make(attack__method="none", data__soften="[3, 3]").train_step(patches()).read().loss
    assert soft < crisp / 1.5


@pytest.mark.parametrize("value", ["[2, 1]", "[-1, 1]", "[0, 0]", "1"])
def test_a_range_that_is_none_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--data.soften", value])
    assert "soften" in capsys.readouterr().err
