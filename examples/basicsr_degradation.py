"""The adversary's LR images in someone else's training loop: a gt batch in, an lq batch out.

For a model class of BasicSR or neosr (docs/interop.md has it whole):

    def feed_data(self, data):
        if "lq" in data:  # validation
            return super().feed_data(data)
        self.gt = data["gt"].to(self.device)
        self.lq = self.degrade(self.gt)
"""

import torch
from torch import Tensor, nn

import andfast
from andfast.models.frozen import FrozenModule


class AdversarialDegradation:
    """Finds, for each batch anew, the degradation that `net_g` restores worst just now, within a budget.

    Args:
        net_g: the generator in training, bare (not wrapped by DataParallel); it is looked through and never changed.
        scale: its scale.
        attack: how to search, and how far; the default takes one step, from a random start.
    """

    def __init__(self, net_g: nn.Module, scale: int, attack: andfast.Attack | None = None) -> None:
        self.scale = scale
        # In float32 it shares the weights of net_g, so it is always up to date.
        self.objective = andfast.l1_objective(FrozenModule(net_g, torch.float32))
        self.attack = attack or andfast.PGD(
            steps=1, step_ratio=1.0, return_iterate="last", random_start=0.5, psnr_range=(28, 44)
        )

    @torch.enable_grad()  # BasicSR calls feed_data without
    def __call__(self, gt: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], H and W multiples of the scale -> (B, 3, H/scale, W/scale) in [0, 1]."""
        network = andfast.DegradationNetwork(self.scale, num_networks=len(gt), device=gt.device)
        network.reset_identity((gt.shape[2], gt.shape[3]))
        return self.attack(network, gt, self.objective).lr.detach()
