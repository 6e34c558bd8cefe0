"""DISTS: the distance of two images in structure and texture, fitted to people's judgements.

Ding, Ma, Wang, Simoncelli, "Image quality assessment: unifying structure and texture similarity" (2020,
arXiv:2004.07728).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from andfast.metrics.lpips import TRUNKS, ImageDistance, trunk_file
from andfast.models.weights import read_exactly

# The ReLUs of VGG16, numbered as in torchvision's `features`, after which images are compared; and their channels,
# behind those of the image itself.
_COMPARED = (3, 8, 15, 22, 29)
_CHANNELS = (3, 64, 128, 256, 512, 512)
# Packages that bring the fitted weights, and where in them; both have the same file.
_WEIGHTS = {"torchmetrics": "functional/image/dists_models/weights.pt", "DISTS_pytorch": "weights.pt"}
# Keep quotients finite where both images are flat (Eq. 5 and 6).
_C = 1e-6


class _L2Pool(nn.Module):
    """Halves the size: the root of a Hanning-weighted mean of squares, in the place of VGG's maximum (Eq. 2)."""

    def forward(self, x: Tensor) -> Tensor:
        window = torch.hann_window(5, periodic=False, dtype=x.dtype, device=x.device)[1:-1]
        kernel = torch.outer(window, window) / window.sum().square()
        kernel = kernel.expand(x.shape[1], 1, 3, 3)
        return (F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


class DISTS(ImageDistance):
    """The distances (B,) of two batches of images (B, 3, H, W) in [0, 1]; 0 where they are identical.

    Images are clamped and rounded to 8 bits first, as they would be saved, and compared at their own size (the authors'
    script shrinks them to 256 pixels first). Computed in the type of the weights, which take no gradient. The names in
    the state dict are those of torchvision's file (features.*) and of the authors' (alpha, beta).

    Attributes:
        least_size: the least height and width of an image.
    """

    least_size = 16
    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers = [_L2Pool() if isinstance(layer, nn.MaxPool2d) else layer for layer in TRUNKS["vgg"].build()]
        self.features = nn.Sequential(*layers)
        self.alpha, self.beta = (nn.Parameter(torch.empty(1, sum(_CHANNELS), 1, 1)) for _ in range(2))
        self.requires_grad_(False)
        # Of ImageNet's images in [0, 1].
        self._register_constants(mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """`a` and `b`, (B, 3, H, W) in [0, 1] -> (B,); ValueError where shapes differ or are too small."""
        x = self._rounded(a, b, self.mean)
        compared = [self._similarities(x)]
        x = (x - self.mean) / self.deviation
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in _COMPARED:
                compared.append(self._similarities(x))
        textures, structures = (torch.cat(parts, dim=1) for parts in zip(*compared, strict=True))
        alpha, beta = self.alpha.flatten(), self.beta.flatten()
        return 1 - (textures @ alpha + structures @ beta) / (alpha.sum() + beta.sum())

    def _similarities(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of texture (Eq. 5) and of structure (Eq. 6) in each channel of (2B, C, h, w), (B, C) each."""
        means = x.mean(dim=(2, 3))
        centred = x - means[:, :, None, None]
        (mean_a, mean_b), (a, b) = means.chunk(2), centred.chunk(2)
        texture = (2 * mean_a * mean_b + _C) / (mean_a.square() + mean_b.square() + _C)
        covariance = (a * b).mean(dim=(2, 3))
        variances = (a.square() + b.square()).mean(dim=(2, 3))
        return texture, (2 * covariance + _C) / (variances + _C)


def load_dists(
    trunk: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
) -> DISTS:
    """DISTS with its published weights, or others; nothing is downloaded.

    Args:
        trunk: torchvision's file of vgg16; None: the one in the cache of PyTorch's hub.
        weights: the authors' file of alpha and beta, `weights.pt`; None: the one in the package torchmetrics or
            DISTS_pytorch, whichever is installed.
        device: where to compute, in float32.

    Raises:
        FileNotFoundError: there is no such file. This and the following say how to get it.
        ModelError: a file is damaged or holds other weights.
        OSError: a file cannot be read.
    """
    model = DISTS()
    found: dict[str, Tensor] = {}
    for own_file, places, part, how in (
        (trunk, [trunk_file("vgg")], "features.", f"torchvision's file of vgg16, {TRUNKS['vgg'].url}"),
        (weights, list(_packaged()), "", "the authors' file of alpha and beta, weights.pt; pip install torchmetrics"),
    ):
        places = places if own_file is None else [Path(own_file)]
        there = next((place for place in places if place.is_file()), None)
        if there is None:
            looked = ", ".join(map(str, places)) or "in the packages " + " and ".join(_WEIGHTS)
            raise FileNotFoundError(f"DISTS: no file {looked}; wanted is {how}")
        own = {key: value for key, value in model.state_dict().items() if key.startswith("features.") == bool(part)}
        found |= read_exactly(there, own, part, f"DISTS wants {how}")
    model.load_state_dict(found)
    return model.to(device)


def _packaged() -> Iterator[Path]:
    """Where packages have the fitted weights; none is imported."""
    for package, file in _WEIGHTS.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin).parent / file
