"""`torch.compile` around the generator: by region, with its time shown, and never silently left out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from tqdm import tqdm

from andfast.models.rrdbnet import RRDB


class CompileError(RuntimeError):
    """The generator could not be compiled here; the message says why, and how to do without."""


def wants_compile(setting: str, device: torch.device) -> bool:
    """Whether "auto", "on" or "off" means it: auto does on CUDA alone, for on a CPU it did not pay."""
    return setting == "on" or (setting == "auto" and device.type == "cuda")


def compile_regions(generator: nn.Module) -> None:
    """Have a generator compiled, in place, when it is first called: for images of the sizes it then sees.

    RRDBNet's blocks are all alike: compiled one by one they share one program, which takes a fraction of the time that
    the whole network takes. A generator without them is compiled whole. Our own operations (`andfast.ops`) stay as they
    are; what is compiled is all that stands between them.
    """
    regions: list[nn.Module] = [module for module in generator.modules() if isinstance(module, RRDB)]
    for region in regions or [generator]:
        region.compile(dynamic=False, fullgraph=True)


class FirstPass:
    """Shows how long it takes where something is called for the first time, which compiles it.

    Args:
        what: is compiled, for people.
        compiled: whether it is.
        tells: whether to show it, or only what goes wrong.
    """

    def __init__(self, what: str, compiled: bool, tells: bool = True) -> None:
        self._what, self._tells = what, tells
        self._pending = compiled

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Around every call.

        Raises:
            CompileError: the compiler failed.
        """
        if not self._pending:
            yield
            return
        self._say(f"compiling {self._what} (once; later runs find it in the cache) ...")
        begin = time.perf_counter()
        try:
            yield
        except Exception as error:
            if not _from_compiler(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise CompileError(
                f"compiling {self._what} failed: {type(error).__name__}: {reason}; --compile off does without"
            ) from error
        self._pending = False
        self._say(f"compiled {self._what}: {time.perf_counter() - begin:.1f} s with its first pass")

    def _say(self, line: str) -> None:
        if self._tells:
            tqdm.write(line, file=sys.stderr)


def _from_compiler(error: Exception) -> bool:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return isinstance(error, (TorchDynamoException, CppCompileError, InvalidCxxCompiler))
