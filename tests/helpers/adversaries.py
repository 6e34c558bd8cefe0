"""Inputs of attack tests: photographs, small networks, a stand-in for G; and measures of the results in NumPy."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from andfast.attack import AttackResult
from andfast.data.photographs import held_out_photographs
from andfast.degradation.network import DegradationNetwork
from andfast.losses import Objective
from andfast.ops.theta_layout import ScaleFactors

SIZE = (24, 32)
IMAGES = 4


class Upsampler(nn.Module):
    """A stand-in for a trained generator: bicubic interpolation and a mild sharpening, weights fixed."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.conv = nn.Conv2d(3, 3, 3, padding=1, padding_mode="replicate")
        with torch.no_grad():
            self.conv.weight.zero_()
            for channel in range(3):
                self.conv.weight[channel, channel] = torch.tensor([[0, -0.1, 0], [-0.1, 1.4, -0.1], [0, -0.1, 0]])
            self.conv.bias.zero_()

    def forward(self, lr: Tensor) -> Tensor:
        return self.conv(F.interpolate(lr, scale_factor=self.scale, mode="bicubic"))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photographs(count: int = IMAGES) -> Tensor:
    """(count, 3, *SIZE) crops of a real photograph, float32 in [0, 1]."""
    image = torch.from_numpy(dict(held_out_photographs())["astronaut"]).permute(2, 0, 1) / 255
    corners = [(40, 180), (90, 200), (10, 380), (330, 220)]
    return torch.stack([image[:, y : y + SIZE[0], x : x + SIZE[1]] for y, x in corners[:count]])


def make(num_networks: int = 1, seed: int = 0, **settings) -> DegradationNetwork:
    """A small network; wider in half types, whose rounding narrow ones amplify beyond the budgets below."""
    channels = 8 if settings.get("dtype", torch.float32) == torch.float32 else 32
    network = DegradationNetwork(
        num_networks=num_networks, **{"scale": 2, "channels": channels, "blocks": 2, **settings}
    )
    network.reset_identity(SIZE, seeded(seed))
    return network


def squared_error(generator: nn.Module) -> Objective:
    """Smooth, so that gradients in float32 and float64 can be compared."""
    return lambda lr, hr: (generator(lr) - hr).square().mean(dim=(1, 2, 3))


def l1_in_numpy(generator: nn.Module, lr: Tensor, hr: Tensor) -> np.ndarray:
    with torch.no_grad():
        restored = generator(lr).double().numpy()
    return np.abs(restored - hr.double().numpy()).mean(axis=(1, 2, 3))


def psnr_in_numpy(lr: Tensor, clean: Tensor, groups: int) -> np.ndarray:
    difference = (lr.double() - clean.double()).numpy().reshape(groups, -1)
    with np.errstate(divide="ignore"):
        return -10 * np.log10((difference**2).mean(axis=1))


def scale_in_numpy(network: DegradationNetwork, factors: ScaleFactors) -> np.ndarray:
    """Sec 4.3's factors, column by column."""
    layout = network.layout
    kernel = [factors.conv_dc] + 2 * [factors.conv_shift] + 6 * [factors.conv]
    kernels = layout.noise[0].start // 9
    injections = layout.slope[0].start - layout.noise[0].start
    return np.array(kernels * kernel + injections * [factors.noise] + 2 * network.blocks * [factors.slope])


def scaled_norms(delta: Tensor, scale: np.ndarray) -> np.ndarray:
    free = np.isfinite(scale)
    return np.linalg.norm(delta.double().numpy()[:, free] * scale[free], axis=1)


def check_equal(one: AttackResult, other: AttackResult) -> None:
    """Bit for bit."""
    for name, value in vars(one).items():
        if value is None:
            assert getattr(other, name) is None, name
        else:
            assert torch.equal(value, getattr(other, name)), name


def check_consistent(result: AttackResult, network: DegradationNetwork, hr: Tensor, generator: nn.Module) -> None:
    """The fields of a result agree with its images and deviation."""
    count = network.num_networks
    assert torch.equal(network(hr, result.delta), result.lr)
    np.testing.assert_allclose(
        result.loss_after.numpy(), l1_in_numpy(generator, result.lr, hr).reshape(count, -1).mean(axis=1), rtol=1e-5
    )
    np.testing.assert_allclose(result.lr_psnr.numpy(), psnr_in_numpy(result.lr, network.clean(hr), count), rtol=1e-5)
    stop = network.layout.noise[0].start
    assert torch.equal(result.theta[:, stop:], network.theta_id[:, stop:] + result.delta[:, stop:])
    torch.testing.assert_close(
        network.layout.to_moments(result.theta - network.theta_id), result.delta, rtol=0, atol=1e-6
    )
    for tensor in vars(result).values():
        assert not tensor.requires_grad
        assert tensor.isfinite().all() or tensor is result.budget_db
