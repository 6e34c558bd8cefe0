"""What a backend provides for the convolutional operations: the fused pieces of their forward and backward passes.

`degradation_forward` and `degradation_block` (F), `conv_act` and `dense_block` (generators) put the pieces together,
once for all backends. Images and activations are contiguous tensors in channels-last order, (B, H, W, C), in the
compute type; sums and everything of theta are float32. In a bank of N degradation networks image b belongs to network
b // (B / N). z is what a convolution gives, y what comes after it, dz and dy are their gradients.

A `sign_mask` holds a bit for each value of z, (B, H, W, ceil(C / 8)) uint8: bit c % 8 of byte c // 8 is set where the
LeakyReLU's slope applies in channel c (F: z < 0; generators: z <= 0, as in PyTorch); bits past C are 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from andfast.ops.theta_layout import ThetaLayout

#: ESRGAN's dense block (Wang et al., 2018): the slope of its LeakyReLUs, and the factor of what it adds to its input.
SLOPE, GAIN = 0.2, 0.2


class Epilogue(NamedTuple):
    """The LeakyReLU and the noise injection after the convolution of a block of F, in the order the kernels take them.

    Attributes:
        slope_minus_one: (N,) float32, each LeakyReLU's negative slope minus one.
        noise: float32, contiguous (for Triton each network's alone). Without a seed (N, H, W): a map, the same in all
            channels and in all images of a network. With a seed (N, C): a strength for each channel, times the field
            of `gaussian_field`.
        seed: (N,) int64, or None.
        layer: the number of the noise injection: the field depends on it.
    """

    slope_minus_one: Tensor
    noise: Tensor
    seed: Tensor | None = None
    layer: int = 0


class Bank(ABC):
    """The parameters of N networks F for one forward or backward pass, and backward the rows of their gradient.

    In the methods `dz` is a list of one, out of which it is taken: kernels then free it when they no longer need it.

    Args:
        kernels: the backend.
        layout: the columns of theta.
        hr: (B, C, H, W), the images.
        theta_id, delta, noise_seed: (N, P) and (N,), as `degradation_forward` takes them.
        dtype: the compute type.
        grad: contiguous (N, P) float32, to be filled by a backward pass; None for a forward pass.

    Attributes:
        seed: `noise_seed`, None for noise maps.
    """

    def __init__(
        self,
        kernels: Backend,
        layout: ThetaLayout,
        hr: Tensor,
        theta_id: Tensor,
        delta: Tensor,
        noise_seed: Tensor,
        dtype: torch.dtype,
        grad: Tensor | None,
    ) -> None:
        self.kernels, self.layout, self.hr, self.dtype, self.grad = kernels, layout, hr, dtype, grad
        self.theta_id, self.delta = theta_id, delta
        self.seed = noise_seed if layout.noise_kind == "gaussian" else None

    def noise(self, layer: int) -> Tensor:
        """The noise of `Epilogue` for a block, each network's contiguous."""
        noise = self.layout.noise[layer].view(self.delta)
        return noise[:, 0] if self.seed is None else noise[..., 0, 0]

    @abstractmethod
    def image(self) -> Tensor:
        """The images as the first convolution reads them: `Backend.to_nhwc`."""

    @abstractmethod
    def weights(self, layer: int) -> tuple[Tensor, ...]:
        """A convolution's weights for this pass: `Backend.pack_weights`."""

    @abstractmethod
    def epilogue(self, layer: int) -> Epilogue:
        """What follows a block's convolution."""

    @abstractmethod
    def conv_weight_grad(self, layer: int, x: Tensor, dz: Tensor) -> None:
        """The gradient of a convolution's weights from its input and its result's gradient, here not in a list."""

    @abstractmethod
    def block_input_grad(self, layer: int, dz: list[Tensor], y: Tensor, sign_mask: Tensor) -> Tensor:
        """dz of block `layer` - 1, which made y, from that of the convolution `layer`, which read it."""

    @abstractmethod
    def block_pool_grad(self, layer: int, dz: list[Tensor], negative: Tensor, sign_mask: Tensor) -> Tensor:
        """`block_input_grad` where that block is the one before the pooling; `negative`: its pooled min(z, 0)."""

    @abstractmethod
    def finish(self) -> None:
        """Complete the gradient, after all of its parts."""


class Backend(ABC):
    """The kernels of one backend.

    In F, a block is z = conv(x), y = z + slope_minus_one min(z, 0) + noise (`Epilogue`). Its convolution, the sum of a
    1x1 one with the identity's centre taps and a 3x3 one with the deviation (`split_conv`), replicates the border. A
    backend may keep the replicated border with its activations; then the x and y that it is given come from itself.

    In the generators, weights are (out, in, 3, 3) in the compute type, borders are zero, and `slope` is (C,) float32 or
    None for no activation.

    Attributes:
        loops_over_bank: whether a call computes one network (N = 1), so that the caller loops over the bank.
        border: the width in pixels of the replicated border that F's activations carry.
        bank_type: converts the parameters of F.
    """

    loops_over_bank: bool
    border: int
    bank_type: type[Bank]

    # Degradation networks

    @abstractmethod
    def to_nhwc(self, image: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, C, H, W) of any type and layout -> an activation (B, H, W, C), with this backend's border.

        Without a border it may share its memory with the image.
        """

    @abstractmethod
    def pack_weights(self, centre: Tensor, deviation: Tensor, dtype: torch.dtype, backward: bool) -> tuple[Tensor, ...]:
        """The weights of one convolution in this backend's layout, for the forward or the backward pass.

        `centre` (N, out, in) and `deviation` (N, out, in, 9) are float32, the deviation's taps in row-major order.
        """

    @abstractmethod
    def conv(self, x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """The last convolution: z, without border."""

    @abstractmethod
    def conv_input_grad(self, dz: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """The gradient of a convolution's input, (B, H, W, in), without border."""

    @abstractmethod
    def conv_weight_grad(self, x: Tensor, dz: Tensor, num_networks: int) -> Tensor:
        """The gradient of the deviation's taps, (N, out, in, 9) float32."""

    @abstractmethod
    def block(
        self, x: Tensor, weights: tuple[Tensor, ...], epilogue: Epilogue, bordered: bool = True
    ) -> tuple[Tensor, Tensor]:
        """y and the sign mask; y with this backend's border, if `bordered`."""

    @abstractmethod
    def block_grad(self, dy: Tensor, y: Tensor, sign_mask: Tensor, epilogue: Epilogue) -> tuple[Tensor, Tensor, Tensor]:
        """The backward pass of a block down to z: dz, dslope and dnoise as in `block_input_grad`. No borders."""

    @abstractmethod
    def block_input_grad(
        self, dz: Tensor, weights: tuple[Tensor, ...], y: Tensor, sign_mask: Tensor, epilogue: Epilogue
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`conv_input_grad`, then the backward pass of the block that made that input, y: its dz, dslope and dnoise.

        dslope and dnoise have the shapes of the epilogue's `slope_minus_one` and `noise` and are float32.
        """

    @abstractmethod
    def block_pool(
        self, x: Tensor, weights: tuple[Tensor, ...], epilogue: Epilogue, scale: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A block and the pooling after it: the pooled y (with border), the pooled min(z, 0) (without), the sign mask.

        y itself is not kept: the pooled negative part is enough for the gradient of the slope.
        """

    @abstractmethod
    def block_pool_grad(self, dpooled: Tensor, sign_mask: Tensor, slope_minus_one: Tensor, scale: int) -> Tensor:
        """The backward pass of `block_pool` down to dz, from the pooled y's gradient (without border)."""

    @abstractmethod
    def gaussian_field(self, seed: Tensor, layer: int, images: int, size: tuple[int, int]) -> Tensor:
        """`andfast.ops.noise.gaussian_field` for seeds (N,): (N * images, H, W) float32."""

    def rotate_taps(self, matrix: Tensor, basis: Tensor) -> Tensor:
        """Every nine neighbours in a row of `matrix`, as a row vector, times `basis`: from moments to taps, or back.

        Args:
            matrix: (N, 9 K) float32; rows need not follow each other in memory.
            basis: (9, 9) float32, contiguous.

        Returns:
            (N, 9 K), contiguous.
        """
        return (matrix.unflatten(1, (-1, 9)) @ basis).flatten(1)

    # Generators

    @abstractmethod
    def conv_act(
        self, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, save_for_backward: bool
    ) -> tuple[Tensor, Tensor]:
        """LeakyReLU(conv(x) + bias), and its sign mask, which is empty (B = 0) without `save_for_backward`."""

    @abstractmethod
    def leaky_relu_backward(self, dy: Tensor, sign_mask: Tensor, slope: Tensor) -> Tensor:
        """dz of a LeakyReLU."""

    @abstractmethod
    def conv_act_input_grad(self, dz: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the convolution's input."""

    @abstractmethod
    def conv_act_weight_grad(self, x: Tensor, dz: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the weight, with the weight's strides."""

    @abstractmethod
    def dense_block(
        self, x: Tensor, weights: list[Tensor], biases: list[Tensor], save_for_backward: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y; the intermediates (B, H, W, 4 growth), what the first four convolutions gave; and their sign mask.

        The sign mask is (B, H, W, 4, ceil(growth / 8)), empty (B = 0) without `save_for_backward`.
        """

    @abstractmethod
    def dense_block_input_grad(self, dy: Tensor, weights: list[Tensor], sign_mask: Tensor) -> tuple[Tensor, Tensor]:
        """dx, and dz of the first four convolutions, (B, H, W, 4 growth), the fourth one's first."""

    @abstractmethod
    def dense_block_weight_grad(
        self, x: Tensor, intermediates: Tensor, dy: Tensor, dintermediates: Tensor, weights: list[Tensor]
    ) -> list[Tensor]:
        """The gradients of the weights, with the weights' strides."""


def merge_taps(centre: Tensor, deviation: Tensor) -> Tensor:
    """The two weights of a convolution as one, for where their sum may be rounded (see `split_conv`).

    Args:
        centre: (N, out, in) float32.
        deviation: (N, out, in, 9) float32.

    Returns:
        (N, out, in, 9) float32, contiguous.
    """
    taps = deviation.clone(memory_format=torch.contiguous_format)
    taps[..., 4] += centre
    return taps
