"""`torch.compile` for the generator: block by block, with its time shown; failures are errors."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from andfast.models.foreign import ForeignModel
from andfast.models.rrdbnet import RRDB

logger = logging.getLogger(__name__)


class CompileError(RuntimeError):
    """The generator could not be compiled; the message says why, and how to switch compilation off."""


def wants_compile(setting: str, device: torch.device) -> bool:
    """Whether to compile with the setting "on", "off" or "auto".

    "auto" compiles on CUDA, where a compiler works; CPUs gain nothing. Where it does not, a warning says why.
    """
    if setting != "auto" or device.type != "cuda":
        return setting == "on"
    problem = compiler_problem(device)
    if problem is not None:
        warnings.warn(f"the generator is not compiled, since torch.compile fails here: {problem}", stacklevel=2)
    return problem is None


def compiler_problem(device: torch.device) -> str | None:
    """Why torch.compile does not work for a device (no Triton, no C compiler, an old GPU), seen on a small function."""
    x = torch.ones(64, device=device)
    try:
        with torch.no_grad():
            torch.compile(lambda x: torch.relu(x) * 2 + 1, dynamic=False)(x)
    except Exception as error:  # of many types, from torch, Triton, and what they start
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None


def compile_regions(generator: nn.Module) -> None:
    """Compile a generator in place when it is first called, for images of the size of that call.

    RRDBNet's blocks are compiled one by one: they share one program, which takes a fraction of the whole network's
    time. Only the code between the operations of `andfast.ops` is compiled.
    """
    regions: list[nn.Module] = [module for module in generator.modules() if isinstance(module, RRDB)]
    # Architectures of spandrel may break into several programs.
    whole = not isinstance(generator, ForeignModel)
    for region in regions or [generator]:
        region.compile(dynamic=False, fullgraph=whole)


class CompileTimer:
    """Logs how long the first call of a compiled module takes, which compiles it.

    Args:
        what: the module's name, for people.
        compiled: whether it is compiled; if not, nothing is done.
        verbose: whether to log.
    """

    def __init__(self, what: str, compiled: bool, verbose: bool = True) -> None:
        self._what, self._pending, self._verbose = what, compiled, verbose

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Put around every call of the module; raises CompileError if the compiler fails."""
        if not self._pending:
            yield
            return
        self._log(f"compiling {self._what} (once; later runs find it in the cache) ...")
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
        self._log(f"compiled {self._what}: {time.perf_counter() - begin:.1f} s with its first pass")

    def _log(self, line: str) -> None:
        if self._verbose:
            logger.info(line)


def _from_compiler(error: Exception) -> bool:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return isinstance(error, (TorchDynamoException, CppCompileError, InvalidCxxCompiler))
