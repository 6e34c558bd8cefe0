"""Files of weights such as LPIPS is published with, with random ones, and its distance by torchvision's networks."""

from pathlib import Path

import torch
from torch import Tensor

from andfast.utils import torchvision_operators

# Of lpips 0.1.4: the channels that the linear layers weigh.
CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
# Where in torchvision's `features` lpips 0.1.4 takes what it compares: after these ReLUs.
TAKEN = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}


def trunk(net: str, seed: int = 0) -> torch.nn.Module:
    """torchvision's network with random weights that keep the signal's size."""
    torchvision_operators.declare_missing()
    import torchvision.models

    random = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}[net]()
    model = model.features.to_empty(device="cpu")
    for parameter in model.parameters():
        fan = parameter[0].numel()
        values = torch.randn(parameter.shape, generator=random)
        parameter.data = values * (2 / fan) ** 0.5 if parameter.ndim > 1 else 0.1 * values
    return model.requires_grad_(False)


def linear(net: str, seed: int = 1) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        f"lin{index}.model.1.weight": torch.rand(1, channels, 1, 1, generator=random)
        for index, channels in enumerate(CHANNELS[net])
    }


def write(folder: Path, net: str) -> tuple[Path, Path]:
    """The two files: torchvision's, with one of the classifier's weights, and lpips's."""
    state = {f"features.{key}": value for key, value in trunk(net).state_dict().items()}
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, folder / f"{net}_trunk.pth")
    torch.save(linear(net), folder / f"{net}.pth")
    return folder / f"{net}_trunk.pth", folder / f"{net}.pth"


def distance(net: str, a: Tensor, b: Tensor) -> Tensor:
    """LPIPS of 8-bit images (B, 3, H, W), in float64: the paper's Eq. 1 with what version 0.1 does to images."""
    model, weights = trunk(net).double(), list(linear(net).values())
    total = torch.zeros(len(a), dtype=torch.float64)
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(3, 1, 1)
    x, y = ((image.double() / 127.5 - 1 - shift) / scale for image in (a, b))
    for place, layer in enumerate(model[: TAKEN[net][-1] + 1]):
        x, y = layer(x.clone()), layer(y.clone())
        if place in TAKEN[net]:
            weight = weights[TAKEN[net].index(place)].double().view(-1, 1, 1)
            difference = torch.nn.functional.normalize(x, dim=1) - torch.nn.functional.normalize(y, dim=1)
            total += (weight * difference**2).sum(dim=1).mean(dim=(1, 2))
    return total
