"""The degradation prior: slightly deviated identity networks (Sec 3.1 and 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from andfast.ops.blur_pool import blur_pool
from andfast.ops.degradation_forward import degradation_forward
from andfast.ops.identity_init import identity_centres
from andfast.ops.theta_layout import NoiseKind, ThetaLayout
from andfast.utils.rng import draw_rows

SCALES = (1, 2, 3, 4, 8)
"""The super-resolution factors; 1 is denoising and the like."""

_NO_PARAMETERS = "the network has no parameters yet: call reset_identity(image_size) first"


class DegradationNetwork(nn.Module):
    """A bank of N independent degradation networks F: HR image in, degraded LR image out.

    Each is `blocks` times [conv 3x3 -> LeakyReLU -> noise injection], anti-aliased average pooling by `scale` (none at
    scale 1), the blocks once more, and a last conv 3x3. No biases. The parameters of a network are one row of a matrix,
    `theta` = `theta_id` + deviation; after `reset_identity` the deviation is zero and every network of the bank is
    the identity followed by the pooling. A bank can be reset any number of times, for any image size.

    With N = 1 all images of a batch share one network; with N = B every image has its own (the paper's Eq. 1 has
    the maximum inside the expectation). In between, image b belongs to network b // (B/N).

    Args:
        scale: the downsampling factor, one of `SCALES`; 1 is for restoration at the same size.
        num_networks: N.
        channels: width of the hidden layers.
        blocks: number of blocks before the pooling, and again after it.
        noise: what a noise injection adds, searched by the adversary. "map": a value a pixel, the same in all channels;
            such maps can make block artefacts and dust. "gaussian": a strength a channel, times a fixed Gaussian field
            (StyleGAN's noise injection).
        dtype: the type to compute in: `andfast.ops.precision` chooses one in training; theta is always float32. The
            fewer channels, the more of the image the rounding of half types costs.
        device: of parameters and images.

    Attributes:
        layout: the columns of theta; None before `reset_identity`.
        theta_id: (N, P) float32, the identity; the columns of a convolution are its taps.
        delta: (N, P) float32, the deviation; the columns of a convolution are moments (`ThetaLayout`). It is kept apart
            because half types cannot hold the sum.
    """

    layout: ThetaLayout = None  # type: ignore[assignment]  # until the first `reset_identity`
    theta_id: Tensor
    delta: Tensor
    noise_seed: Tensor

    def __init__(
        self,
        scale: int = 4,
        num_networks: int = 1,
        channels: int = 64,
        blocks: int = 5,
        noise: NoiseKind = "map",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale is {scale}; it must be one of {', '.join(map(str, SCALES))}")
        if noise not in ("map", "gaussian"):
            raise ValueError(f"noise is {noise!r}; it must be 'map' or 'gaussian'")
        for name, value, least in (("num_networks", num_networks, 1), ("channels", channels, 3), ("blocks", blocks, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype is {dtype}; it must be a floating-point type")
        self.scale = scale
        self.num_networks = num_networks
        self.channels = channels
        self.blocks = blocks
        self.noise = noise
        self.dtype = dtype
        # Drawn anew for each batch, so not part of any checkpoint.
        for name in ("theta_id", "delta"):
            self.register_buffer(name, torch.empty(num_networks, 0, device=device), persistent=False)
        noise_seed = torch.zeros(num_networks, dtype=torch.int64, device=device)
        self.register_buffer("noise_seed", noise_seed, persistent=False)

    @property
    def theta(self) -> Tensor:
        """`theta_id` plus the deviation, (N, P) float32, convolutions as taps; RuntimeError before `reset_identity`."""
        if self.layout is None:  # not AttributeError, for which nn.Module would look elsewhere
            raise RuntimeError(_NO_PARAMETERS)
        return self.theta_id + self.layout.to_taps(self.delta)

    def reset_identity(self, image_size: tuple[int, int], rng: torch.Generator | None = None) -> None:
        """Draw N new networks that compute the identity (Sec 3.2).

        Args:
            image_size: H and W of the HR images, multiples of the scale.
            rng: on the network's device; None for torch's own.
        """
        height, width = image_size
        if height % self.scale or width % self.scale or min(height, width) < self.scale:
            raise ValueError(f"image size is {height} x {width}; both must be multiples of the scale, {self.scale}")
        layout = ThetaLayout((height, width), self.scale, self.channels, self.blocks, self.noise)
        device = self.theta_id.device
        theta_id = torch.zeros(self.num_networks, layout.size, device=device)
        widths = [layout.conv[0].shape[1], *(segment.shape[0] for segment in layout.conv)]
        centres = identity_centres(self.num_networks, widths, self.dtype, rng, device)
        for segment, centre in zip(layout.conv, centres, strict=True):
            segment.view(theta_id)[..., 4] = centre
        for segment in layout.slope:
            segment.view(theta_id).fill_(1)
        self.layout = layout
        self.theta_id = theta_id
        self.delta = torch.zeros_like(theta_id)
        self.noise_seed = draw_rows(
            lambda count: self.noise_seed.new_empty(count).random_(generator=rng), self.num_networks, rng
        )

    def clean(self, hr: Tensor) -> Tensor:
        """The LR images of the identity: `hr` pooled, at scale 1 `hr` itself; (B, 3, H/scale, W/scale), in its type."""
        return blur_pool(hr, self.scale)

    def forward(self, hr: Tensor, delta: Tensor | None = None) -> Tensor:
        """Degrade `hr` to (B, 3, H/scale, W/scale) in [0, 1], in its type.

        Args:
            hr: (B, 3, H, W) in [0, 1], of the size given to `reset_identity`; B a multiple of N.
            delta: (N, P) deviation that replaces `self.delta`; gradients flow to it.

        Raises:
            RuntimeError, TypeError, ValueError: as `check_images`.
        """
        self.check_images(hr)
        return self._degrade(hr, self.theta_id, self.delta if delta is None else delta, self.noise_seed)

    def _degrade(self, hr: Tensor, theta_id: Tensor, delta: Tensor, noise_seed: Tensor) -> Tensor:
        """`forward` for some rows of the bank and their images."""
        lr = degradation_forward(hr, theta_id, delta, noise_seed, self.layout, self.dtype)
        # Image files have no values outside [0, 1], so the adversary must gain nothing there.
        return lr.to(hr.dtype).clamp(0, 1)

    def check_images(self, hr: Tensor) -> None:
        """Check that HR images fit the network.

        Raises:
            RuntimeError: there are no parameters yet.
            TypeError: `hr` is not of a floating-point type.
            ValueError: its shape does not fit.
        """
        if self.layout is None:
            raise RuntimeError(_NO_PARAMETERS)
        if not hr.is_floating_point():
            raise TypeError(f"hr is {hr.dtype}; it must be a floating-point image in [0, 1]")
        size = (3, *self.layout.image_size)
        if hr.ndim != 4 or tuple(hr.shape[1:]) != size:
            wanted = ", ".join(map(str, ("B", *size)))
            raise ValueError(f"hr has shape {tuple(hr.shape)}; after reset_identity it must be ({wanted})")
        if hr.shape[0] == 0 or hr.shape[0] % self.num_networks:
            count = self.num_networks
            raise ValueError(f"the batch size of hr, {hr.shape[0]}, must be a multiple of num_networks, {count}")
