"""What threads do while they wait: PyTorch's OpenMP runtime (libgomp) spins by default, and takes the CPU from others.

Two training runs on the same cores, or a run beside any other program, then take several times as long together as one
after the other. The runtime reads its settings when it is loaded, which `import torch` does: import this module before
it. Where OpenMP's threads sleep, andfast's operators use threads of their own, which spin for a short time
(csrc/cpu/team.h).
"""

from __future__ import annotations

import os
import sys

_SETTINGS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


def _let_sleep() -> str:
    """Let idle threads sleep, unless the user has set how they wait; returns how they do, for people."""
    given = [f"{name}={os.environ[name]}" for name in _SETTINGS if name in os.environ]
    if given:
        return ", ".join(given)
    if "torch" in sys.modules:
        wanted = " ".join(f"{name}={value}" for name, value in _SETTINGS.items())
        return f"they spin, since torch was imported before andfast; set {wanted} or import andfast first"
    os.environ.update(_SETTINGS)
    return "they sleep"


#: How idle threads wait, for people: in this process, and in those that it starts.
state = _let_sleep()
