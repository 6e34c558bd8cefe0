"""The training step straight from the paper, in plain PyTorch: the baseline that andfast's step is measured by.

Nothing here is held back and nothing is clever: modules, autograd through everything, Adam, and loops. What the paper
leaves open (its Sec 4.3 does not work as written) is as in `andfast.PGD`, so that both do the same work: from the same
identity networks and images they find the same theta. With `compiled` it is what a second look makes of it: a half
type by autocast, channels_last, and torch.compile around all that repeats.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.eager import replicated

# Sec 4.3, with the moments that no restoration could undo (colour, shift) forbidden.
MOMENT_FACTORS = [math.inf] * 3 + [1.0] * 6
NOISE_FACTOR, SLOPE_FACTOR = 1.0, 50.0
# The LR-PSNR trust region: how far inside it is near enough, and how often to try.
SLACK_DB, TRIES = 1.0, 10


class Degradation(nn.Module):
    """F (Sec 3.1): blocks of [conv 3x3 -> LeakyReLU -> noise] before and after an anti-aliased pooling, a last conv."""

    def __init__(self, size: tuple[int, int], scale: int = 4, channels: int = 64, blocks: int = 5) -> None:
        super().__init__()
        self.scale, self.blocks = scale, blocks
        widths = [3] + [channels] * (2 * blocks) + [3]
        sizes = [size] * blocks + [(size[0] // scale, size[1] // scale)] * blocks
        self.convs = nn.ParameterList(torch.empty(out, into, 3, 3) for into, out in pairwise(widths))
        self.noise = nn.ParameterList(torch.empty(1, 1, *size) for size in sizes)
        self.slopes = nn.ParameterList(torch.empty(1) for _ in sizes)
        box, binomial = torch.full((1, 1, scale), 1 / scale), torch.tensor([[[1.0, 2.0, 1.0]]]) / 4
        taps = F.conv1d(box, binomial, padding=2).flatten()
        self.register_buffer("taps", torch.outer(taps, taps))
        one = torch.tensor([[1.0, 1.0, 1.0], [-1.0, 0.0, 1.0], [1.0, -2.0, 1.0]])
        one /= one.norm(dim=1, keepdim=True)
        order = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2)]
        basis = torch.stack([torch.outer(one[y], one[x]).flatten() for y, x in order])
        self.register_buffer("inverse_factors", basis.T @ (basis / torch.tensor(MOMENT_FACTORS)[:, None]))
        self.block = block
        self.reset_identity()

    @torch.no_grad()
    def reset_identity(self) -> None:
        """Sec 3.2: Xavier-initialised centre taps, and the pseudoinverse of their product."""
        for noise in self.noise:
            noise.zero_()
        for slope in self.slopes:
            slope.fill_(1)
        product = torch.eye(3, device=self.taps.device)
        for conv in self.convs[:-1]:
            out, into = conv.shape[:2]
            conv.zero_()
            conv[..., 1, 1] = torch.randn(out, into, device=conv.device) * (2 / (into + out)) ** 0.5
            product = conv[..., 1, 1] @ product
        self.convs[-1].zero_()
        self.convs[-1][..., 1, 1] = torch.linalg.pinv(product)

    def pool(self, x: Tensor) -> Tensor:
        kernel = self.taps.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=self.scale, groups=x.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H/scale, W/scale) in [0, 1]."""
        for layer, noise in enumerate(self.noise):
            x = self.block(x, self.convs[layer], self.slopes[layer], noise)
            if layer == self.blocks - 1:
                x = self.pool(x)
        return F.conv2d(replicated(x), self.convs[-1]).float().clamp(0, 1)

    def unscaled(self, values: Sequence[Tensor]) -> list[Tensor]:
        """s^-1 times `values`, one for each parameter; a kernel's factors belong to the moments of its taps."""
        convs, layers = len(self.convs), len(self.noise)
        return [
            *((value.flatten(2) @ self.inverse_factors).view_as(value) for value in values[:convs]),
            *(value / NOISE_FACTOR for value in values[convs : convs + layers]),
            *(value / SLOPE_FACTOR for value in values[convs + layers :]),
        ]


def block(x: Tensor, weight: Tensor, slope: Tensor, noise: Tensor) -> Tensor:
    x = F.conv2d(replicated(x), weight)
    return F.prelu(x, slope.to(x.dtype)) + noise.to(x.dtype)  # F.leaky_relu's slope takes no gradient


def l1(sr: Tensor, hr: Tensor) -> Tensor:
    return (sr.float() - hr).abs().mean(dim=(1, 2, 3))


def norm(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.norm() for value in values]).norm()


