"""Validation of a generator on held-out images, compared with bicubic upsampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from PIL import Image
from torch import Tensor, nn

from andfast.data.images import DataError
from andfast.data.pairs import Pair, read_pair
from andfast.data.patches import too_small
from andfast.data.tensors import to_tensor
from andfast.degradation.camera import bicubic_lr, camera_like, crop_to_multiple
from andfast.inference.upscaler import upscale_tensor
from andfast.metrics import FIDELITY, SSIM_WINDOW, Measure
from andfast.training.distributed import World
from andfast.training.signals import StopSignal

_LARGEST = 512  # pixels of a held-out image's height and width that are used: it bounds the time


def upsample_by_pillow(lr: np.ndarray, scale: int) -> np.ndarray:
    """Pillow's bicubic interpolation, uint8 (h, w, 3) -> (scale * h, scale * w, 3): the baseline."""
    height, width = lr.shape[:2]
    return np.array(Image.fromarray(lr).resize((width * scale, height * scale), Image.Resampling.BICUBIC))


def centre_crop(image: np.ndarray, scale: int, largest: int = _LARGEST) -> np.ndarray:
    """The centre of an image, at most `largest` pixels high and wide, both multiples of `scale`."""
    top, left = (max(length - largest, 0) // 2 for length in image.shape[:2])
    return crop_to_multiple(image[top : top + largest, left : left + largest], scale)


def least_size(scale: int) -> int:
    """The least height and width of an HR image to validate on."""
    return SSIM_WINDOW + 2 * scale


@dataclass
class _Case:
    """One pair of images, uint8, and the metrics of bicubic upsampling, by their names."""

    lr: np.ndarray
    hr: np.ndarray
    bicubic: dict[str, float]


class Validator:
    """Validates under several degradations: PSNR and SSIM on Y, border of `scale` pixels cut, mean over the images.

    "bicubic": LR made by Pillow's bicubic downsampling. "camera": blur, noise and JPEG, without a degradation network
    (`andfast.degradation.camera`). "pairs": camera-captured pairs, if given. At scale 1 "bicubic" is the HR
    image itself, and bicubic upsampling changes nothing.

    Args:
        held_out: HR images, uint8 (H, W, 3), H and W multiples of `scale`.
        pairs: camera-captured pairs.
        scale: the super-resolution factor.
        world: the processes, which share the images; None: one.
        measures: further metrics, computed on the CPU.

    Raises:
        DataError: an image is too small for the metrics.
    """

    def __init__(
        self,
        held_out: Sequence[np.ndarray],
        pairs: Sequence[Pair],
        scale: int,
        world: World | None = None,
        measures: Sequence[Measure] = (),
    ) -> None:
        self.scale, self._world, self.measures = scale, world or World(), measures
        # Process r has the images r, r + size, ...
        own = slice(self._world.rank, None, self._world.size)
        self._counts = {"bicubic": len(held_out), "camera": len(held_out)}
        self._sets: dict[str, list[_Case]] = {
            "bicubic": [self._case(bicubic_lr(hr, scale), hr) for hr in held_out[own]],
            "camera": [self._case(camera_like(hr, scale, seed), hr) for seed, hr in list(enumerate(held_out))[own]],
        }
        if pairs:
            self._counts["pairs"] = len(pairs)
            self._sets["pairs"] = [self._pair(pair) for pair in pairs[own]]

    def _pair(self, pair: Pair) -> _Case:
        hr, lr = read_pair(pair.hr, pair.lr, self.scale)
        if min(hr.shape[:2]) < least_size(self.scale):
            raise DataError(f"{pair.hr}: {too_small(*hr.shape[:2], least_size(self.scale))} to validate on")
        return self._case(lr, hr)

    def _case(self, lr: np.ndarray, hr: np.ndarray) -> _Case:
        for measure in self.measures:
            if not measure.fits(*hr.shape[:2]):
                raise DataError(
                    f"train.validate_metrics {measure.name}: an image to validate on has {hr.shape[0]} x {hr.shape[1]} "
                    "pixels, too few for it"
                )
        return _Case(lr, hr, self._measure(to_tensor(upsample_by_pillow(lr, self.scale)), hr))

    def _measure(self, restored: Tensor, hr: np.ndarray) -> dict[str, float]:
        restored, original = restored.cpu(), to_tensor(hr)
        found = {name: metric(restored, original, self.scale).item() for name, metric in FIDELITY.items()}
        return found | {measure.name: measure(restored, original) for measure in self.measures}

    def __call__(self, generator: nn.Module, stop: StopSignal | None = None) -> dict[str, dict[str, float]] | None:
        """{"bicubic": {"psnr_y": dB, "ssim_y": at most 1, "bicubic_psnr_y": dB, ...}, "camera": ..., "pairs": ...}.

        Names with "bicubic_" are the metrics of bicubic upsampling. If a `stop` signal comes to any process, all end
        before the next image and return None.
        """
        own: dict[str, list[dict[str, float]]] = {name: [] for name in self._sets}
        for name, cases in self._sets.items():
            # The same number of turns in all processes, though some have no image in the last one.
            for turn in range(math.ceil(self._counts[name] / self._world.size)):
                if self._world.all_reduce_max(0 if stop is None else stop.number):
                    return None
                for case in cases[turn : turn + 1]:
                    metrics = self._measure(upscale_tensor(generator, to_tensor(case.lr)), case.hr)
                    own[name].append(metrics | {f"bicubic_{key}": value for key, value in case.bicubic.items()})
        results, by_process = {}, self._world.gather(own)
        for name in self._sets:
            turns = zip_longest(*(each[name] for each in by_process))
            cases = [case for turn in turns for case in turn if case is not None]
            results[name] = {key: float(np.mean([case[key] for case in cases])) for key in cases[0]}
        return results
