"""Random choices of a batch: parameters for each image, on its device, and what the host must know, from one source."""

from __future__ import annotations

import hashlib
import random

import torch
from torch import Tensor

from andfast.utils.rng import SharedGenerator


class Draws:
    """Random numbers for a batch.

    Args:
        images: how many.
        device: theirs.
        generator: a generator of that device, which everything follows from; None for torch's own on the CPU. Of a
            `SharedGenerator` it is the process's own: what is decided on the host cannot be drawn for all processes.

    Attributes:
        generator: the generator, for what an image is made of.
        host: for what shapes or orders tensors, and so is decided on the host, once for the whole batch. It follows
            from the generator's state, which the host knows: nothing waits for the device.
    """

    def __init__(self, images: int, device: torch.device, generator: torch.Generator | None = None) -> None:
        if generator is None:
            generator = torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))
        elif isinstance(generator, SharedGenerator):
            generator = generator.local
        self.images, self.device, self.generator = images, device, generator
        state = hashlib.blake2b(generator.get_state().numpy().tobytes(), digest_size=8)
        self.host = random.Random(int.from_bytes(state.digest(), "big"))
        # The state must have moved before anything else is drawn from it in this way.
        self.uniform(0, 1)

    def uniform(self, low: float, high: float) -> Tensor:
        """(B,) float32, uniform in [low, high)."""
        return low + (high - low) * torch.rand(self.images, device=self.device, generator=self.generator)

    def integers(self, low: int, high: int) -> Tensor:
        """(B,) float32, whole numbers from low to high, both included."""
        return self.uniform(low, high + 1).floor().clamp(max=high)

    def chance(self, probability: float) -> Tensor:
        """(B,) bool, true with this probability."""
        return self.uniform(0, 1) < probability
