"""The settings of the adversary, and of what is mixed in beside it (Sec 3.3, 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from andfast.attack import (
    BSRGAN,
    PGD,
    YOPO,
    AdversarialNoise,
    Attack,
    AttackResult,
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
from andfast.inference.models import find_model
from andfast.losses import l1_objective
from andfast.models import ModelError
from andfast.models.frozen import FrozenModule
from andfast.ops.theta_layout import ScaleFactors
from andfast.utils.formatting import dtype_name
from andfast.utils.import_path import ImportPath, import_class
from andfast.utils.rng import seeded

Precision = Literal["auto", "float32", "bfloat16", "float16"]

BICUBIC = "bicubic"  # as `AttackConfig.baseline`


@dataclass
class MixConfig:
    """Images of each batch that another degradation makes instead of the adversary, after the warm-up.

    Attributes:
        share: of the batch's images, in [0, 1), rounded to whole images, the last ones of the batch.
        method: clean (the identity's pooling), bicubic, bsrgan, real_esrgan, or pairs (camera-captured ones).
        pairs: a folder of camera-captured pairs, `HR/` and `LR/` or the like, for the method pairs, here or in
            attack.method.
        noise: low and high end of the range from which the standard deviation of Gaussian noise, as of a sensor, is
            drawn for each of these images, in 8-bit units; null: none. Camera-captured pairs have noise of their own.
    """

    share: NonNegativeFloat = 0.0
    method: Literal["clean", "bicubic", "bsrgan", "real_esrgan", "pairs"] = "clean"
    pairs: str | None = None
    noise: tuple[NonNegativeFloat, PositiveFloat] | None = None

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
            (pgd from random networks), none (bicubic), bsrgan, real_esrgan, pairs (camera-captured, from mix.pairs); or
            a class of your own, my_file.py:MyAttack or package.module:MyAttack, a subclass of andfast.Attack.
        options: arguments of a class of your own, by their names. Its dataclass fields that are settings here, such as
            steps, take these.
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
        baseline: the adversary raises the difference between G's loss and this restoration's loss.pixel: bicubic
            (interpolation), or a model file, such as a classical twin; null: G's loss alone, as in the paper (pgd,
            yopo, subset, style, noise).
        noise_every: N: every Nth update after the warm-up uses adversarial noise (the method noise, with these
            settings) instead; 0: none (pgd, yopo, subset, style, random).
        dtype: the type G computes in within the attack; auto: train.precision's.
        mix: images of each batch that another degradation makes.
    """

    method: (
        Literal["pgd", "yopo", "subset", "free", "random", "noise", "style", "none", "bsrgan", "real_esrgan", "pairs"]
        | ImportPath
    ) = "pgd"
    options: dict[str, Any] = field(default_factory=dict)
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
        has_networks = issubclass(self._kind(self.method), NetworkAttack)
        return self._build("noise") if self.noise_every and has_networks else None

    def load_baseline(self, scale: int, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
        """The restoration of `baseline`, (B, 3, h, w) -> (B, 3, H, W); None without, and where no attack climbs a loss.

        Args:
            scale, device: of the run.
            dtype: that a model file computes in.

        Raises:
            ModelError: the file is missing, or has no generator of this scale.
        """
        climbs = isinstance(self.build(), (PGD, AdversarialNoise)) or self.build_noise() is not None
        if self.baseline is None or not climbs:
            return None
        if self.baseline == BICUBIC:
            return partial(bicubic_upsample, scale=scale)
        try:
            model = find_model(self.baseline, device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        except ModelError as error:
            raise ModelError(f"attack.baseline: {error}; or give {BICUBIC}") from error
        if model.scale != scale:
            raise ModelError(f"attack.baseline {self.baseline}: a model x{model.scale}; scale is {scale}")
        return FrozenModule(model, dtype)

    def _build(self, method: str) -> Attack:
        if method == "noise" and self.psnr_range is None:
            key = "method noise" if self.method == "noise" else "noise_every"
            raise ValueError(f"attack.psnr_range is null; attack.{key} needs a range in dB")
        kind = self._kind(method)
        if method not in _ATTACKS:
            return self._build_own(kind)
        if self.options and method == self.method:
            raise ValueError(f"attack.options is {self.options}; attack.method {method} has none")
        try:
            return kind(**{setting.name: getattr(self, setting.name) for setting in fields(kind)})
        except ValueError as error:  # it begins with the setting's name
            raise ValueError(f"attack.{error}") from error

    def _kind(self, method: str) -> type[Attack]:
        if method in _ATTACKS:
            return _ATTACKS[method]
        kind = import_class(method, "attack.method")
        if not issubclass(kind, Attack) or issubclass(kind, (FreeAT, SubsetPGD)):
            raise ValueError(
                f"attack.method {method}: a subclass of andfast.Attack is wanted, not of FreeAT or SubsetPGD"
            )
        return kind

    def _build_own(self, kind: type[Attack]) -> Attack:
        shared = {setting.name for setting in fields(self)} - _OF_THE_TRAINER
        names: set[str] = {setting.name for setting in fields(kind)} if is_dataclass(kind) else set()
        try:
            with seeded(0):  # the same in all processes, and when a run resumes
                return kind(**{name: getattr(self, name) for name in names & shared} | self.options)
        except Exception as error:  # whatever the user's code raises
            raise ValueError(
                f"attack.method {self.method} with {self.options}: {type(error).__name__}: {error}"
            ) from error

    def try_own(self, scale: int) -> None:
        """Run an attack of the user's own on a small image; raises a ValueError if it fails or degrades nothing."""
        if self.method in _ATTACKS:
            return
        size, rng = 16 * scale, torch.Generator().manual_seed(0)
        network = DegradationNetwork(scale=scale, num_networks=2, channels=4, blocks=1, dtype=torch.float32)
        network.reset_identity((size, size), rng)
        hr = torch.rand(2, 3, size, size, generator=rng)
        try:
            result = self.build()(network, hr, l1_objective(partial(bicubic_upsample, scale=scale)), rng)
        except Exception as error:  # whatever the user's code raises
            raise ValueError(f"attack.method {self.method}: {type(error).__name__}: {error}") from error
        if not isinstance(result, AttackResult):
            raise ValueError(f"attack.method {self.method} makes a {type(result).__name__}; wanted is an AttackResult")
        if result.lr.shape != (2, 3, 16, 16) or result.lr.dtype != torch.float32:
            made = f"{tuple(result.lr.shape)} of {dtype_name(result.lr.dtype)}"
            raise ValueError(
                f"attack.method {self.method} makes {made} of {tuple(hr.shape)}; wanted are LR images of float32"
            )


# Settings that are not an attack's own.
_OF_THE_TRAINER = {"method", "options", "baseline", "noise_every", "dtype", "mix"}

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

METHODS = tuple(_ATTACKS)
"""The attacks that come with andfast, as `AttackConfig.method`."""
