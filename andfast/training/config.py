"""The settings of a training run: dataclasses, which `andfast.training.options` fills."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from andfast.attack import (
    BSRGAN,
    PGD,
    YOPO,
    AdversarialNoise,
    Attack,
    Bicubic,
    FreeAT,
    Lens,
    RandomDeviation,
    RealESRGAN,
    StyleShift,
    SubsetPGD,
)
from andfast.attack.base import NetworkAttack, bicubic_upsample
from andfast.degradation.network import DegradationNetwork
from andfast.models import GENERATORS, ModelError, build_generator, load_model
from andfast.models.frozen import AutocastModule
from andfast.ops.precision import choose_precision
from andfast.ops.theta_layout import ScaleFactors
from andfast.training.loss_config import DiscriminatorConfig, LossConfig
from andfast.training.micro_batches import MicroBatchedNetwork, check_micro_batch

Precision = Literal["auto", "float32", "bfloat16", "float16"]

#: Settings that have another name now: a run's state may know them by the old one, a file or an option may not.
RENAMED = {"attack.keep": "attack.return_iterate", "attack.lr_psnr": "attack.psnr_range"}


@dataclass
class DataConfig:
    """The images.

    Attributes:
        hr: folders of HR images to train on, searched recursively; if empty, scikit-image's bundled photographs.
        val_hr: folders of HR images to validate on; if empty, `held_out` images of `hr` are kept from training.
        held_out: how many images of `hr` to hold out if there is no `val_hr`, at most a quarter of them.
        val_pairs: a folder of camera-captured pairs, `HR/` and `LR/` or the like, to validate on as well.
        workers: processes that decode and crop images, for each training process; 0: the training process does it.
        cache_mib: memory for decoded images, in MiB, for each worker; as much again for camera pairs to train on.
        cache: a folder for the decoded images of `hr`, three bytes a pixel, for all workers and later runs. It
            changes speed alone.
        flip: mirror half of the patches.
        rotate: rotate patches by multiples of 90 degrees.
        soften: low and high end of the range from which the standard deviation of a Gaussian blur is drawn for each
            HR patch, in HR pixels; null: no blur. Small, sharp images are crisper than what cameras take
            (docs/calibration.md), and a generator trained on them sharpens too much.
    """

    hr: list[str] = field(default_factory=list)
    val_hr: list[str] = field(default_factory=list)
    held_out: PositiveInt = 8
    val_pairs: str | None = None
    workers: NonNegativeInt = 1
    cache_mib: NonNegativeInt = 512
    cache: str | None = None
    flip: bool = True
    rotate: bool = True
    soften: tuple[NonNegativeFloat, PositiveFloat] | None = None


@dataclass
class GeneratorConfig:
    """The restoration network G.

    Attributes:
        name: compact (SRVGGNetCompact) or rrdbnet (ESRGAN).
        features: width; null: 32 for compact (Real-ESRGAN's have 64), 64 for rrdbnet.
        depth: hidden convolutions of compact (null: 8; Real-ESRGAN's have 16 or 32) or residual blocks of rrdbnet
            (null: 23).
        init: a model file to start from, with features and depth of its own. Set train.warmup to 0 with it.
    """

    name: Literal["compact", "rrdbnet"] = "compact"
    features: PositiveInt | None = None
    depth: PositiveInt | None = None
    init: str | None = None

    def build(self, scale: int, seed: int) -> nn.Module:
        """The generator on the CPU, with the weights of init or new ones that depend on the seed alone.

        Raises:
            FileNotFoundError, ModelError: the file is missing, or has no generator that fits these settings.
        """
        if self.init is None:
            return self._new(scale, seed)
        weights = load_model(self.init)
        any_size = self.features is None and self.depth is None
        if any_size and isinstance(weights, GENERATORS[self.name]) and weights.scale == scale:
            return weights
        model = self._new(scale, seed)
        try:
            model.load_state_dict(weights.state_dict())
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise ModelError(
                f"generator.init {self.init}: a {type(weights).__name__} x{weights.scale} that does not fit the "
                f"settings of the generator ({reason})"
            ) from error
        return model

    def _new(self, scale: int, seed: int) -> nn.Module:
        # Compact's defaults are smaller than Real-ESRGAN's, for a first run on a CPU.
        depth_name, features, depth = {"compact": ("convs", 32, 8), "rrdbnet": ("blocks", 64, 23)}[self.name]
        sizes = {"features": self.features or features, depth_name: self.depth or depth}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_generator(self.name, scale, **sizes)


@dataclass
class DegradationConfig:
    """The degradation network F; see `andfast.DegradationNetwork`.

    Attributes:
        num_networks: networks for each batch, of all processes together; "batch": one for each image (the paper's
            Eq. 1), which costs more.
        channels: width of the hidden layers.
        blocks: blocks before the pooling, and again after it.
        noise: what a noise injection adds: a map, or Gaussian noise of a strength.
        precision: the type F computes in; auto: float16 on CUDA, bfloat16 on CPUs where it is faster, else float32.
    """

    num_networks: PositiveInt | Literal["batch"] = 2
    channels: PositiveInt = 64
    blocks: PositiveInt = 5
    noise: Literal["map", "gaussian"] = "map"
    precision: Precision = "auto"

    def build(
        self, scale: int, num_networks: int, device: torch.device, micro_batch: int | None = None
    ) -> DegradationNetwork:
        """A bank of so many degradation networks, without parameters yet; computes `micro_batch` images at once."""
        kind = DegradationNetwork if micro_batch is None else partial(MicroBatchedNetwork, micro_batch)
        return kind(
            scale=scale,
            num_networks=num_networks,
            channels=self.channels,
            blocks=self.blocks,
            noise=self.noise,
            dtype=choose_precision(self.precision, device, "degradation"),
            device=device,
        )


BICUBIC = "bicubic"  # as `AttackConfig.baseline`


@dataclass
class MixConfig:
    """Images of each batch that another degradation makes instead of the adversary, after the warm-up.

    Attributes:
        share: of the batch's images, in [0, 1), rounded to whole images, the last ones of the batch.
        method: clean (the identity's pooling), bicubic, bsrgan, real_esrgan, or pairs (camera-captured ones).
        pairs: a folder of camera-captured pairs, `HR/` and `LR/` or the like, for the method pairs, here or in
            attack.method.
    """

    share: NonNegativeFloat = 0.0
    method: Literal["clean", "bicubic", "bsrgan", "real_esrgan", "pairs"] = "clean"
    pairs: str | None = None

    def images(self, batch: int) -> int:
        """How many images of a batch the share is; a ValueError if that is all of them, or less than half an image."""
        images = round(self.share * batch)
        if images >= batch:
            raise ValueError(
                f"attack.mix.share is {self.share:g} of train.batch_size {batch}, which is all of it; attack.method "
                "degrades whole batches"
            )
        if self.share and not images:
            raise ValueError(f"attack.mix.share is {self.share:g} of train.batch_size {batch}: less than half an image")
        return images


@dataclass
class AttackConfig:
    """The adversary; see `andfast.attack` and docs/attacks.md.

    Attributes:
        method: pgd, or cheaper yopo (frozen costate), subset (a part of the batch; needs degradation.num_networks 1),
            free (minibatch replay); for comparison random (deviations), noise (adversarial, on the LR image), style
            (pgd from random networks), none (bicubic), bsrgan, real_esrgan, pairs (camera-captured, from mix.pairs).
        steps: gradient steps (pgd, subset, style, noise), 5 in the paper; passes through G (yopo).
        inner_steps: steps in theta for each pass through G (yopo).
        replays: updates of G for each minibatch (free).
        share: of the batch's images that are attacked, in (0, 1] (subset).
        return_iterate: worst returns the worst of all iterates, last the last one, which saves a pass through G (pgd,
            yopo, subset, style).
        random_start: share, in [0, 1), of the squared error that psnr_range allows which a random deviation uses at the
            start (pgd, yopo, subset), or Gaussian noise (noise).
        step_size: length of a step in the scaled norm (pgd, yopo, subset, free, style).
        step_ratio: length of a step relative to epsilon, instead of step_size.
        epsilon: radius of the ball in the scaled norm (pgd, yopo, subset, free, style, random).
        scale_factors: the scaled norm's factors by group of parameters (likewise).
        psnr_range: low and high end, in dB, of the range from which the least PSNR of a degraded LR image against
            the clean one is drawn (likewise, but for style, and noise).
        lens: between the HR images and the degradation networks, drawn for each network (pgd, yopo, subset, free,
            style, random), or each image (noise); null: no lens, as in the paper.
        baseline: the adversary raises the difference between G's loss and this restoration's L1 loss: bicubic
            (interpolation), or a model file, such as a classical twin; null: G's loss alone, as in the paper (pgd,
            yopo, subset, style, noise).
        noise_every: N: every Nth update after the warm-up uses adversarial noise (the method noise, with these
            settings) instead; 0: none (pgd, yopo, subset, style, random).
        dtype: the type G computes in within the attack; auto: train.precision's.
        mix: images of each batch that another degradation makes.
    """

    method: Literal[
        "pgd", "yopo", "subset", "free", "random", "noise", "style", "none", "bsrgan", "real_esrgan", "pairs"
    ] = "pgd"
    steps: PositiveInt = 3
    inner_steps: PositiveInt = YOPO.inner_steps
    replays: PositiveInt = FreeAT.replays
    share: PositiveFloat = SubsetPGD.share
    return_iterate: Literal["worst", "last"] = PGD.return_iterate
    random_start: NonNegativeFloat = PGD.random_start
    step_size: PositiveFloat = PGD.step_size
    step_ratio: PositiveFloat | None = None
    epsilon: PositiveFloat = PGD.epsilon
    scale_factors: ScaleFactors = field(default_factory=ScaleFactors)
    psnr_range: tuple[PositiveFloat, PositiveFloat] | None = PGD.psnr_range
    lens: Lens | None = None
    baseline: str | None = None
    noise_every: NonNegativeInt = 0
    dtype: Precision = "auto"
    mix: MixConfig = field(default_factory=MixConfig)

    @property
    def updates_per_step(self) -> int:
        """Generator updates in a training step with the attack: several with free."""
        return self.replays if self.method == "free" else 1

    def build(self) -> Attack:
        """The attack with these settings; a ValueError names the keys of values that do not go together."""
        return self._build(self.method)

    def build_noise(self) -> Attack | None:
        """The adversarial noise of every Nth update, N being `noise_every`; None without."""
        has_networks = issubclass(_ATTACKS[self.method], NetworkAttack)
        return self._build("noise") if self.noise_every and has_networks else None

    def load_baseline(self, scale: int, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
        """The restoration of `baseline`, (B, 3, h, w) -> (B, 3, H, W); None without, and where no attack climbs a loss.

        Args:
            scale, device: of the run.
            dtype: that a model file computes in.

        Raises:
            FileNotFoundError, ModelError: the file is missing, or has no generator of this scale.
        """
        climbs = isinstance(self.build(), (PGD, AdversarialNoise)) or self.build_noise() is not None
        if self.baseline is None or not climbs:
            return None
        if self.baseline == BICUBIC:
            return partial(bicubic_upsample, scale=scale)
        try:
            model = load_model(self.baseline, device)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"attack.baseline: {error}; or give {BICUBIC}") from error
        if model.scale != scale:
            raise ModelError(f"attack.baseline {self.baseline}: a model x{model.scale}; scale is {scale}")
        model = model.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return AutocastModule(model.requires_grad_(False), dtype)

    def _build(self, method: str) -> Attack:
        if method == "noise" and self.psnr_range is None:
            key = "method noise" if self.method == "noise" else "noise_every"
            raise ValueError(f"attack.psnr_range is null; attack.{key} needs a range in dB")
        kind = _ATTACKS[method]
        try:
            return kind(**{setting.name: getattr(self, setting.name) for setting in fields(kind)})
        except ValueError as error:  # it begins with the setting's name
            raise ValueError(f"attack.{error}") from error


# The fields of each are in AttackConfig by the same names.
_ATTACKS: dict[str, type[Attack]] = {
    "pgd": PGD,
    "yopo": YOPO,
    "subset": SubsetPGD,
    "free": FreeAT,
    "random": RandomDeviation,
    "noise": AdversarialNoise,
    "style": StyleShift,
    "none": Bicubic,
    "bsrgan": BSRGAN,
    "real_esrgan": RealESRGAN,
    # Batches come from the pairs; images of the warm-up and of sample sheets are downsampled.
    "pairs": Bicubic,
}


@dataclass
class TrainConfig:
    """The training steps. The defaults are a first run of minutes on a CPU; `configs/` has longer ones.

    Attributes:
        iterations: generator updates in all (attack.method free: minibatches, with attack.replays updates each).
        warmup: first updates, on clean LR images (the identity's; bicubic ones for methods without a network). Under
            attack from the start, a generator stays at nearest-neighbour level for long.
        ramp: updates after the warm-up in which the LR-PSNR budget comes down to its range.
        batch_size: images for each update, of all processes together.
        patch_size: height and width of the HR patches.
        learning_rate: Adam's, at its highest.
        schedule: cosine (to a hundredth of it at the end) or constant (the paper's).
        ema_decay: of the moving average of the weights, which is validated and saved.
        micro_batch: images that a process computes at once, with the same result; null: all of its batch. Less takes
            less memory and more time.
        checkpoint_blocks: store only the inputs of rrdbnet's residual blocks for the update's backward pass and
            compute the rest again. Takes less memory and more time.
        precision: the type G computes in, with weights in float32; auto: bfloat16 on GPUs that have it and on CPUs
            that are faster with it, else float32.
        validate_every: updates between validations with sample sheets; 0: only at the end.
        save_every: updates between saves of the resumable state; 0: only at the end.
        max_bad_steps: an update whose loss or gradient is not finite is skipped; so many in a row end the run.
        log_every: updates whose metrics are read from the device at once; null: 1 on the CPU, 10 on CUDA, where each
            reading waits.
        wandb: a project of Weights & Biases to log metrics to as well; null: without. Needs the package wandb.
    """

    iterations: PositiveInt = 800
    warmup: NonNegativeInt = 600
    ramp: NonNegativeInt = 60
    batch_size: PositiveInt = 8
    patch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 2e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    ema_decay: NonNegativeFloat = 0.995
    micro_batch: PositiveInt | None = None
    checkpoint_blocks: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    validate_every: NonNegativeInt = 600
    save_every: NonNegativeInt = 200
    max_bad_steps: PositiveInt = 10
    log_every: PositiveInt | None = None
    wandb: str | None = None


@dataclass
class Config:
    """Settings of a training run, of all its processes together.

    Attributes:
        run_dir: the folder for everything that the run writes.
        scale: the super-resolution factor.
        seed: of every random choice; equal seeds give equal runs.
        device: auto: CUDA if there is a device, else cpu.
        compile: compile the generator; auto: on CUDA.
        cuda_graphs: run the attack of pgd and its variants as a CUDA graph; auto: on CUDA, where that changes no bit,
            is faster, and has the memory.
        resume: auto (from the state in run_dir, if there is one), never (start anew), or a state file.
        data: the images.
        generator: the restoration network.
        degradation: the degradation network.
        attack: the adversary.
        loss: what the generator minimises and the adversary maximises.
        discriminator: the discriminator, for loss.gan above 0.
        train: the training steps.
    """

    run_dir: str = "runs/andnet"
    scale: Literal[2, 3, 4] = 4
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # YAML reads a bare on or off as a boolean.
    compile: Literal["auto", "on", "off"] | bool = "auto"
    cuda_graphs: Literal["auto", "off"] | bool = "auto"
    resume: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        """Raise a ValueError that names the keys of values that do not go together."""
        if isinstance(self.compile, bool):
            self.compile = "on" if self.compile else "off"
        if isinstance(self.cuda_graphs, bool):
            self.cuda_graphs = "auto" if self.cuda_graphs else "off"
        train, networks = self.train, self.degradation.num_networks
        if self.generator.name == "rrdbnet" and self.scale == 3:
            raise ValueError("generator.name rrdbnet has scales 1, 2 and 4, not 3; compact has it")
        if train.patch_size % self.scale:
            raise ValueError(f"train.patch_size is {train.patch_size}; it must be a multiple of scale, {self.scale}")
        if train.patch_size < 2 * self.scale:
            raise ValueError(f"train.patch_size is {train.patch_size}; it must be at least {2 * self.scale}")
        self._check_mix()
        attacked = train.batch_size - self.attack.mix.images(train.batch_size)
        if networks != "batch" and attacked % networks:
            of_it = "" if attacked == train.batch_size else f" less attack.mix.share {self.attack.mix.share:g}"
            raise ValueError(
                f"degradation.num_networks is {networks}; it must divide train.batch_size{of_it}, {attacked}, "
                "or be 'batch'"
            )
        if self.attack.method == "subset" and self.networks != 1:
            raise ValueError(
                f"attack.method subset needs degradation.num_networks 1, not {networks}: all images share the network "
                "that is found on a part of them"
            )
        if self.data.cache is not None and not self.data.hr:
            raise ValueError(
                f"data.cache is {self.data.cache}; it is for the images of data.hr, and none are given (the bundled "
                "photographs need no cache)"
            )
        soften = self.data.soften
        if soften is not None and soften[0] > soften[1]:
            raise ValueError(f"data.soften is {list(soften)}; it must be [low, high] in pixels with low <= high")
        if not train.ema_decay < 1:
            raise ValueError(f"train.ema_decay is {train.ema_decay}; it must be in [0, 1)")
        if train.micro_batch is not None:
            check_micro_batch(train.micro_batch, train.batch_size, attacked, self.networks, self.degradation.noise)
        if train.checkpoint_blocks and self.generator.name != "rrdbnet":
            raise ValueError(
                f"train.checkpoint_blocks is for generator.name rrdbnet; {self.generator.name} has no blocks (to save "
                "memory there is train.micro_batch)"
            )
        self.attack.build()
        self.attack.build_noise()
        self.loss.check(self.discriminator, train.patch_size, train.micro_batch)

    def _check_mix(self) -> None:
        method, mix = self.attack.method, self.attack.mix
        if method in ("pairs", "free") and mix.share:
            why = "takes whole batches from pairs" if method == "pairs" else "replays whole batches"
            raise ValueError(f"attack.mix.share is {mix.share:g}; attack.method {method} {why}: it must be 0")
        if method == "free" and (self.attack.noise_every or self.attack.baseline is not None):
            key, wanted = ("noise_every", 0) if self.attack.noise_every else ("baseline", "null")
            raise ValueError(
                f"attack.{key} is {getattr(self.attack, key)}; attack.method free moves by the gradients of G's own "
                f"updates: it must be {wanted}"
            )
        if self.mixed and self.mix_method == "pairs" and mix.pairs is None:
            key = "attack.method" if method == "pairs" else "attack.mix.method"
            raise ValueError(f"attack.mix.pairs is null; {key} pairs needs a folder with HR/ and LR/")

    @property
    def mixed(self) -> int:
        """How many images of a batch are not attacked after the warm-up."""
        batch = self.train.batch_size
        return batch if self.attack.method == "pairs" else self.attack.mix.images(batch)

    @property
    def mix_method(self) -> str:
        """The degradation of the images that are not attacked."""
        return "pairs" if self.attack.method == "pairs" else self.attack.mix.method

    @property
    def networks(self) -> int:
        """The number of degradation networks for each batch."""
        networks, batch = self.degradation.num_networks, self.train.batch_size
        return batch - self.attack.mix.images(batch) if networks == "batch" else networks

    def split(self, size: int) -> Config:
        """The settings of each of `size` processes, which share batches and degradation networks evenly.

        With attack.method subset each process has one network. Raises a ValueError for what cannot be shared evenly.
        """
        if size == 1:
            return self
        batch, networks = self.train.batch_size, self.degradation.num_networks
        mixed = f"attack.mix.share {self.attack.mix.share:g} of it"
        shared = {"train.batch_size": batch, mixed: self.mixed}
        if networks != "batch" and self.attack.method != "subset":
            shared["degradation.num_networks"] = networks
            networks //= size
        for what, count in shared.items():
            if count % size:
                otherwise = ", or 'batch'" if what == "degradation.num_networks" else ""
                raise ValueError(
                    f"{what} is {count}; with {size} processes, which share it evenly, it must be a multiple of "
                    f"{size}{otherwise}"
                )
        try:
            return replace(
                self,
                train=replace(self.train, batch_size=batch // size),
                degradation=replace(self.degradation, num_networks=networks),
            )
        except ValueError as error:
            raise ValueError(
                f"for each of {size} processes, which has train.batch_size {batch // size}: {error}"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain nested values, as in `config.yaml`."""
        return _plain(self)


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    # The parser's restricted numbers are subclasses, which YAML cannot write.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value
