"""The adversary: search the degradation, within a budget, that the generator restores worst (Sec 3.3).

Every method is an `Attack`, called with a degradation network, HR images and the objective to maximise:

| attack | what it does |
|---|---|
| `PGD` | the paper's: projected gradient ascent on the degradation network's parameters |
| `YOPO` | several steps of it for one pass through the generator |
| `SubsetPGD` | gradients from a part of the batch, for one network that all images share |
| `FreeAT` | steps from the backward passes that update the generator, a minibatch replayed |
| `StyleShift` | around random networks instead of identities ("severe random style shift", Table 2) |
| `RandomDeviation` | a random deviation in the same budget, no adversary ("synthetic data augmentation", Table 2) |
| `AdversarialNoise` | adversarial additive noise on the LR image, no network ("adversarial noise training", Table 2) |
| `Bicubic` | bicubic downsampling alone ("classical SR training", Table 2) |
| `BSRGAN` | random blurs, resizings, noise and JPEG in random order (Zhang et al. 2021) |
| `RealESRGAN` | the same twice in a fixed order, and ringing (Wang et al. 2021) |

`pgd` has the paper's search and its variants, `free` minibatch replay, `baselines` the rest; `base` has the calling
convention, `budget` the limit in PSNR, `captured` runs a search as a CUDA graph. Attacks with networks may put a `Lens`
between HR images and networks.

Each docstring gives the attack's cost; `python -m bench.attack_quality` measures how close the cheaper ones come to
the exact one.
"""

from andfast.attack.base import Attack, AttackResult
from andfast.attack.baselines import BSRGAN, AdversarialNoise, Bicubic, RandomDeviation, RealESRGAN, Simulated
from andfast.attack.free import FreeAT, Replay
from andfast.attack.pgd import PGD, YOPO, StyleShift, SubsetPGD
from andfast.degradation.lens import Lens

__all__ = [
    "BSRGAN",
    "PGD",
    "YOPO",
    "AdversarialNoise",
    "Attack",
    "AttackResult",
    "Bicubic",
    "FreeAT",
    "Lens",
    "RandomDeviation",
    "RealESRGAN",
    "Replay",
    "Simulated",
    "StyleShift",
    "SubsetPGD",
]
