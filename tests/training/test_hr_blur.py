"""HR patches made softer."""

import pytest
import torch
from tiny_trainer import make, patches

from andfast.training.batches import blur_hr
from andfast.training.config import Config, DataConfig
from andfast.training.distributed import World
from andfast.training.options import parse_config


def test_widths_hang_on_seed_and_step_alone_and_fill_their_range() -> None:
    # Of an impulse's blur the middle is 1 / (2 pi sigma^2), nearly.
    impulse = torch.zeros(64, 1, 33, 33)
    impulse[:, :, 16, 16] = 1
    config = Config(seed=3, data=DataConfig(soften=(1.0, 2.0)))
    first = blur_hr(impulse, config, 5, World())
    assert torch.equal(first, blur_hr(impulse, config, 5, World()))
    assert not torch.equal(first, blur_hr(impulse, config, 6, World()))
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
