"""Attacks by short names, to be compared with each other."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from andfast.attack.ablations import Random
from andfast.attack.ascent import GradientAttack
from andfast.attack.base import NetworkAttack
from andfast.attack.free import Free
from andfast.attack.pgd import PGD
from andfast.attack.subset import Subset
from andfast.attack.yopo import YOPO
from andfast.utils.devices import TYPES

#: The grammar of `parse_variant`, for people.
FORMS = (
    "pgd-STEPS, yopo-STEPS-INNER, free-REPLAYS, subset-STEPS-SHARE or random; all but random may go on with "
    "@RATIO (length of a step relative to epsilon), pgd, yopo and subset with +last (the last iterate instead of the "
    "worst), all with :TYPE (float32, bfloat16 or float16, the type G computes in); in this order"
)

_FORM = re.compile(r"([a-z]+)((?:-[\d.]+)*)(?:@([\d.]+))?(\+last)?(?::(float32|bfloat16|float16))?")
# What the numbers behind a method's name are.
_NUMBERS: dict[str, tuple[type[NetworkAttack], dict[str, Callable[[str], float]]]] = {
    "pgd": (PGD, {"steps": int}),
    "yopo": (YOPO, {"steps": int, "inner_steps": int}),
    "free": (Free, {"replays": int}),
    "subset": (Subset, {"steps": int, "share": float}),
    "random": (Random, {}),
}


@dataclass(frozen=True)
class Variant:
    """An attack to compare.

    Attributes:
        name: as `parse_variant` takes it.
        attack: what it stands for.
        dtype: the type G computes in within the attack; None: that of the comparison.
    """

    name: str
    attack: NetworkAttack
    dtype: torch.dtype | None = None

    @property
    def method(self) -> str:
        """The name's first word."""
        return re.split(r"[-@+:]", self.name)[0]


def parse_variant(name: str, exact: PGD) -> Variant:
    """The variant that a name like "yopo-3-2@0.3" stands for; see `FORMS`.

    Args:
        name: the name.
        exact: what variants have in common: epsilon, the scale factors, the budget, and the step where the name
            gives none.

    Raises:
        ValueError: the name is none, or its numbers are out of their range.
    """
    match = _FORM.fullmatch(name)
    if match is None or match[1] not in _NUMBERS:
        raise ValueError(f"variant {name!r} is none; wanted {FORMS}")
    method, numbers, ratio, last, dtype = match.groups()
    kind, names = _NUMBERS[method]
    steps = issubclass(kind, GradientAttack)
    given = numbers.split("-")[1:]
    if len(given) != len(names) or (ratio and not steps) or (last and not issubclass(kind, PGD)):
        raise ValueError(f"variant {name!r} is none; wanted {FORMS}")
    settings = {name: getattr(exact, name) for name in ("epsilon", "scale_factors", "lr_psnr", "lens")}
    if steps:
        settings |= {"step_size": exact.step_size, "step_ratio": exact.step_ratio}
    try:
        settings |= {key: read(value) for (key, read), value in zip(names.items(), given, strict=True)}
        if ratio:
            settings["step_ratio"] = float(ratio)
        if last:
            settings["keep"] = "last"
        return Variant(name, kind(**settings), TYPES.get(dtype))
    except ValueError as error:
        raise ValueError(f"variant {name!r}: {error}; wanted {FORMS}") from error


def default_variants(num_networks: int, types: list[str]) -> list[str]:
    """Names worth comparing.

    Args:
        num_networks: `Subset` takes part for one network.
        types: other types for G to compute in within the exact attack.
    """
    names = [
        "pgd-1@1", "pgd-2@0.75", "pgd-3@0.5", "pgd-3", "pgd-5", "pgd-10", "pgd-20",
        "pgd-1@1+last", "pgd-2@0.75+last", "pgd-5+last",
        "yopo-1-2@0.75+last", "yopo-1-3@0.5+last", "yopo-2-2@0.5", "yopo-3-2@0.3", "yopo-5-2",
        "free-2@1", "free-4@0.4", "free-8",
    ]  # fmt: skip
    if num_networks == 1:
        names += ["subset-5-0.25", "subset-5-0.5", "subset-3-0.25@0.5", "subset-3-0.5@0.5"]
    return [*names, *(f"pgd-5:{name}" for name in types), "random"]
