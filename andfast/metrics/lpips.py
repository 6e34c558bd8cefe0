"""LPIPS: how far two images are apart for a network that people's judgements were fitted to, version 0.1.

Zhang, Isola, Efros, Shechtman, Wang, "The unreasonable effectiveness of deep features as a perceptual metric" (2018,
arXiv:1801.03924).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.hub
import torch.nn.functional as F
from torch import Tensor, nn

from andfast.models.weights import read_exactly

Net = Literal["alex", "vgg"]
NETS: tuple[Net, ...] = ("alex", "vgg")


class _Pool(NamedTuple):
    size: int
    stride: int = 2


class _Conv(NamedTuple):
    """A convolution with a ReLU after it; `judged`: what comes out is compared."""

    place: int  # in torchvision's `features`
    inputs: int
    outputs: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    judged: bool = False


_ALEX = (
    _Conv(0, 3, 64, 11, 4, 2, judged=True),
    _Pool(3),
    _Conv(3, 64, 192, 5, 1, 2, judged=True),
    _Pool(3),
    _Conv(6, 192, 384, judged=True),
    _Conv(8, 384, 256, judged=True),
    _Conv(10, 256, 256, judged=True),
)
_VGG = (
    _Conv(0, 3, 64),
    _Conv(2, 64, 64, judged=True),
    _Pool(2),
    _Conv(5, 64, 128),
    _Conv(7, 128, 128, judged=True),
    _Pool(2),
    _Conv(10, 128, 256),
    _Conv(12, 256, 256),
    _Conv(14, 256, 256, judged=True),
    _Pool(2),
    _Conv(17, 256, 512),
    _Conv(19, 512, 512),
    _Conv(21, 512, 512, judged=True),
    _Pool(2),
    _Conv(24, 512, 512),
    _Conv(26, 512, 512),
    _Conv(28, 512, 512, judged=True),
)


class _Source(NamedTuple):
    """A network, and the file of weights that torchvision distributes for it."""

    layers: tuple[_Conv | _Pool, ...]
    name: str
    url: str


_SOURCES: dict[Net, _Source] = {
    "alex": _Source(_ALEX, "alexnet", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"),
    "vgg": _Source(_VGG, "vgg16", "https://download.pytorch.org/models/vgg16-397923af.pth"),
}
# Packages that bring the linear layers, and where in them; both have the same.
_LINEAR = {"torchmetrics": "functional/image/lpips_models", "lpips": "weights/v0.1"}


class LPIPS(nn.Module):
    """Two batches of images (B, 3, H, W) in [0, 1] -> their distances (B,), 0 where they are identical.

    Clamped and rounded to 8 bits first, as they would be saved. Computed in the type of the weights, which take no
    gradient. The names in the state dict are those of torchvision's files (features.*) and of the lpips package's
    (lin*.model.1.weight).

    Args:
        net: "alex" (AlexNet), which papers report mostly, or "vgg" (VGG16).

    Raises:
        ValueError: there is no such network.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net = "alex") -> None:
        super().__init__()
        if net not in NETS:
            raise ValueError(f"LPIPS has no network {net!r}; it has {', '.join(NETS)}")
        self.net = net
        self.layers = _SOURCES[net].layers
        convs = [layer for layer in self.layers if isinstance(layer, _Conv)]
        self.features = nn.ModuleDict({str(conv.place): nn.Conv2d(*conv[1:6]) for conv in convs})
        for index, conv in enumerate(conv for conv in convs if conv.judged):
            linear = nn.Conv2d(conv.outputs, 1, 1, bias=False)
            self.add_module(f"lin{index}", nn.ModuleDict({"model": nn.ModuleDict({"1": linear})}))
        self.requires_grad_(False)
        # Of ImageNet's images in [-1, 1].
        for name, values in (("shift", (-0.030, -0.088, -0.188)), ("scale", (0.458, 0.448, 0.450))):
            self.register_buffer(name, torch.tensor(values, device="cpu")[:, None, None], persistent=False)

    @property
    def least_size(self) -> int:
        """The least height and width of an image that leave a pixel at the last layer."""
        size = 1
        for layer in reversed(self.layers):
            size = (size - 1) * layer.stride + layer.size - 2 * getattr(layer, "padding", 0)
        return size

    def digest(self) -> str:
        """A text that changes with any of its weights."""
        state = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            state.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return state.hexdigest()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """`a` and `b`, (B, 3, H, W) in [0, 1] -> (B,); ValueError where shapes differ or are too small."""
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 3 or min(a.shape[2:]) < self.least_size:
            raise ValueError(
                f"wanted two batches (B, 3, H, W) of one shape, H and W at least {self.least_size}, "
                f"not {tuple(a.shape)} and {tuple(b.shape)}"
            )
        both = torch.cat([a, b]).to(self.shift)
        x = ((both.clamp(0, 1) * 255).round() / 255 * 2 - 1 - self.shift) / self.scale
        distance, judged = torch.zeros(len(a), dtype=x.dtype, device=x.device), 0
        for layer in self.layers:
            if isinstance(layer, _Pool):
                x = F.max_pool2d(x, layer.size, layer.stride)
                continue
            x = self.features[str(layer.place)](x).relu_()
            if layer.judged:
                unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
                difference = unit[: len(a)].sub(unit[len(a) :]).square_()
                linear = self.get_submodule(f"lin{judged}.model.1")
                distance += linear(difference).mean(dim=(1, 2, 3))
                judged += 1
        return distance


def load_lpips(
    net: Net = "alex",
    trunk: str | os.PathLike[str] | None = None,
    linear: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
) -> LPIPS:
    """LPIPS with its published weights, or others; nothing is downloaded.

    Args:
        net: as for `LPIPS`.
        trunk: torchvision's file of alexnet or vgg16; None: the one in the cache of PyTorch's hub.
        linear: the lpips package's file of linear layers, `alex.pth` or `vgg.pth` of v0.1; None: the one in the package
            torchmetrics or lpips, whichever is installed.
        device: where to compute, in float32.

    Raises:
        FileNotFoundError: a file is not there. This and the following say how to get it.
        ModelError: a file is damaged or holds other weights.
        ValueError: there is no such network.
        OSError: a file cannot be read.
    """
    model = LPIPS(net)
    source = _SOURCES[net]
    found: dict[str, Tensor] = {}
    for part, path, how in (
        ("features.", trunk, f"torchvision's file of {source.name}, {source.url}"),
        ("lin", linear, f"lpips's file of linear layers, {net}.pth of v0.1; pip install torchmetrics brings it"),
    ):
        places = list(_places(net, part)) if path is None else [Path(path)]
        there = next((place for place in places if place.is_file()), None)
        if there is None:
            looked = ", ".join(map(str, places)) or "in the packages " + " and ".join(_LINEAR)
            raise FileNotFoundError(f"LPIPS ({net}): no file {looked}; wanted is {how}")
        own = {key: value for key, value in model.state_dict().items() if key.startswith(part)}
        found |= read_exactly(there, own, part, f"LPIPS ({net}) wants {how}")
    model.load_state_dict(found)
    return model.to(device)


def _places(net: Net, part: str) -> Iterator[Path]:
    """Where weights are looked for that nobody names."""
    if part == "features.":
        yield Path(torch.hub.get_dir()) / "checkpoints" / _SOURCES[net].url.rpartition("/")[2]
        return
    for package, folder in _LINEAR.items():
        spec = importlib.util.find_spec(package)  # does not import it
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin).parent / folder / f"{net}.pth"
