"""How much memory a run needs, before it begins; and which settings to change where there is not enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from andfast.attack import FreeAT, RandomDeviation, Simulated
from andfast.attack.base import NetworkAttack
from andfast.degradation.network import DegradationNetwork
from andfast.losses import Objective, discriminator_loss, generator_objective, l1_objective, relative_objective
from andfast.models.frozen import AutocastModule, FrozenModule, on_a_copy
from andfast.ops import dispatch
from andfast.ops.degradation_forward import forward_implementation
from andfast.ops.theta_layout import ThetaLayout
from andfast.training.config import Config, DegradationConfig
from andfast.training.optimizer import STATES
from andfast.training.samples import CROP, ROWS
from andfast.training.trainer import Trainer
from andfast.utils.memory import LiveBytes, free_memory


def estimate_memory(trainer: Trainer) -> int:
    """About how many bytes training takes at most on the device, without what libraries take for themselves.

    One real step would be no simpler a measure: it would have to be as large as the run's, on copies of all networks,
    and what fused operations allocate inside is not seen there either.
    """
    config, train, device = trainer.config, trainer.config.train, trainer.device
    discriminator, scale, size = trainer.discriminator, config.scale, train.patch_size
    of_g, of_d = _bytes(trainer.generator), _bytes(discriminator and discriminator.module)
    # G, its average, its copy for sample sheets, and what the optimizer keeps, Adam two moments; likewise for D.
    states = STATES[train.optimizer]
    weights = (3 + states) * of_g + trainer.frozen.copied_bytes + (1 + states) * of_d + _bytes(trainer.features)
    weights += 0 if discriminator is None else discriminator.frozen.copied_bytes
    if isinstance(trainer.baseline, FrozenModule):  # in float32, and its copy in a half type
        of_baseline = sum(weight.numel() for weight in trainer.baseline.module.parameters())
        weights += of_baseline * torch.float32.itemsize + trainer.baseline.copied_bytes

    # The attack and the updates on as many images as are computed at once, and the attack of a sample sheet.
    images = train.micro_batch or train.batch_size
    attacked = train.batch_size - config.attack.mix.images(train.batch_size)
    at_once = min(images, attacked)
    networks = max(config.networks * at_once // attacked, 1)
    in_sheet, crop = min(images, ROWS), CROP - CROP % scale
    has_network = isinstance(trainer.attack, NetworkAttack)
    bank, sheet_bank = (trainer.make_bank(count) if has_network else None for count in (networks, in_sheet))
    # A replay of `FreeAT` is an update as well.
    generator = trainer.autocast if isinstance(trainer.attack, FreeAT) else trainer.frozen
    pixel = trainer.loss.pixel
    objective = relative_objective(generator_objective(generator, trainer.loss), trainer.baseline, pixel)
    sheet_objective = relative_objective(generator_objective(trainer.frozen, pixel), trainer.baseline, pixel)
    if isinstance(trainer.attack, (RandomDeviation, Simulated)):
        sheet_objective = None
        objective = None if trainer.noise_attack is None else objective
    caching = trainer.caching_hr
    with torch.compiler.set_stance("force_eager"), on_a_copy(trainer.frozen), on_a_copy(trainer.autocast):
        attack = _peak_bytes((at_once, 3, size, size), scale, device, bank, objective, caching=caching)
        sheet = 0
        if in_sheet * crop**2 > at_once * size**2:
            sheet = _peak_bytes((in_sheet, 3, crop, crop), scale, device, sheet_bank, sheet_objective)
        objective = generator_objective(trainer.autocast, trainer.loss)
        of_weights = [weight for weight in trainer.autocast.module.parameters() if weight.requires_grad]
        update = _peak_bytes((images, 3, size, size), scale, device, None, objective, of_weights, caching)
        update_of_d = _discriminator_peak_bytes(trainer, images)
    if bank is not None:  # theta_id, the deviation, the worst one so far and the gradient of the other networks
        attack += 4 * (config.networks - networks) * bank.layout.size * torch.float32.itemsize
    # Of the other images: the patches as bytes and as float32, a few LR images, and restored ones for D.
    others = (train.batch_size - images) * 3 * size**2 * (5 + 16 / scale**2 + (4 if discriminator else 0))
    # Gradients of weights are kept from one update to the next.
    step = others + max(attack + of_g + of_d, update + of_d, update_of_d + of_g)
    return int(weights + max(step, sheet + of_g + of_d))


def search_bytes(
    settings: DegradationConfig, scale: int, model: AutocastModule | None, size: tuple[int, int], device: torch.device
) -> int:
    """About how many bytes the attack on one image with its own network takes at most, beside the weights.

    Args:
        settings, scale, device: of the network.
        model: the generator that the adversary attacks; None: there is no adversary, and no gradient.
        size: (H, W) of the HR image.
    """
    network = settings.build(scale, 1, device)
    with nullcontext() if model is None else on_a_copy(model):
        peak = _peak_bytes((1, 3, *size), scale, device, network, model and l1_objective(model))
    if device.type != "cpu" or network.dtype == torch.float32:
        return peak
    # Without AMX, oneDNN lays out the input of a 3x3 convolution in half types nine times.
    return peak + 9 * network.channels * math.prod(size) * network.dtype.itemsize


def check_search(
    settings: DegradationConfig, scale: int, model: AutocastModule | None, size: tuple[int, int], device: torch.device
) -> None:
    """Raise a MemoryError if the attack of `search_bytes` does not fit in the device's free memory."""
    needed, free = search_bytes(settings, scale, model, size, device), free_memory(device)
    if free is not None and needed > free:
        raise MemoryError(describe_memory(needed, free))


