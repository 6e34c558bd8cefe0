"""How much memory a run needs, before it begins; and what to change where there is not enough."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from andfast.attack import FreeAT, RandomDeviation, Simulated
from andfast.attack.base import NetworkAttack
from andfast.degradation.network import DegradationNetwork
from andfast.losses import GeneratorLoss, Objective, discriminator_loss, generator_objective, l1_loss, no_objective
from andfast.models.frozen import AutocastModule
from andfast.ops import dispatch
from andfast.ops.theta_layout import ThetaLayout
from andfast.training.config import Config, DegradationConfig
from andfast.training.samples import CROP, ROWS
from andfast.training.trainer import Trainer
from andfast.utils.memory import LiveBytes, free_memory


def estimate_memory(trainer: Trainer) -> int:
    """About how many bytes training takes at most, on the device, weights and all.

    The passes of a step are run on tensors that have shapes and no content (PyTorch's own, as its compiler uses them),
    and what lives at once is added up. Not seen is what libraries take for themselves, such as the device's context and
    scratch memory. A compiled generator mostly takes less.
    """
    train, scale = trainer.config.train, trainer.config.scale
    weights = sum(weight.nbytes for weight in trainer.generator.parameters())
    # G, its average, what it was before, and Adam's two moments; of D there is one.
    held = 5 * weights + trainer.frozen.copied_bytes + _held_for_loss(trainer)
    images = train.micro_batch or train.batch_size
    searched = train.batch_size - trainer.config.attack.mix.images(train.batch_size)
    at_once = min(images, searched)
    networks = max(trainer.config.networks * at_once // searched, 1)
    attack, row = _attack_peak(trainer, at_once, networks, train.patch_size)
    # Of the networks that wait theta_id, the deviation, the worst one so far and the gradient.
    attack += 4 * (trainer.config.networks - networks) * row
    # Of the images that wait: the patches as bytes and as float32, a few LR images, and restored ones for D.
    restored = 0 if trainer.discriminator is None else 4
    waiting = (train.batch_size - images) * 3 * train.patch_size**2 * (5 + 16 / scale**2 + restored)
    in_sheet = min(images, ROWS)
    sheet, _ = _attack_peak(trainer, in_sheet, in_sheet, CROP - CROP % scale, of_sheet=True)
    # Gradients are kept from one update to the next.
    of_d = _discriminator_bytes(trainer)
    step = max(
        attack + weights + of_d, _update_peak(trainer, images) + of_d, _discriminator_peak(trainer, images) + weights
    )
    return int(held + max(step + waiting, sheet + weights + of_d))


def _held_for_loss(trainer: Trainer) -> int:
    """What the loss looks through: VGG19's weights, D's with Adam's moments, and the view of D: bytes."""
    features = 0 if trainer.features is None else sum(weight.nbytes for weight in trainer.features.parameters())
    view = 0 if trainer.discriminator is None else trainer.discriminator.frozen.copied_bytes
    return features + 3 * _discriminator_bytes(trainer) + view


def _discriminator_bytes(trainer: Trainer) -> int:
    """D's weights, and as much again for each copy of them."""
    found = trainer.discriminator
    return 0 if found is None else sum(weight.nbytes for weight in found.module.parameters())


def _attack_peak(trainer: Trainer, images: int, networks: int, size: int, of_sheet: bool = False) -> tuple[int, int]:
    """The adversary's step on so many images of size x size, and a network's row of theta: bytes."""
    config = trainer.config
    climbs = not isinstance(trainer.attack, (RandomDeviation, Simulated))
    with FakeTensorMode(), LiveBytes() as memory, torch.set_grad_enabled(climbs):
        # A replay is an update, too; its weights' gradients are counted elsewhere.
        view = (
            AutocastModule(trainer.generator, trainer.precision)
            if isinstance(trainer.attack, FreeAT)
            else trainer.frozen
        )
        loss = l1_loss if of_sheet else _fake_loss(trainer, memory)
        objective = trainer.micro_batched(
            generator_objective(AutocastModule(_fake(view.module, memory), view.dtype), loss)
        )
        hr = _batch(images, size, trainer.device)
        row = 0
        with nullcontext() if of_sheet else trainer.cached_targets(loss, hr):
            if isinstance(trainer.attack, NetworkAttack):
                row = _search(trainer.make_bank(networks), hr, objective, climbs)
            else:
                image = hr.new_empty(images, 3, size // config.scale, size // config.scale).requires_grad_()
                losses = objective(image, hr)
                if climbs:
                    torch.autograd.grad(losses.sum(), image)
        return memory.peak, row


def search_bytes(
    settings: DegradationConfig, scale: int, view: AutocastModule | None, size: tuple[int, int], device: torch.device
) -> int:
    """About how many bytes a search takes at most for an image that has a network of its own, beside the weights.

    Args:
        settings, scale, device: of the network.
        view: the generator as the adversary looks through it; None: there is no adversary, and no gradient.
        size: (H, W) of the HR image.
    """
    with FakeTensorMode(), LiveBytes() as memory, torch.set_grad_enabled(view is not None):
        objective = no_objective
        if view is not None:
            objective = generator_objective(AutocastModule(_fake(view.module, memory), view.dtype), l1_loss)
        hr = torch.empty(1, 3, *size, device=device)
        network = settings.build(scale, 1, device)
        _search(network, hr, objective, climbs=view is not None)
        if device.type != "cpu" or network.dtype == torch.float32:
            return memory.peak
        # Without AMX, oneDNN lays out the input of a 3x3 convolution in half types nine times.
        return memory.peak + 9 * network.channels * math.prod(size) * network.dtype.itemsize


def check_search(
    settings: DegradationConfig, scale: int, view: AutocastModule | None, size: tuple[int, int], device: torch.device
) -> None:
    """Refuse a search, described as for `search_bytes`, for which there is not enough memory on its device.

    Raises:
        MemoryError: it says how much is needed.
    """
    needed, free = search_bytes(settings, scale, view, size, device), free_memory(device)
    if free is not None and needed > free:
        raise MemoryError(describe_memory(needed, free))


def _search(network: DegradationNetwork, hr: Tensor, objective: Objective, climbs: bool) -> int:
    """The passes of a step through F and G, to be counted; returns the bytes of a network's row of theta."""
    layout = ThetaLayout(tuple(hr.shape[2:]), network.scale, network.channels, network.blocks, network.noise)
    network.layout = layout
    bank = torch.empty(network.num_networks, layout.size, device=hr.device)
    network.theta_id = bank
    delta = torch.empty_like(bank).requires_grad_()
    lr = network(hr, delta)
    image = lr.detach().requires_grad_()
    loss = objective(image, hr)
    if climbs:
        (costate,) = torch.autograd.grad(loss.sum(), image)
    del loss
    kept = (torch.empty_like(bank), _scratch(network, hr))  # among them the worst deviation so far
    if climbs:
        torch.autograd.grad(lr, delta, costate)
    del kept
    return bank[0].nbytes


def _scratch(network: DegradationNetwork, hr: Tensor) -> Tensor | None:
    """As much as F's backward pass takes while it runs, which as one operation does not show it.

    That is the gradients of a layer's output and input, of the networks that it does at once.
    """
    implementation = dispatch.resolve("degradation_forward", hr.device, network.dtype)
    if implementation == "reference":
        return None
    pieces = network.num_networks if dispatch.load(implementation).loops_over_bank else 1
    return hr.new_empty(2, len(hr) // pieces, network.channels, *hr.shape[2:], dtype=network.dtype)


def _update_peak(trainer: Trainer, images: int) -> int:
    """G's update on so many images, its gradients included."""
    size = trainer.config.train.patch_size
    with FakeTensorMode(), LiveBytes() as memory:
        loss = _fake_loss(trainer, memory)
        objective = generator_objective(AutocastModule(_fake(trainer.generator, memory), trainer.precision), loss)
        hr = _batch(images, size, trainer.device)
        lr = hr.new_empty(images, 3, size // trainer.config.scale, size // trainer.config.scale)
        with trainer.cached_targets(loss, hr):
            objective(lr, hr).sum().backward()
        return memory.peak


def _discriminator_peak(trainer: Trainer, images: int) -> int:
    """D's update on so many images, its gradients included."""
    found = trainer.discriminator
    if found is None:
        return 0
    with FakeTensorMode(), LiveBytes() as memory:
        view = AutocastModule(_fake(found.module, memory), found.frozen.dtype)
        hr = _batch(images, trainer.config.train.patch_size, trainer.device)
        discriminator_loss(view, torch.empty_like(hr), hr, trainer.config.loss.gan_kind()).sum().backward()
        return memory.peak


def _fake_loss(trainer: Trainer, memory: LiveBytes) -> GeneratorLoss:
    features, found = trainer.features, trainer.discriminator
    view = None if found is None else AutocastModule(_fake(found.frozen.module, memory), found.frozen.dtype)
    return trainer.config.loss.build(None if features is None else _fake(features, memory), view)


def _batch(images: int, size: int, device: torch.device) -> Tensor:
    return torch.empty(images, 3, size, size, dtype=torch.uint8, device=device).float() / 255


def _fake(module: nn.Module, memory: LiveBytes) -> nn.Module:
    """The same module with weights that have no content, which are counted elsewhere."""

    def empty(tensor: Tensor) -> Tensor:
        options = {"dtype": tensor.dtype, "device": tensor.device}
        return memory.know(torch.empty_strided(tensor.shape, tensor.stride(), **options))

    memo: dict[int, Tensor] = {id(buffer): empty(buffer) for buffer in module.buffers()}
    for weight in module.parameters():
        memo[id(weight)] = nn.Parameter(empty(weight), requires_grad=weight.requires_grad)
    return copy.deepcopy(module, memo)


def describe_memory(needed: int, free: int | None) -> str:
    """Both in GiB, for people."""
    words = f"needs about {needed / 2**30:.1f} GiB"
    return words if free is None else f"{words} of {free / 2**30:.1f} GiB free"


def remedies(config: Config, size: int = 1) -> str:
    """Which settings to change to need less memory, and what they are now, in a run of so many processes."""
    train = config.train
    now = f"none, {train.batch_size // size} images at once" if train.micro_batch is None else train.micro_batch
    coupled = config.loss.coupled(config.discriminator)
    options = [] if train.micro_batch == 1 or coupled else [f"a smaller train.micro_batch (now {now})"]
    if config.generator.name == "rrdbnet" and not train.checkpoint_blocks:
        options.append("train.checkpoint_blocks true (now false)")
    anew = (
        f"a smaller train.patch_size (now {train.patch_size}), train.batch_size (now {train.batch_size}) or "
        f"degradation.num_networks (now {config.degradation.num_networks})"
    )
    return f"{' or '.join(options)}; or, in a new run, {anew}" if options else f"in a new run, {anew}"
