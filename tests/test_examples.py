"""The examples, with nothing of the programs that they are for."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import andfast
from andfast.models import Compact
from andfast.ops.blur_pool import blur_pool

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class SRModel:
    """What BasicSR's model of this name has in common with neosr's, as far as its subclass touches it."""

    def __init__(self, net_g):
        self.net_g, self.device = net_g, torch.device("cpu")
        self.optimizer_g = torch.optim.Adam(net_g.parameters(), 1e-3)

    def feed_data(self, data):
        self.lq = data["lq"].to(self.device)
        if "gt" in data:
            self.gt = data["gt"].to(self.device)

    def optimize_parameters(self):
        self.optimizer_g.zero_grad()
        loss = nn.functional.l1_loss(self.net_g(self.lq), self.gt)
        loss.backward()
        self.optimizer_g.step()
        return loss.item()


def model_class():
    degradation = load("basicsr_degradation").AdversarialDegradation

    class ANDModel(SRModel):
        def __init__(self, net_g):
            super().__init__(net_g)
            self.degrade = degradation(net_g, scale=4)

        @torch.no_grad()
        def feed_data(self, data):
            if "lq" in data:
                return super().feed_data(data)
            self.gt = data["gt"].to(self.device)
            self.lq = self.degrade(self.gt)

    return ANDModel


@pytest.fixture
def model():
    torch.manual_seed(0)
    return model_class()(Compact(4, features=8, convs=2).train())


@pytest.fixture
def gt():
    torch.manual_seed(1)
    coarse = nn.functional.interpolate(torch.rand(3, 3, 6, 8), scale_factor=4, mode="bicubic").clamp(0, 1)
    return (coarse + 0.1 * torch.rand_like(coarse)).clamp(0, 1)


def test_a_gt_batch_becomes_an_lq_batch(model, gt):
    before = {key: value.clone() for key, value in model.net_g.state_dict().items()}
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
    assert model.net_g.training
    assert all(weight.requires_grad and weight.grad is None for weight in model.net_g.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.net_g.state_dict().items())


def test_it_is_an_adversary_of_the_generator_as_it_is_now(model, gt):
    """Against the clean image the loss rises; and what is found follows the weights."""
    model.degrade.attack = andfast.PGD(steps=3, lr_psnr=(30, 30))

    def found():
        torch.manual_seed(2)
        model.feed_data({"gt": gt})
        return model.lq

    first = found()
    with torch.no_grad():
        worse, clean = ((model.net_g(lr) - gt).abs().mean() for lr in (first, blur_pool(gt, 4)))
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