class Adversary:
    """Projected gradient ascent on the parameters of one F (Sec 3.3), in the coordinates in which the norm is plain.

    The deviation from the identity is s^-1 times `position`, and ||s * deviation|| is the position's norm. `degrade` is
    F of the images `hr`.
    """

    def __init__(
        self,
        network: Degradation,
        hr: Tensor,
        degrade: Callable[[], Tensor],
        budget_db: float,
    ) -> None:
        self.network, self.degrade, self.budget_db = network, degrade, budget_db
        self.clean = network.pool(hr)
        self.identity = [parameter.detach().clone() for parameter in network.parameters()]
        self.position = [torch.zeros_like(parameter) for parameter in self.identity]
        self.loss, self.lr_psnr = -math.inf, math.inf

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], size: float, epsilon: float) -> None:
        """A step, the projection onto the ball, and the shrinking into the LR-PSNR budget."""
        gradients = self.network.unscaled(gradients)
        length = norm(gradients)
        before = norm(self.network.unscaled(self.position))
        position = [place + size * gradient / length for place, gradient in zip(self.position, gradients, strict=True)]
        factor = (epsilon / norm(position)).clamp(max=1)
        self.position = [factor * place for place in position]
        scale = 1.0
        if before > 0:  # where the budget bound before, it binds again near the same norm
            ratio = float(before / norm(self.network.unscaled(self.position)))
            scale = min(ratio * 10 ** ((self.lr_psnr - self.budget_db - SLACK_DB / 2) / 20), 1.0)
        self.shrink(scale)

    def shrink(self, scale: float) -> None:
        """Look for the largest multiple of the deviation that the budget allows; `scale` is the first to try."""
        deviation = self.network.unscaled(self.position)
        inside, outside, psnr_inside, psnr_outside = 0.0, math.inf, math.inf, -math.inf
        aim = self.budget_db + SLACK_DB / 2
        for attempt in range(TRIES):
            reached = self.psnr(deviation, scale)
            if reached >= self.budget_db:
                inside, psnr_inside = scale, reached
                if scale == 1 or reached <= self.budget_db + SLACK_DB:
                    break
            else:
                outside, psnr_outside = scale, reached
            if inside == 0 or outside == math.inf:
                haste = 2 ** max(attempt - 3, 0) if reached < aim else 1
                scale = min(scale * 10 ** (max(reached - aim, -14) * haste / 20), 1.0)
            else:
                slope = math.log(outside / inside) / (psnr_outside - psnr_inside)
                guess = inside * math.exp((aim - psnr_inside) * slope)
                least, most = 0.02 * outside + 0.98 * inside, 0.98 * outside + 0.02 * inside
                scale = max(min(guess, most), least)
        self.move(deviation, inside)
        self.position = [inside * place for place in self.position]
        self.lr_psnr = psnr_inside

    def psnr(self, deviation: Sequence[Tensor], scale: float) -> float:
        """PSNR in dB of the LR images at a multiple of a deviation, against the clean ones."""
        self.move(deviation, scale)
        error = (self.degrade().double() - self.clean.double()).square().mean().item()
        if math.isnan(error):
            return 0.0
        return -10 * math.log10(error) if error > 0 else math.inf

    def move(self, deviation: Sequence[Tensor], scale: float) -> None:
        for parameter, start, change in zip(self.network.parameters(), self.identity, deviation, strict=True):
            parameter.copy_(start + scale * change)

    def keep_worst(self, loss: float, lr: Tensor) -> None:
        if loss > self.loss:
            self.loss, self.lr, self.worst = loss, lr, self.position

    def deviation(self) -> list[Tensor]:
        """The worst one, of each parameter."""
        return self.network.unscaled(self.worst)


