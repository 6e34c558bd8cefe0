"""Small networks and files for the tests of upscaling."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from andfast.models import Compact, build_generator, save_model


def compact(scale: int = 2, convs: int = 3) -> Compact:
    """Receptive field: convs + 2 pixels to each side, and far enough from its start to use all of it."""
    torch.manual_seed(0)
    model = Compact(scale, features=8, convs=convs).eval()
    with torch.no_grad():
        model.body[-1].weight.mul_(30)
    return model


def save_two_models(folder: Path) -> None:
    """Write one.safetensors and two.safetensors, different models of scale 4."""
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = build_generator("compact", 4, features=8, convs=1)
        torch.nn.init.normal_(model.body[-1].weight, std=0.02)
        save_model(model, folder / f"{name}.safetensors")


def nearest(scale: int = 2) -> Compact:
    """Repeats every pixel, exactly: what is not the network's work shows in its results."""
    model = Compact(scale, features=2, convs=0).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    return model


def noise(height: int, width: int, channels: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """(height, width, channels) of all values of a type."""
    most = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, most, (height, width, channels), dtype=dtype, endpoint=True)


def picture(path: Path, height: int = 9, width: int = 14, seed: int = 0) -> np.ndarray:
    """Noise, and a file of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = noise(height, width, 3, seed=seed)
    Image.fromarray(pixels).save(path)
    return pixels
