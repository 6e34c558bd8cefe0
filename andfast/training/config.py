"""The settings of a training run: dataclasses, which `andfast.training.options` fills."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from andfast.data.patches import LEAST_SHARE
from andfast.degradation.network import DegradationNetwork
from andfast.inference.models import find_model
from andfast.models import GENERATORS, ModelError, build_generator
from andfast.models.foreign import ForeignModel
from andfast.models.generators import architecture_name
from andfast.models.own_models import OwnModel, build_own, is_own, load_own_weights
from andfast.models.spandrel_models import PREFIX, build_with_spandrel
from andfast.ops.precision import choose_precision
from andfast.training.attack_config import AttackConfig, Precision
from andfast.training.loss_config import DiscriminatorConfig, LossConfig
from andfast.training.micro_batches import MicroBatchedNetwork, check_micro_batch
from andfast.utils.rng import seeded

#: Settings that have another name now: a run's state may know them by the old one, a file or an option may not.
RENAMED = {"attack.keep": "attack.return_iterate", "attack.lr_psnr": "attack.psnr_range"}


@dataclass
class DataConfig:
    """The images.

    Attributes:
        hr: folders of HR images to train on, searched recursively; if empty, scikit-image's bundled photographs.
        weights: the share of patches from each folder of hr, in any unit, as [3, 1] for three quarters from the first
            one; empty: each image is used equally often, wherever it lies.
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
    weights: list[PositiveFloat] = field(default_factory=list)
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
        name: compact (SRVGGNetCompact), rrdbnet (ESRGAN), or spandrel:NAME, such as spandrel:SPAN: an architecture of
            spandrel by the name of its class; or a class of your own, my_file.py:MyNet or package.module:MyNet, which
            takes the argument scale; null: that of init, without init compact.
        features: width; null: 32 for compact (Real-ESRGAN's have 64), 64 for rrdbnet.
        depth: hidden convolutions of compact (null: 8; Real-ESRGAN's have 16 or 32) or residual blocks of rrdbnet
            (null: 23).
        options: arguments of an architecture of spandrel or a class of your own, by their names.
        init: a pretrained model or a model file to start from, with a size of its own. Set train.warmup to 0 with it.
    """

    name: str | None = None
    features: PositiveInt | None = None
    depth: PositiveInt | None = None
    options: dict[str, Any] = field(default_factory=dict)
    init: str | None = None

    def __post_init__(self) -> None:
        """Raise a ValueError that names the keys of values that do not go together."""
        name = self.architecture
        foreign = name is not None and (name.startswith(PREFIX) or is_own(name))
        if name not in (None, *GENERATORS) and not foreign:
            raise ValueError(
                f"generator.name is {name}; it must be one of {', '.join(GENERATORS)}, {PREFIX}NAME, or a class of "
                "your own as my_file.py:MyNet"
            )
        if self.options and not foreign:
            raise ValueError(
                f"generator.options are for a generator.name {PREFIX}NAME or my_file.py:MyNet; {name} has none"
            )
        for key in ("features", "depth"):
            if (value := getattr(self, key)) is not None and name not in GENERATORS:
                names = " or ".join(GENERATORS)
                raise ValueError(f"generator.{key} is {value}; it needs a generator.name {names}, not {name}")

    @property
    def architecture(self) -> str | None:
        """The name, by default compact; None: that of init, unless a size is given."""
        of_file = self.init is not None and self.features is None and self.depth is None
        return self.name or (None if of_file else "compact")

    def build(self, scale: int, seed: int) -> nn.Module:
        """The generator on the CPU, with the weights of init or new ones that depend on the seed alone.

        Raises:
            FileNotFoundError, ModelError: the file is missing, or has no generator that fits these settings.
        """
        if self.init is None:
            return self._new(scale, seed)
        if is_own(self.architecture):
            return self._own_from_init(scale, seed)
        try:
            weights = find_model(self.init)
        except ModelError as error:
            raise ModelError(f"generator.init: {error}") from error
        found, wanted = architecture_name(weights), self.architecture
        problem = f"generator.init {self.init}: a {found} x{weights.scale} that does not fit the settings"
        if wanted not in (None, found) or weights.scale != scale:
            name = "" if wanted in (None, found) else f"generator.name {wanted}, "
            raise ModelError(f"{problem} ({name}scale {scale})")
        if self.features is None and self.depth is None and not self.options:
            return weights.prepare_training() if isinstance(weights, ForeignModel) else weights.train()
        model = self._new(scale, seed)
        try:
            model.load_state_dict(weights.state_dict())
        except RuntimeError as error:
            raise ModelError(f"{problem} of the generator ({str(error).splitlines()[1].strip()[:200]})") from error
        return model

    def _own_from_init(self, scale: int, seed: int) -> nn.Module:
        model = self._new(scale, seed)
        assert isinstance(model, OwnModel)
        try:
            load_own_weights(model, self.init)
        except ModelError as error:
            raise ModelError(f"generator.init: {error}") from error
        return model

    def _new(self, scale: int, seed: int) -> nn.Module:
        # Compact's defaults are smaller than Real-ESRGAN's, for a first run on a CPU.
        with seeded(seed):
            name = str(self.architecture)
            if name.startswith(PREFIX):
                return build_with_spandrel(name.removeprefix(PREFIX), scale, self.options)
            if is_own(name):
                return build_own(name, scale, self.options)
            depth_name, features, depth = {"compact": ("convs", 32, 8), "rrdbnet": ("blocks", 64, 23)}[name]
            sizes = {"features": self.features or features, depth_name: self.depth or depth}
            return build_generator(name, scale, **sizes)


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
        optimizer: of both networks: adam, adamw, adan (Xie et al. 2022; pip install pytorch_optimizer), or
            schedule_free, AdamW without a schedule (Defazio et al. 2024; pip install schedulefree).
        betas: the optimizer's decay rates, three for adan; null: 0.9 and 0.99 for adam and adamw, its package's own
            else: 0.98, 0.92 and 0.99 for adan, 0.9 and 0.999 for schedule_free.
        weight_decay: the optimizer's: adam adds it to the gradient, the others shrink the weights.
        clip_grad: a gradient of a larger 2-norm is scaled down to it, for each network on its own; null: none is.
        learning_rate: the optimizer's, at its highest.
        schedule: of the learning rate: cosine (to a hundredth of it at the end), constant (the paper's), or multistep.
        milestones: updates after which multistep multiplies the learning rate by gamma.
        gamma: of multistep.
        ema_decay: of the moving average of the weights, which is validated and saved; schedule_free has an average of
            its own in its place.
        micro_batch: images that a process computes at once, with the same result; null: all of its batch. Less takes
            less memory and more time.
        checkpoint_blocks: store only the inputs of rrdbnet's residual blocks for the update's backward pass and
            compute the rest again. Takes less memory and more time.
        precision: the type G computes in, with weights in float32; auto: bfloat16 on GPUs that have it and on CPUs
            that are faster with it, else float32.
        validate_every: updates between validations with sample sheets; 0: only at the end.
        validate_metrics: of lpips_alex, lpips_vgg and dists, those to compute in validations beside PSNR and SSIM, on
            the CPU; docs/evaluation.md says where their weights come from.
        save_every: updates between saves of the resumable state, which a run of one process also saves after five
            minutes without; 0: only at the end.
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
    optimizer: Literal["adam", "adamw", "adan", "schedule_free"] = "adam"
    betas: list[NonNegativeFloat] | None = None
    weight_decay: NonNegativeFloat = 0.0
    clip_grad: PositiveFloat | None = None
    learning_rate: PositiveFloat = 2e-3
    schedule: Literal["cosine", "constant", "multistep"] = "cosine"
    milestones: list[PositiveInt] = field(default_factory=list)
    gamma: PositiveFloat = 0.5
    ema_decay: NonNegativeFloat = 0.995
    micro_batch: PositiveInt | None = None
    checkpoint_blocks: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    validate_every: NonNegativeInt = 600
    validate_metrics: list[Literal["lpips_alex", "lpips_vgg", "dists"]] = field(default_factory=list)
    save_every: NonNegativeInt = 200
    max_bad_steps: PositiveInt = 10
    log_every: PositiveInt | None = None
    wandb: str | None = None

    def __post_init__(self) -> None:
        """Raise a ValueError that names the keys of values that do not go together."""
        if not self.ema_decay < 1:
            raise ValueError(f"train.ema_decay is {self.ema_decay}; it must be in [0, 1)")
        if len(set(self.validate_metrics)) < len(self.validate_metrics):
            raise ValueError(f"train.validate_metrics is {self.validate_metrics}; one is named twice")
        wanted = 3 if self.optimizer == "adan" else 2
        if self.betas is not None and (len(self.betas) != wanted or not all(beta < 1 for beta in self.betas)):
            raise ValueError(
                f"train.betas is {self.betas}; train.optimizer {self.optimizer} has {wanted}, each in [0, 1)"
            )
        if self.optimizer == "schedule_free":
            if self.betas is not None and self.betas[0] == 0:
                raise ValueError(f"train.betas is {self.betas}; the first of schedule_free must be above 0")
            if self.schedule != "constant":
                raise ValueError(
                    f"train.schedule is {self.schedule}; train.optimizer schedule_free takes the place of a schedule: "
                    "it must be constant"
                )
        if (self.schedule == "multistep") != bool(self.milestones):
            needs = "needs some, as [200000, 400000]" if self.schedule == "multistep" else "has none"
            raise ValueError(f"train.milestones is {self.milestones}; train.schedule {self.schedule} {needs}")
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"train.milestones is {self.milestones}; each must be later than the one before")


@dataclass
class Config:
    """Settings of a training run, of all its processes together.

    Attributes:
        run_dir: the folder for everything that the run writes.
        scale: the super-resolution factor; 1: restoration at the same size, such as denoising.
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
    scale: Literal[1, 2, 3, 4, 8] = 4
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
        if self.generator.architecture == "rrdbnet" and self.scale == 3:
            raise ValueError("generator.name rrdbnet has scales 1, 2, 4 and 8, not 3; compact has it")
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
        weights = self.data.weights
        if weights and len(weights) != len(self.data.hr):
            raise ValueError(f"data.weights is {weights}; it must have one for each of data.hr, {len(self.data.hr)}")
        if weights and min(weights) < LEAST_SHARE * sum(weights):
            raise ValueError(f"data.weights is {weights}; each must be at least {LEAST_SHARE:g} of their sum")
        soften = self.data.soften
        if soften is not None and soften[0] > soften[1]:
            raise ValueError(f"data.soften is {list(soften)}; it must be [low, high] in pixels with low <= high")
        if train.micro_batch is not None:
            check_micro_batch(train.micro_batch, train.batch_size, attacked, self.networks, self.degradation.noise)
        if train.checkpoint_blocks and self.generator.architecture not in ("rrdbnet", None):
            raise ValueError(
                f"train.checkpoint_blocks is for generator.name rrdbnet; {self.generator.architecture} has no blocks "
                "(to save memory there is train.micro_batch)"
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
        if mix.noise is not None and mix.noise[0] > mix.noise[1]:
            raise ValueError(f"attack.mix.noise is {list(mix.noise)}; it must be [low, high], of 255, with low <= high")
        if mix.noise is not None and (not mix.share or mix.method == "pairs"):
            why = "attack.mix.method pairs has noise of its own" if mix.share else "attack.mix.share 0 mixes nothing in"
            raise ValueError(f"attack.mix.noise is {list(mix.noise)}, and {why}: it must be null")

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
        return plain(self)


def plain(value: Any) -> Any:
    """Settings as nested dicts, lists, numbers and strings, which YAML and JSON can write."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    # The parser's restricted numbers are subclasses, which YAML cannot write.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value
