"""LPIPS, version 0.1: the distance of two images in the features of a network, fitted to people's judgements.

Zhang, Isola, Efros, Shechtman, Wang, "The unreasonable effectiveness of deep features as a perceptual metric" (2018,
arXiv:1801.03924).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.hub
from torch import Tensor, nn

from andfast.models.weights import read_exactly

Net = Literal["alex", "vgg"]
NETS: tuple[Net, ...] = ("alex", "vgg")


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True),
    )  # fmt: skip


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for outputs in (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512):
        if outputs is None:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = outputs
    return nn.Sequential(*layers)


class Trunk(NamedTuple):
    """A network, with the layers numbered as in torchvision's `features`."""

    build: Callable[[], nn.Sequential]
    compared: tuple[int, ...]  # the ReLUs after which images are compared
    least_size: int  # of an image that leaves a pixel at the last layer
    name: str
    url: str  # torchvision's file of weights


TRUNKS: dict[Net, Trunk] = {
    "alex": Trunk(
        _alexnet, (1, 4, 7, 9, 11), 31, "alexnet", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
    ),
    "vgg": Trunk(_vgg16, (3, 8, 15, 22, 29), 16, "vgg16", "https://download.pytorch.org/models/vgg16-397923af.pth"),
}
# Packages that bring the linear layers, and where in them; both have the same.
_LINEAR = {"torchmetrics": "functional/image/lpips_models", "lpips": "weights/v0.1"}


class ImageDistance(nn.Module):
    """What LPIPS and DISTS share: 8-bit pairs of images for a network, whose weights take no gradient.

    Attributes:
        least_size: the least height and width of an image.
    """

    least_size: int

    def digest(self) -> str:
        """A checksum of the weights."""
        return digest_of(self)

    def _register_constants(self, **values: tuple[float, float, float]) -> None:
        """Buffers (3, 1, 1) that are no part of the state dict."""
        for name, colours in values.items():
            self.register_buffer(name, torch.tensor(colours, device="cpu")[:, None, None], persistent=False)

    def _rounded(self, a: Tensor, b: Tensor, like: Tensor) -> Tensor:
        """`a` and `b`, (B, 3, H, W), as they would be saved: (2B, 3, H, W) in [0, 1], of the type of `like`."""
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 3 or min(a.shape[2:]) < self.least_size:
            raise ValueError(
                f"wanted two batches (B, 3, H, W) of one shape, H and W at least {self.least_size}, "
                f"not {tuple(a.shape)} and {tuple(b.shape)}"
            )
        return (torch.cat([a, b]).to(like).clamp(0, 1) * 255).round() / 255


class LPIPS(ImageDistance):
    """The distances (B,) of two batches of images (B, 3, H, W) in [0, 1]; 0 where they are identical.

    Images are clamped and rounded to 8 bits first, as they would be saved. Computed in the type of the weights, which
    take no gradient. The names in the state dict are those of torchvision's files (features.*) and of the lpips
    package's (lin*.model.1.weight).

    Args:
        net: "alex" (AlexNet), which papers report mostly, or "vgg" (VGG16).

    Attributes:
        least_size: the least height and width of an image.

    Raises:
        ValueError: there is no such network.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net = "alex") -> None:
        super().__init__()
        if net not in NETS:
            raise ValueError(f"LPIPS has no network {net!r}; it has {', '.join(NETS)}")
        trunk = TRUNKS[net]
        self.net, self.compared, self.least_size = net, trunk.compared, trunk.least_size
        self.features = trunk.build()
        for index, place in enumerate(self.compared):
            channels = len(self.features.get_parameter(f"{place - 1}.weight"))
            linear = nn.Conv2d(channels, 1, 1, bias=False)
            self.add_module(f"lin{index}", nn.ModuleDict({"model": nn.ModuleDict({"1": linear})}))
        self.requires_grad_(False)
        # Of ImageNet's images in [-1, 1].
        self._register_constants(shift=(-0.030, -0.088, -0.188), scale=(0.458, 0.448, 0.450))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """`a` and `b`, (B, 3, H, W) in [0, 1] -> (B,); ValueError where shapes differ or are too small."""
        x = (self._rounded(a, b, self.shift) * 2 - 1 - self.shift) / self.scale
        distance = torch.zeros(len(a), dtype=x.dtype, device=x.device)
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in self.compared:
                unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
                difference = unit[: len(a)].sub(unit[len(a) :]).square_()
                linear = self.get_submodule(f"lin{self.compared.index(place)}.model.1")
                distance += linear(difference).mean(dim=(1, 2, 3))
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
        FileNotFoundError: there is no such file. This and the following say how to get it.
        ModelError: a file is damaged or holds other weights.
        ValueError: there is no such network.
        OSError: a file cannot be read.
    """
    model = LPIPS(net)
    source = TRUNKS[net]
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


def digest_of(model: nn.Module) -> str:
    """A checksum of a network's weights."""
    state = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        state.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def trunk_file(net: Net) -> Path:
    """Where PyTorch's hub keeps torchvision's weights of a trunk."""
    return Path(torch.hub.get_dir()) / "checkpoints" / TRUNKS[net].url.rpartition("/")[2]


def _places(net: Net, part: str) -> Iterator[Path]:
    """The default places of weights."""
    if part == "features.":
        yield trunk_file(net)
        return
    for package, folder in _LINEAR.items():
        spec = importlib.util.find_spec(package)  # does not import it
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin).parent / folder / f"{net}.pth"