class Step:
    """Training steps of ANDNet (Fig. 2, objective L1).

    Args:
        generator: G; it is trained.
        networks: N of F, each for an equal part of a batch.
        budget_db: the least PSNR of the LR images against the clean ones.
        steps, step_size, epsilon: of the projected gradient ascent; 0 steps: a plain step on bicubic LR images.
        compiled: compile what repeats: F's and G's blocks.
        dtype: compute in it by autocast.
        channels_last: the memory format.
    """

    def __init__(
        self,
        generator: nn.Module,
        networks: list[Degradation],
        budget_db: float,
        steps: int = 5,
        step_size: float = 0.1,
        epsilon: float = 0.5,
        learning_rate: float = 1e-4,
        ema_decay: float = 0.999,
        compiled: bool = False,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.generator = generator.to(memory_format=self.memory_format)
        self.networks = [network.to(memory_format=self.memory_format) for network in networks]
        self.ema = copy.deepcopy(generator).requires_grad_(False)
        self.optimizer = torch.optim.Adam(generator.parameters(), lr=learning_rate, betas=(0.9, 0.99))
        self.budget_db, self.steps, self.step_size, self.epsilon = budget_db, steps, step_size, epsilon
        self.ema_decay, self.dtype = ema_decay, dtype
        if compiled:
            for module in repeated(generator):
                module.compile(dynamic=False)
            compiled_block = torch.compile(block, dynamic=False)
            for network in self.networks:
                network.block = compiled_block

    def __call__(self, patches: Tensor) -> float:
        """A step on uint8 patches (B, 3, H, W); returns the loss."""
        for network in self.networks:
            network.reset_identity()
        return self.from_here(patches)

    def from_here(self, patches: Tensor) -> float:
        """A step that begins at the networks as they are."""
        hr = patches.float().div(255).contiguous(memory_format=self.memory_format)
        if self.steps:
            lr = torch.cat([adversary.lr for adversary in self.attack(hr)])
        else:
            size = (hr.shape[2] // 4, hr.shape[3] // 4)
            lr = F.interpolate(hr, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.update(lr, hr)

    def attack(self, hr: Tensor) -> list[Adversary]:
        """The result for each network: `lr`, the worst LR images of all iterates, and their `loss`."""
        parts = hr.chunk(len(self.networks))
        degrade = [partial(self.degrade, *pair) for pair in zip(self.networks, parts, strict=True)]
        adversaries = [Adversary(*given, self.budget_db) for given in zip(self.networks, parts, degrade, strict=True)]
        parameters = [list(network.parameters()) for network in self.networks]
        self.generator.requires_grad_(False)
        for step in range(self.steps + 1):
            last = step == self.steps
            with torch.set_grad_enabled(not last):
                lr = torch.cat([one() for one in degrade])
                losses = l1(self.restore(lr), hr).unflatten(0, (len(parts), -1)).mean(dim=1)
            for adversary, loss, part in zip(adversaries, losses.tolist(), lr.detach().chunk(len(parts)), strict=True):
                adversary.keep_worst(loss, part)
            if last:
                break
            gradients = iter(torch.autograd.grad(losses.sum(), list(chain(*parameters))))
            for adversary, own in zip(adversaries, parameters, strict=True):
                adversary.step([next(gradients) for _ in own], self.step_size, self.epsilon)
        self.generator.requires_grad_(True)
        return adversaries

    def update(self, lr: Tensor, hr: Tensor) -> float:
        loss = l1(self.restore(lr), hr).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
                mean.mul_(self.ema_decay).add_(parameter, alpha=1 - self.ema_decay)
        return loss.item()

    def degrade(self, network: Degradation, hr: Tensor) -> Tensor:
        with self.autocast():
            return network(hr)

    def restore(self, lr: Tensor) -> Tensor:
        with self.autocast():
            return self.generator(lr)

    def autocast(self) -> torch.autocast:
        # Its cache would hide from a pass that the weights have moved since the last one.
        device, enabled = self.networks[0].taps.device.type, self.dtype != torch.float32
        return torch.autocast(device, self.dtype, enabled=enabled, cache_enabled=False)


class DenseBlock(nn.Module):
    def __init__(self, features: int = 64, growth: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, growth, 3, 1, 1)
        self.conv2 = nn.Conv2d(features + growth, growth, 3, 1, 1)
        self.conv3 = nn.Conv2d(features + 2 * growth, growth, 3, 1, 1)
        self.conv4 = nn.Conv2d(features + 3 * growth, growth, 3, 1, 1)
        self.conv5 = nn.Conv2d(features + 4 * growth, features, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.lrelu(self.conv1(x))
        x2 = self.lrelu(self.conv2(torch.cat((x, x1), 1)))
        x3 = self.lrelu(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = self.lrelu(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        x5 = self.conv5(torch.cat((x, x1, x2, x3, x4), 1))
        return x5 * 0.2 + x


class RRDB(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(features) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.rdb3(self.rdb2(self.rdb1(x))) * 0.2 + x


class RRDBNet(nn.Module):
    """ESRGAN's generator, x4, with the names that its weights have everywhere."""

    def __init__(self, features: int = 64, blocks: int = 23) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, features, 3, 1, 1)
        self.body = nn.Sequential(*(RRDB(features) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(features, features, 3, 1, 1)
        self.conv_up1 = nn.Conv2d(features, features, 3, 1, 1)
        self.conv_up2 = nn.Conv2d(features, features, 3, 1, 1)
        self.conv_hr = nn.Conv2d(features, features, 3, 1, 1)
        self.conv_last = nn.Conv2d(features, 3, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        feat = self.conv_first(x)
        feat = feat + self.conv_body(self.body(feat))
        feat = self.lrelu(self.conv_up1(F.interpolate(feat, scale_factor=2, mode="nearest")))
        feat = self.lrelu(self.conv_up2(F.interpolate(feat, scale_factor=2, mode="nearest")))
        return self.conv_last(self.lrelu(self.conv_hr(feat)))


class Compact(nn.Module):
    """Real-ESRGAN's small generator, x4, likewise."""

    def __init__(self, features: int = 64, convs: int = 16) -> None:
        super().__init__()
        self.body = nn.ModuleList()
        for channels in [3] + [features] * convs:
            self.body += [nn.Conv2d(channels, features, 3, 1, 1), nn.PReLU(features)]
        self.body.append(nn.Conv2d(features, 3 * 16, 3, 1, 1))
        self.upsampler = nn.PixelShuffle(4)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for layer in self.body:
            out = layer(out)
        return self.upsampler(out) + F.interpolate(x, scale_factor=4, mode="nearest")


def repeated(generator: nn.Module) -> Iterator[nn.Module]:
    """What to compile of G: the blocks that repeat, which are compiled once for all, or the whole where none do."""
    blocks = [module for module in generator.modules() if isinstance(module, DenseBlock)]
    yield from blocks or [generator]
