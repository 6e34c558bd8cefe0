"""The adversary: find the degradation, within a budget, that the generator restores worst (Sec 3.3).

Every method is an `Attack`, called with a degradation network, HR images and the objective to make large:

============  ==========================================================================================
`PGD`         the paper's: projected gradient ascent on the degradation network's parameters
`YOPO`        several steps of it for one pass through the generator
`Subset`      its gradients from a part of the batch, for one network that all images share
`Free`        its steps from the backward passes that update the generator, a minibatch replayed
`Style`       around random networks instead of identities ("severe random style shift", Table 2)
`Random`      a random deviation in the same budget, no adversary ("synthetic data augmentation", Table 2)
`Noise`       adversarial additive noise on the LR image, no network ("adversarial noise training", Table 2)
`Bicubic`     no degradation but bicubic downsampling ("classical SR training", Table 2)
`BSRGAN`      random blurs, resizings, noise and JPEG in random order (Zhang et al. 2021)
`RealESRGAN`  the same twice in a fixed order, and ringing (Wang et al. 2021)
============  ==========================================================================================

Those with degradation networks let them see HR images as they are, or through a `Lens`: as cameras do.

What each costs, and when to use it, stands in its docstring; `python -m bench.attack_quality` measures how much of
the exact attack's effect the cheaper ones have.
"""

from andfast.attack.ablations import Noise, Random
from andfast.attack.base import Attack, AttackResult
from andfast.attack.free import Free, Replay
from andfast.attack.pgd import PGD
from andfast.attack.simulated import BSRGAN, Bicubic, RealESRGAN, Simulated
from andfast.attack.style import Style
from andfast.attack.subset import Subset
from andfast.attack.yopo import YOPO
from andfast.degradation.lens import Lens

__all__ = [
    "BSRGAN",
    "PGD",
    "YOPO",
    "Attack",
    "AttackResult",
    "Bicubic",
    "Free",
    "Lens",
    "Noise",
    "Random",
    "RealESRGAN",
    "Replay",
    "Simulated",
    "Style",
    "Subset",
]
