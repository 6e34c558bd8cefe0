"""Networks that are not andfast's own, as generators: what those of spandrel and of users' own classes share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

WINDOW = 16
"""The window size of transformers is 8 or 16 pixels, and not to be known from outside."""


class ForeignModel(nn.Module):
    """A network of another program.

    Attributes:
        model: the network, whose state dict has the names that other programs know.
        scale: the factor.
        architecture: its name; see `andfast.models.generators.architecture_name`.
        align: tiles must begin at multiples of it, so that windows cut them as they cut the whole image.
    """

    align = WINDOW

    def __init__(self, model: nn.Module, scale: int, architecture: str) -> None:
        super().__init__()
        self.model, self.scale, self.architecture = model, scale, architecture

    def prepare_training(self) -> Self:
        """Set training mode, and let those weights take a gradient that the result depends on.

        SPAN, for one, stores fused convolutions beside those that they are computed from.
        """
        self.requires_grad_()
        self.use_training_paths()  # batch norms keep their statistics
        weights = list(self.parameters())
        gradients = torch.autograd.grad(self(self._trial_image()).sum(), weights, allow_unused=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.requires_grad_(gradient is not None)
        return self.train()

    def use_training_paths(self) -> None:
        """In evaluation mode, compute as in training, but for dropout and batch norms.

        Evaluation paths of some architectures write into their input, or fuse weights anew in each pass, which a
        gradient with respect to the image cannot pass, or not fast.
        """
        self.eval()
        for module in self.model.modules():
            random = type(module).__name__.lower().startswith(("drop", "stochastic"))
            if not random and not type(module).__module__.startswith("torch.nn."):
                module.training = True

    @torch.no_grad()
    def has_training_paths(self) -> bool:
        """Whether `use_training_paths` changes nothing but rounding; the mode is the same afterwards."""
        with self._restoring_mode():
            image = self._trial_image()
            expected = self.eval()(image)
            self.use_training_paths()
            return all(torch.allclose(self(image), expected, rtol=1e-3, atol=1e-3) for _ in range(2))

    def portable_state(self) -> dict[str, Tensor]:
        """The state dict of the network itself, without wrappers.

        Architectures such as SPAN fuse convolutions when they are called in evaluation mode, and store the result.
        """
        with self._restoring_mode(), torch.no_grad():
            self.eval()(self._trial_image())
        return self.model.state_dict()

    def _trial_image(self) -> Tensor:
        weight, generator = next(self.parameters()), torch.Generator().manual_seed(0)
        return torch.rand(1, 3, 2 * self.align, 2 * self.align, generator=generator).to(weight.device, weight.dtype)

    @contextmanager
    def _restoring_mode(self) -> Iterator[None]:
        modes = {module: module.training for module in self.modules()}
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
