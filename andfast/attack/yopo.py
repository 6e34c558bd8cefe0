"""Several steps in theta for one pass through G."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from andfast.attack.ascent import Ascent
from andfast.attack.pgd import PGD


@dataclass
class YOPO(PGD):
    """Projected gradient ascent with a frozen costate: YOPO-m-n (Zhang et al. 2019, "You Only Propagate Once").

    By the chain rule the gradient in theta is F's gradient of <p, F_theta(HR)> with the costate p = dL/dLR, which
    alone needs G. So p is computed `steps` times (m), and each time held for `inner_steps` steps (n) in theta. All of
    them are kept within ball and budget; the loss is known of those at which p is computed, and the worst of these is
    returned. With n = 1 this is `PGD`, exactly.

    Cost: m n + 1 passes forward through F, one more for every try that a budget refuses, m n backward; m + 1 forward
    through G (m with `keep` "last") and m to its input. It pays where G costs more than F: RRDBNet, not Compact.

    Args:
        steps: passes through G, m.
        inner_steps: steps in theta for each of them, n.
        keep: as for `PGD`.
        step_size, step_ratio, epsilon, scale_factors, lr_psnr, lens: as for `GradientAttack`; a step is one in theta.
    """

    inner_steps: int = 2

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise ValueError(f"inner_steps is {self.inner_steps}; it must be at least 1")
        super().__post_init__()

    def _climb(self, ascent: Ascent, costate: Tensor, last: bool) -> None:
        for inner in range(1, self.inner_steps + 1):
            ascent.step(costate, last and inner == self.inner_steps)
