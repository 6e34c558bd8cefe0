"""Features of VGG19 (Simonyan and Zisserman, 2014, arXiv:1409.1556), for the perceptual loss (Sec 3.4)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.hub
import torch.nn.functional as F
from torch import Tensor, nn

from andfast.models.weights import ModelError, read_exactly, some
from andfast.ops.conv_act import conv_act

URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
"""Torchvision's weights of VGG19, trained on ImageNet."""

DOWNLOAD = "download"
"""Stands for that file, from the cache of PyTorch's hub or from the network."""

# Convolutions and channels of each block; 2x2 maximum pooling is between the blocks.
_BLOCKS = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))
# Of ImageNet's images in [0, 1], as torchvision's weights expect.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_HOW = f"Wanted is torchvision's file of vgg19, {URL} (548 MiB); {DOWNLOAD!r} instead of a file fetches it"

LAYERS: tuple[str, ...] = tuple(
    f"conv{block}_{conv}" for block, (convs, _) in enumerate(_BLOCKS, start=1) for conv in range(1, convs + 1)
)
"""The names of all convolutions, first to deepest: conv1_1, ..., conv5_4."""


def least_size(layers: Iterable[str]) -> int:
    """The least height and width of images that leave a pixel at the deepest of these layers."""
    return 2 ** max(_block(layer) for layer in _known(layers))


class VGGFeatures(nn.Module):
    """Results of VGG19's convolutions, before their ReLU.

    (B, 3, H, W) in [0, 1] -> by layer (B, C, H / 2^b, W / 2^b), channels_last; sizes are rounded down, b counts the
    poolings before the layer, C is 64, 128, 256, 512, 512. Images are normalised in float32; the rest is computed in
    the type of the weights, up to the deepest of `layers`. The weights take no gradient, so that convolutions keep only
    signs for the image's. The names in the state dict are those of torchvision's `vgg19`.

    Raises:
        ValueError: a name that is not in `LAYERS`, or none given.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layers: Iterable[str] = LAYERS) -> None:
        super().__init__()
        wanted = set(_known(layers))
        self.layers = tuple(layer for layer in LAYERS if layer in wanted)
        self.least_size = least_size(self.layers)
        self.features = nn.ModuleDict()
        channels = 3
        for layer in LAYERS[: LAYERS.index(self.layers[-1]) + 1]:
            width = _BLOCKS[_block(layer)][1]
            self.features[_index(layer)] = nn.Conv2d(channels, width, 3, padding=1)
            channels = width
        self.requires_grad_(False)
        # On the CPU also where weights are made without memory: no file has them.
        for name, values in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(name, torch.tensor(values, device="cpu")[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """`image` (B, 3, H, W) in [0, 1] -> features by the names of `layers`; ValueError for another shape."""
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[2:]) < self.least_size:
            raise ValueError(
                f"image has shape {tuple(image.shape)}; it must be (B, 3, H, W) with H and W at least "
                f"{self.least_size} for {self.layers[-1]}"
            )
        dtype = next(self.features.parameters()).dtype
        x = ((image - self.mean) / self.std).to(dtype, memory_format=torch.channels_last)
        found = {}
        for layer in LAYERS[: len(self.features)]:
            if _block(layer) and layer.endswith("_1"):
                x = F.max_pool2d(x, 2)
            conv = self.features[_index(layer)]
            if layer in self.layers:
                found[layer] = conv_act(x, conv.weight, conv.bias)
                x = F.relu(found[layer]) if len(found) < len(self.layers) else x
            else:
                x = conv_act(x, conv.weight, conv.bias, slope=0.0)
        return found


def load_vgg_features(
    source: str | os.PathLike[str],
    layers: Iterable[str] = LAYERS,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> VGGFeatures:
    """Load VGG19's features with torchvision's weights.

    Args:
        source: torchvision's file, with or without the classifier; or `DOWNLOAD`.
        layers: as for `VGGFeatures`; only the weights that these need are kept.
        device, dtype: where and in what type to compute.

    Raises:
        FileNotFoundError: no such file.
        ModelError: it is damaged, holds other weights, or cannot be fetched.
        ValueError: no such layer, or none given.
        OSError: the file cannot be read.
    """
    model = VGGFeatures(layers)
    path = fetch_vgg() if os.fspath(source) == DOWNLOAD else source
    with torch.device("meta"):  # all weights are checked: other networks share the first layers
        own = VGGFeatures().state_dict()
    state = read_exactly(path, own, "features.", _HOW, "not VGG19: ")
    model.load_state_dict({key: state[key] for key in model.state_dict()})
    model.features.to(dtype=dtype, memory_format=torch.channels_last)
    return model.to(device)


def fetch_vgg() -> Path:
    """Return torchvision's file in the cache of PyTorch's hub; fetch it if it is not there, or raise ModelError."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / URL.rpartition("/")[2]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=path.stem.rpartition("-")[2])
        except (OSError, RuntimeError) as error:  # no network, no such page, no space; another hash
            raise ModelError(f"{URL} could not be fetched ({error}). {_HOW}") from error
    return path


def _known(layers: Iterable[str]) -> list[str]:
    layers = list(layers)
    unknown = [layer for layer in layers if layer not in LAYERS]
    if unknown or not layers:
        what = f"has no layer {some(unknown)}" if unknown else "was asked for no layer"
        raise ValueError(f"VGG19 {what}; its layers are {', '.join(LAYERS)}")
    return layers


def _block(layer: str) -> int:
    """The layer's block, from 0, which is also the number of poolings before it."""
    return int(layer[4]) - 1


def _index(layer: str) -> str:
    """Its index in torchvision's `features`, where a ReLU follows each convolution, and a pooling each block."""
    return str(2 * LAYERS.index(layer) + _block(layer))
