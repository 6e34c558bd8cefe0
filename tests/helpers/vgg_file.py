"""A file of weights such as torchvision's of VGG19, with random ones, and what they make of images, written anew."""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

# torchvision's `vgg19().features`: places of the convolutions, their channels, and places of the poolings.
PLACES = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
CHANNELS = (3, 64, 64, 128, 128, *(256,) * 4, *(512,) * 8)
POOLINGS = (4, 9, 18, 27, 36)
# The places of the layers that the perceptual loss takes.
WANTED = {"conv1_2": 2, "conv2_2": 7, "conv3_4": 16, "conv4_4": 25, "conv5_4": 34}


@functools.cache
def random_vgg() -> dict[str, Tensor]:
    """Weights that keep the signal's size, with one of the classifier's beside them."""
    random = torch.Generator().manual_seed(0)
    state = {"classifier.6.bias": torch.zeros(1000)}
    for place, inputs, outputs in zip(PLACES, CHANNELS, CHANNELS[1:], strict=False):
        weight = torch.randn(outputs, inputs, 3, 3, generator=random) * (2 / (9 * inputs)) ** 0.5
        state[f"features.{place}.weight"] = weight
        state[f"features.{place}.bias"] = 0.1 * torch.randn(outputs, generator=random)
    return state


def write_vgg(path: Path) -> dict[str, Tensor]:
    """Write such a file; returns its weights."""
    state = random_vgg()
    torch.save(state, path)
    return state


def vgg_features(state: dict[str, Tensor], image: Tensor, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """What torchvision's network makes of images (B, 3, H, W) in [0, 1], place by place."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]).to(image), torch.tensor([0.229, 0.224, 0.225]).to(image)
    x = ((image.movedim(1, -1) - mean) / std).movedim(-1, 1).to(dtype)
    names = {place: name for name, place in WANTED.items()}
    found = {}
    for place in range(max(WANTED.values()) + 1):
        if place in PLACES:
            x = F.conv2d(x, *(state[f"features.{place}.{kind}"].to(dtype) for kind in ("weight", "bias")), padding=1)
            if place in names:
                found[names[place]] = x
        else:
            x = F.max_pool2d(x, 2) if place in POOLINGS else F.relu(x)
    return found
