"""The degradation network in simple PyTorch code, which the operations are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from andfast.ops.blur_pool import pooling_taps
from andfast.ops.theta_layout import ThetaLayout


class EagerNetwork(nn.Module):
    """A bank of N networks with noise maps; one convolution a layer, grouped if there are several networks.

    A convolution's weight is the sum of the identity and the deviation, which is less accurate in half types (see
    `andfast.ops.degradation_block.split_conv`).

    Args:
        layout: of `theta`; its noise must be of the kind "map".
        theta: (N, P), `DegradationNetwork.theta`; the parameters have its type.
        dtype: the type to compute in. Parameters and images are cast to it at every call, as autocast does.
        memory_format: of images.
    """

    def __init__(
        self,
        layout: ThetaLayout,
        theta: Tensor,
        dtype: torch.dtype,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        if layout.noise_kind != "map":
            raise ValueError(f"the layout's noise is {layout.noise_kind!r}; it must be 'map'")
        self.layout, self.networks, self.dtype, self.memory_format = layout, len(theta), dtype, memory_format
        self.weights = nn.ParameterList(
            segment.view(theta).flatten(0, 1).unflatten(2, (3, 3)) for segment in layout.conv
        )
        self.noise = nn.ParameterList(segment.view(theta).clone() for segment in layout.noise)
        self.slopes = nn.ParameterList(segment.view(theta).flatten() for segment in layout.slope)
        taps = torch.tensor(pooling_taps(layout.scale), dtype=dtype, device=theta.device)
        kernel = torch.outer(taps, taps).expand(self.networks * layout.channels, 1, -1, -1).contiguous()
        self.register_buffer("pooling", kernel)

    def forward(self, hr: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H/scale, W/scale); image b belongs to network b // (B/N)."""
        networks, each = self.networks, len(hr) // self.networks
        x = hr.to(self.dtype)
        if networks > 1:  # the networks side by side in the channels
            x = x.unflatten(0, (networks, each)).transpose(0, 1).flatten(1, 2)
        x = x.contiguous(memory_format=self.memory_format)
        for layer in range(len(self.noise)):
            weight, slopes, noise = self.weights[layer], self.slopes[layer], self.noise[layer]
            x = eager_block(x, self._as_computed(weight), slopes.to(self.dtype), noise.to(self.dtype))
            if layer == self.layout.blocks - 1:
                padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
                x = F.conv2d(padded, self.pooling, stride=self.layout.scale, groups=len(self.pooling))
        x = F.conv2d(replicated(x), self._as_computed(self.weights[-1]), groups=networks)
        return x.unflatten(1, (networks, -1)).transpose(0, 1).flatten(0, 1) if networks > 1 else x

    def _as_computed(self, weight: Tensor) -> Tensor:
        return weight.to(self.dtype, memory_format=self.memory_format)

    def as_delta(self, grads: tuple[Tensor, ...]) -> Tensor:
        """The gradients of `parameters()` as `degradation_forward` gives them: (N, P), convolutions in moments."""
        taps = torch.cat([grad.reshape(self.networks, -1) for grad in grads], dim=1)
        return self.layout.to_moments(taps)


def eager_block(x: Tensor, weight: Tensor, slopes: Tensor, noise: Tensor) -> Tensor:
    """A block of N networks side by side in the channels: one grouped convolution, LeakyReLU, noise maps.

    Args:
        x: (images a network, N in, H, W).
        weight: (N out, in, 3, 3); slopes: (N,); noise: (N, 1, H, W), all in the type of `x`.
    """
    networks = len(slopes)
    x = F.conv2d(replicated(x), weight, groups=networks)
    x = F.prelu(x, slopes.repeat_interleave(len(weight) // networks))  # F.leaky_relu takes no slope with a gradient
    return (x.unflatten(1, (networks, -1)) + noise).flatten(1, 2)


def replicated(x: Tensor) -> Tensor:
    """`x` with a replicated border of one pixel."""
    if torch.compiler.is_compiling():
        # Inductor takes the gradient of F.pad's replication for contiguous, which on the CPU it is not in
        # channels_last (seen in torch 2.13: its own assertion then fails). Slices are fused, besides.
        x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)
        return torch.cat([x[..., :1], x, x[..., -1:]], dim=3)
    return F.pad(x, (1, 1, 1, 1), mode="replicate")
