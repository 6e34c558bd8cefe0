"""The adversary: find the degradation, within a budget, that the generator restores worst (Sec 3.3).

Every method is an `Attack`, called with a degradation network, HR images and the objective to make large:

=========  ==========================================================================================
`PGD`      the paper's: projected gradient ascent on the degradation network's parameters
`Random`   a random deviation in the same budget, no adversary ("synthetic data augmentation", Table 2)
`Noise`    adversarial additive noise on the LR image, no network ("adversarial noise training", Table 2)
`Bicubic`  no degradation but bicubic downsampling ("classical SR training", Table 2)
=========  ==========================================================================================
"""

from andfast.attack.ablations import Bicubic, Noise, Random
from andfast.attack.base import Attack, AttackResult
from andfast.attack.pgd import PGD

__all__ = ["PGD", "Attack", "AttackResult", "Bicubic", "Noise", "Random"]
