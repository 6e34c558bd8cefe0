"""Small images for studies."""

from pathlib import Path

import numpy as np
from PIL import Image

from andfast.degradation.camera import camera_like


def photograph(seed: int, size: int = 64) -> np.ndarray:
    """Smooth, with some grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.array(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=int)
    return (smooth + random.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)


def write_photographs(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for seed in range(count):
        Image.fromarray(photograph(seed)).save(folder / f"photo_{seed}.png")
    return folder


def write_pairs(folder: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names, start=1000):
        hr = photograph(seed)
        for kind, image in (("HR", hr), ("LR", camera_like(hr, 4, seed))):
            path = folder / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder
