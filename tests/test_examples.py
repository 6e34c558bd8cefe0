"""The examples, with nothing of the programs that they are for."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import andfast
from andfast.models import Compact
from andfast.ops.blur_pool import blur_pool

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
INTEROP = (ROOT / "docs" / "interop.md").read_text()


class SRModel:
    """What BasicSR's class of this name does, as far as its subclass touches it."""

    def __init__(self, opt, net_g):
        self.opt, self.device = opt, torch.device("cpu")
        self.net_g = nn.Module()
        self.net_g.module = net_g  # as DataParallel keeps it
        self.init_training_settings()

    def init_training_settings(self):
        self.get_bare_model(self.net_g).train()
        self.optimizer_g = torch.optim.Adam(self.net_g.parameters(), 1e-3)

    def get_bare_model(self, net):
        return net.module

    def feed_data(self, data):
        self.lq = data["lq"].to(self.device)
        if "gt" in data:
            self.gt = data["gt"].to(self.device)

    def optimize_parameters(self):
        self.optimizer_g.zero_grad()
        loss = nn.functional.l1_loss(self.net_g.module(self.lq), self.gt)
        loss.backward()
        self.optimizer_g.step()
        return loss.item()


@pytest.fixture
def model(monkeypatch):
    """Of the class that stands in docs/interop.md, to the letter."""
    (code,) = [part for part in re.findall(r"```python\n(.*?)```", INTEROP, re.DOTALL) if "basicsr" in part]
    registered = []
    registry = types.SimpleNamespace(register=lambda: lambda kind: registered.append(kind) or kind)
    modules = {"basicsr": {}, "basicsr.models": {}, "basicsr.utils": {}}
    modules |= {"basicsr.models.sr_model": {"SRModel": SRModel}, "basicsr.utils.registry": {"MODEL_REGISTRY": registry}}
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(EXAMPLES)
    exec(code, {})
    torch.manual_seed(0)
    (kind,) = registered
    return kind({"scale": 4}, Compact(4, features=8, convs=2))


@pytest.fixture
def gt():
    torch.manual_seed(1)
    coarse = nn.functional.interpolate(torch.rand(3, 3, 6, 8), scale_factor=4, mode="bicubic").clamp(0, 1)
    return (coarse + 0.1 * torch.rand_like(coarse)).clamp(0, 1)


def test_a_gt_batch_becomes_an_lq_batch(model, gt):
    before = {key: value.clone() for key, value in model.net_g.module.state_dict().items()}
    model.feed_data({"gt": gt})
    assert model.gt is gt
    assert model.lq.shape == (3, 3, 6, 8)
    assert not model.lq.requires_grad
    assert 0 <= model.lq.min() < model.lq.max() <= 1
    # Every image within the budget, and none of them clean.
    error = (model.lq - blur_pool(gt, 4)).square().mean(dim=(1, 2, 3))
    distance = -10 * error.log10()
    assert (distance >= 28).all()
    assert (distance < 46).all()
    # Looked through, and left alone.
    assert model.net_g.module.training
    assert all(weight.requires_grad and weight.grad is None for weight in model.net_g.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.net_g.module.state_dict().items())


def test_it_is_an_adversary_of_the_generator_as_it_is_now(model, gt):
    """Against the clean image the loss rises; and what is found follows the weights."""
    model.degrade.attack = andfast.PGD(steps=3, psnr_range=(30, 30))

    def found():
        torch.manual_seed(2)
        model.feed_data({"gt": gt})
        return model.lq

    first = found()
    with torch.no_grad():
        worse, clean = ((model.net_g.module(lr) - gt).abs().mean() for lr in (first, blur_pool(gt, 4)))
    assert worse > clean
    assert torch.equal(found(), first)
    with torch.no_grad():
        for weight in model.net_g.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    assert not torch.equal(found(), first)


def test_the_loop_trains_on_it(model, gt):
    torch.manual_seed(3)
    losses = []
    for _ in range(16):
        model.feed_data({"gt": gt})
        losses.append(model.optimize_parameters())
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_pairs_to_validate_on_pass_through(model, gt):
    lq = torch.rand(1, 3, 6, 8)
    model.feed_data({"lq": lq, "gt": gt[:1]})
    assert model.lq is lq


def test_batches_of_any_size(model, gt):
    for batch in (gt[:1], gt[..., :16]):
        model.feed_data({"gt": batch})
        assert model.lq.shape == (len(batch), 3, batch.shape[2] // 4, batch.shape[3] // 4)
    with pytest.raises(ValueError, match="multiples of the scale"):
        model.feed_data({"gt": gt[..., :17]})


def test_it_works_where_gradients_are_off(model, gt):
    """As BasicSR's own feed_data of this kind is decorated."""
    with torch.no_grad():
        model.feed_data({"gt": gt})
    assert model.lq.shape == (3, 3, 6, 8)
