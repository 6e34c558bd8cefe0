"""RRDBNet, the generator of ESRGAN (Wang et al., ECCVW 2018, arXiv:1809.00219)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from andfast.ops.backends.base import SLOPE
from andfast.ops.conv_act import conv_act
from andfast.ops.conv_chain import ChainConv, conv_chain
from andfast.ops.dense_block import dense_block


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each of the input and all results before it: (B, features, H, W) -> the same shape."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for i in range(1, 6):
            conv = nn.Conv2d(features + (i - 1) * growth, growth if i < 5 else features, 3, padding=1)
            # ESRGAN, Sec. 3.1: small initial residuals make so deep a network trainable.
            nn.init.kaiming_normal_(conv.weight)
            with torch.no_grad():
                conv.weight.mul_(0.1)
            nn.init.zeros_(conv.bias)
            self.add_module(f"conv{i}", conv)

    def forward(self, x: Tensor) -> Tensor:
        convs = (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5)
        return dense_block(x, [conv.weight for conv in convs], [conv.bias for conv in convs])


class RRDB(nn.Module):
    """Residual in residual dense block: (B, features, H, W) -> the same shape."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(features, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBs(nn.Sequential):
    """Blocks in a row. With `checkpoint_blocks` only their inputs are kept, and the backward pass repeats them."""

    checkpoint_blocks = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x)
        return x


#: Receptive field of RRDBNet's last part to each side: a pixel at twice the size, three at four times, rounded up; at
#: scale 8 one at four times and three at eight times instead.
TAIL_REACH = 2


class RRDBNet(nn.Module):
    """ESRGAN's generator: (B, in_channels, H, W) -> (B, out_channels, scale * H, scale * W), any H, W >= 1.

    The names in the state dict are those of BasicSR and Real-ESRGAN. As there, scales 2 and 1 first move 2x2 and 4x4
    pixels into channels, and then enlarge four times. If H or W is not a multiple of that, the image is padded on the
    right and at the bottom, and the result cropped. Scale 8 has a third upsampling, as in the first ESRGAN.

    Args:
        scale: 1, 2, 4 or 8.
        in_channels, out_channels: colours; values in [0, 1] by convention, not clipped.
        features: channels between the blocks.
        blocks: number of RRDB blocks.
        growth: channels that each convolution inside a block adds.

    Raises:
        ValueError: the scale is not 1, 2, 4 or 8, or another argument is below 1.
    """

    def __init__(
        self,
        scale: int = 4,
        in_channels: int = 3,
        out_channels: int = 3,
        features: int = 64,
        blocks: int = 23,
        growth: int = 32,
    ) -> None:
        super().__init__()
        if scale not in (1, 2, 4, 8):
            raise ValueError(f"RRDBNet upscales by 1, 2, 4 or 8, not by {scale!r}")
        if min(in_channels, out_channels, features, blocks, growth) < 1:
            raise ValueError("RRDBNet needs at least one channel, feature, block and growth channel")
        self.scale = scale
        self.unshuffle = max(4 // scale, 1)
        self.conv_first = nn.Conv2d(in_channels * self.unshuffle**2, features, 3, padding=1)
        self.body = RRDBs(*(RRDB(features, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up2 = nn.Conv2d(features, features, 3, padding=1)
        if scale == 8:
            self.conv_up3 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, in_channels, H, W) -> (B, out_channels, scale * H, scale * W)."""
        height, width = x.shape[-2:]
        enlarged = self.enlarge(self.look(x))
        return enlarged if self.unshuffle == 1 else enlarged[..., : height * self.scale, : width * self.scale]

    def look(self, x: Tensor) -> Tensor:
        """The part with the large receptive field: `x` (B, in_channels, H, W) -> (B, features, H', W').

        H' and W' are H and W over `unshuffle`, rounded up.
        """
        if self.unshuffle > 1:
            x = F.pixel_unshuffle(_pad_to_multiple(x, self.unshuffle), self.unshuffle)
        x = _conv(self.conv_first, x)
        return x + _conv(self.conv_body, self.body(x))

    def enlarge(self, x: Tensor) -> Tensor:
        """The rest, of receptive field `TAIL_REACH`: `x` (B, features, H', W') -> (B, out_channels, f H', f W').

        f is scale times `unshuffle`: 8 at scale 8, else 4.
        """
        upsamplings = [self.conv_up1, self.conv_up2] + ([self.conv_up3] if self.scale == 8 else [])
        convs = (
            *(ChainConv(conv.weight, conv.bias, SLOPE, repeat=2) for conv in upsamplings),
            ChainConv(self.conv_hr.weight, self.conv_hr.bias, SLOPE),
            ChainConv(self.conv_last.weight, self.conv_last.bias),
        )
        return conv_chain(x, convs)


def _conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return conv_act(x, layer.weight, layer.bias)


def _pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Extend `x` (B, C, H, W) on the right and at the bottom until `multiple` divides H and W."""
    bottom, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    if not (bottom or right):
        return x
    # Reflection needs more pixels than it adds, which images of one to three pixels do not have.
    fits = bottom < x.shape[-2] and right < x.shape[-1]
    return F.pad(x, (0, right, 0, bottom), mode="reflect" if fits else "replicate")
