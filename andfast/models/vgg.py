"""Features of VGG19 (Simonyan and Zisserman, 2014, arXiv:1409.1556), for the perceptual loss (Sec 3.4)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.hub
import torch.nn.functional as F
from torch import Tensor, nn

from andfast.models.weights import ModelError, check_floating, fit, read_weights, some, wrong_weights
from andfast.ops.conv_act import conv_act

URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
"""Where torchvision's weights of VGG19, trained on ImageNet, are kept."""

DOWNLOAD = "download"
"""Stands for that file: PyTorch's hub fetches it, where there is a network, or has it in its cache."""

# Convolutions and channels of each block; a 2x2 maximum stands between two blocks.
_BLOCKS = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))
# Of ImageNet's images in [0, 1], as torchvision's weights expect them.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_HOW = f"Wanted is torchvision's file of vgg19, {URL} (548 MiB); {DOWNLOAD!r} instead of a file fetches it"

LAYERS: tuple[str, ...] = tuple(
    f"conv{block}_{conv}" for block, (convs, _) in enumerate(_BLOCKS, start=1) for conv in range(1, convs + 1)
)
"""The names of all convolutions, from the first to the deepest: conv1_1, ..., conv5_4."""


def least_size(layers: Iterable[str]) -> int:
    """The least height and width of images that leave a pixel at the deepest of these layers.

    Raises:
        ValueError: there is no such layer, or none is given.
    """
    return 2 ** max(_block(layer) for layer in _known(layers))


class VGGFeatures(nn.Module):
    """What convolutions of VGG19 give, before their ReLU.

    (B, 3, H, W) in [0, 1] -> by layer (B, C, H / 2^b, W / 2^b), channels_last; sizes are rounded down, b counts the
    poolings before the layer, C is 64, 128, 256, 512, 512. Images are normalised as ImageNet's in float32, and the rest
    is computed in the type of the weights. Nothing deeper than the deepest layer wanted is computed. The weights take
    no gradient, so that convolutions keep nothing but signs for that of the image. The names in the state dict are
    those of torchvision's `vgg19`.

    Args:
        layers: names of `LAYERS`, in any order.

    Raises:
        ValueError: there is no such layer, or none is given.
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
    """VGG19's features with torchvision's weights.

    Args:
        source: their file, as torchvision distributes it or without the classifier, `.pth`, `.pt` or `.safetensors`; or
            `DOWNLOAD`.
        layers: as for `VGGFeatures`; no other weights are kept than these need.
        device, dtype: where and in what type to compute.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: it is damaged or holds other weights, or it cannot be fetched. Both say how to get it.
        ValueError: there is no such layer, or none is given.
        OSError: it cannot be read.
    """
    model = VGGFeatures(layers)
    path = fetch_vgg() if os.fspath(source) == DOWNLOAD else source
    try:
        state, _ = read_weights(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. {_HOW}") from None
    except ModelError as error:
        raise ModelError(f"{error}. {_HOW}") from error
    try:
        state = fit(state, _checked)
    except ModelError as error:
        raise ModelError(f"{path}: {error}. {_HOW}") from None
    model.load_state_dict({key: state[key] for key in model.state_dict()})
    model.features.to(dtype=dtype, memory_format=torch.channels_last)
    return model.to(device)


def _checked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Refuse weights that are not all of VGG19's: other networks have the first of its layers, too."""
    state = {key: value for key, value in state.items() if key.startswith("features.")}
    with torch.device("meta"):
        own = VGGFeatures().state_dict()
    wrong = wrong_weights(own, state)
    if wrong:
        raise ModelError(
            f"not VGG19: of its weights {len(wrong)} are missing, too many or of another shape: {some(wrong)}"
        )
    check_floating(own, state)
    return state


def fetch_vgg() -> Path:
    """The file in the cache of PyTorch's hub, where torchvision has it, too; fetched if it is not there.

    Raises:
        ModelError: it cannot be fetched; the message says how else to get it.
    """
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
    """Which block a layer is in, from 0; so many poolings lie before it."""
    return int(layer[4]) - 1


def _index(layer: str) -> str:
    """Its place in torchvision's `features`, where a ReLU follows each convolution, and a pooling each block."""
    return str(2 * LAYERS.index(layer) + _block(layer))