def _bytes(module: nn.Module | None) -> int:
    return 0 if module is None else sum(weight.nbytes for weight in module.parameters())


def _peak_bytes(
    shape: tuple[int, ...],
    scale: int,
    device: torch.device,
    network: DegradationNetwork | None,
    objective: Objective | None,
    weights: Sequence[Tensor] = (),
    caching: Callable[[Tensor], AbstractContextManager[None]] = nullcontext,
) -> int:
    """The peak memory of one pass through F and the objective and back, on PyTorch's tensors without content.

    Args:
        shape: (B, 3, H, W), of the HR images.
        network: F, whose parameters are replaced; None: LR images are given.
        objective: of G; None: there is only a forward pass of F.
        weights: of G, for which gradients are computed as well.
        caching: as `GeneratorLoss.step`.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as memory:
        hr = torch.empty(shape, dtype=torch.uint8, device=device).float() / 255
        with caching(hr):
            if network is None:
                lr = hr.new_empty(len(hr), 3, shape[2] // scale, shape[3] // scale)
            else:
                network.layout = ThetaLayout(shape[2:], scale, network.channels, network.blocks, network.noise)
                network.theta_id = torch.empty(network.num_networks, network.layout.size, device=device)
                delta = torch.empty_like(network.theta_id).requires_grad_(objective is not None)
                lr = network(hr, delta)
            if objective is not None:
                image = lr.detach().requires_grad_()
                gradient, *_ = torch.autograd.grad(objective(image, hr).sum(), [image, *weights], allow_unused=True)
            if network is not None:
                kept = torch.empty_like(delta), _scratch(network, hr)  # the worst deviation so far
                if objective is not None:
                    torch.autograd.grad(lr, delta, gradient)
                del kept
        return memory.peak


def _scratch(network: DegradationNetwork, hr: Tensor) -> Tensor | None:
    """As much as the fused backward pass of F allocates inside: the gradients of a layer's output and input."""
    implementation = forward_implementation(hr, network.theta_id, network.layout, network.dtype)
    if implementation == "reference":
        return None
    pieces = network.num_networks if dispatch.load(implementation).loops_over_bank else 1
    return hr.new_empty(2, len(hr) // pieces, network.channels, *hr.shape[2:], dtype=network.dtype)


def _discriminator_peak_bytes(trainer: Trainer, images: int) -> int:
    """The peak memory of D's update on so many images, its gradients included."""
    if trainer.discriminator is None:
        return 0
    module, size = trainer.discriminator.module, trainer.config.train.patch_size
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as memory:
        hr = torch.empty(images, 3, size, size, device=trainer.device)
        autocast = AutocastModule(module, trainer.discriminator.frozen.dtype)
        loss = discriminator_loss(autocast, torch.empty_like(hr), hr, trainer.config.loss.gan_kind())
        torch.autograd.grad(loss.sum(), list(module.parameters()))
    # Counters of batch norms are scalars, which are computed even without content.
    for buffer, saved in buffers:
        buffer.copy_(saved)
    return memory.peak


def describe_memory(needed: int | None, free: int | None) -> str:
    """Needed and free memory for people; None: unknown."""
    if needed is None:
        return "the memory that it needs is not known"
    of_free = "" if free is None else f" of {free / 2**30:.1f} GiB free"
    return f"needs about {needed / 2**30:.1f} GiB{of_free}"


def remedies(config: Config, size: int = 1) -> str:
    """Which settings to change to need less memory, and what they are now, in a run of `size` processes."""
    train = config.train
    now = f"none, {train.batch_size // size} images at once" if train.micro_batch is None else train.micro_batch
    coupled = config.loss.coupled(config.discriminator)
    options = [] if train.micro_batch == 1 or coupled else [f"a smaller train.micro_batch (now {now})"]
    if config.generator.architecture in ("rrdbnet", None) and not train.checkpoint_blocks:
        options.append("train.checkpoint_blocks true (now false)")
    anew = (
        f"a smaller train.patch_size (now {train.patch_size}), train.batch_size (now {train.batch_size}) or "
        f"degradation.num_networks (now {config.degradation.num_networks})"
    )
    return f"{' or '.join(options)}; or, in a new run, {anew}" if options else f"in a new run, {anew}"
