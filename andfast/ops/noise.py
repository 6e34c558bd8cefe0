"""The Gaussian field of the noise injection, from a counter-based generator: any element at any time, never stored."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from andfast.ops import dispatch

_WORD = 0xFFFFFFFF


def philox(counter: tuple[Tensor | int, ...], key: tuple[Tensor | int, ...]) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

    Args:
        counter: four int64 tensors (or ints) of 32-bit values, broadcast against each other and the key.
        key: two of the same.

    Returns:
        Four int64 tensors of 32-bit values.
    """
    words = (*counter, *key)
    device = next((word.device for word in words if isinstance(word, Tensor)), None)
    c = list(torch.broadcast_tensors(*(torch.as_tensor(word, dtype=torch.int64, device=device) for word in words)))
    (k0, k1), c = c[4:], c[:4]
    for _ in range(10):
        # int64 products wrap, which leaves their 64 bits right; the mask undoes the shift's sign extension.
        even, odd = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(odd >> 32 & _WORD) ^ c[1] ^ k0, odd & _WORD, (even >> 32 & _WORD) ^ c[3] ^ k1, even & _WORD]
        k0, k1 = k0 + 0x9E3779B9 & _WORD, k1 + 0xBB67AE85 & _WORD
    return c


def gaussian_field_reference(seed: Tensor, layer: int, images: int, size: tuple[int, int]) -> Tensor:
    """`gaussian_field` in plain PyTorch, in float64 up to the result."""
    pixels = size[0] * size[1]
    device = seed.device
    quad = torch.arange((pixels + 3) // 4, device=device)
    image = torch.arange(images, device=device)[:, None]
    words = philox((quad, image, layer, 0), (seed & _WORD, seed >> 32 & _WORD))
    uniform = [(word.double() + 0.5) / 2**32 for word in words]
    normal = []
    for u, v in (uniform[:2], uniform[2:]):
        radius = (-2 * u.log()).sqrt()
        normal += [radius * (2 * math.pi * v).cos(), radius * (2 * math.pi * v).sin()]
    field = torch.stack(normal, dim=-1).flatten(1)[:, :pixels]
    return field.float().view(images, 1, *size)


def gaussian_field(seed: Tensor, layer: int, images: int, size: tuple[int, int]) -> Tensor:
    """A standard normal value for every pixel: a pure function of (seed, layer, image, pixel).

    Equivalent to `gaussian_field_reference`.

    Args:
        seed: int64, no dimensions, >= 0: the network's.
        layer: the number of the noise injection.
        images: how many images the network degrades.
        size: (H, W).

    Returns:
        (images, 1, H, W) float32. Four neighbouring pixels (in row-major order) share one Philox draw, turned
        normal by Box and Muller's transform. All backends give the same numbers, up to the last digits of float32.
    """
    return dispatch.select("gaussian_field", seed, (images, *size))(seed, layer, images, size)


def _gaussian_field_compiled(seed: Tensor, layer: int, images: int, size: tuple[int, int]) -> Tensor:
    """The C++ operator (csrc/cpu/noise.cpp, csrc/cuda/noise.cu)."""
    return torch.ops.andfast.gaussian_field(seed.reshape(1), layer, images, *size).unsqueeze(1)


dispatch.register("gaussian_field", "reference", gaussian_field_reference)
for _device in ("cpu", "cuda"):
    dispatch.register("gaussian_field", _device, _gaussian_field_compiled, device=_device)

if "cpu" not in dispatch.unavailable:

    @torch.library.register_fake("andfast::gaussian_field")
    def _(seed: Tensor, layer: int, images: int, height: int, width: int) -> Tensor:
        return seed.new_empty(seed.shape[0] * images, height, width, dtype=torch.float32)
