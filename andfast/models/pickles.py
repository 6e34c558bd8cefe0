"""Files that `torch.save` wrote with objects of a program's own beside the weights: read without running any code.

Lightning keeps hyper-parameters and callbacks there, mmengine its history, others NumPy's numbers. What is no tensor is
of no use here, so each such object becomes one that takes whatever is done to it and does nothing.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

# What tensors and parameters are made of, and torch's own loader allows, too; storages it knows by itself.
_TENSORS = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
}

# Nobody keeps parts of these beside weights, but who wants them run.
_SUSPICIOUS = {
    "_io", "asyncio", "code", "commands", "ctypes", "importlib", "io", "multiprocessing", "nt", "os", "posix",
    "pty", "runpy", "shutil", "socket", "subprocess", "sys", "webbrowser",
}  # fmt: skip
_SUSPICIOUS_BUILTINS = {"__import__", "breakpoint", "compile", "eval", "exec", "execfile", "input", "open"}


class Inert:
    """Stands for an object that is not made, for its class, and for functions: nothing of them is run."""

    dump_patches = False  # asked of modules in files of PyTorch before 1.6

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Inert:
        return self

    def ignore(self, *_: Any) -> None:
        pass

    # What a pickle does to objects that it has made.
    __setstate__ = __setitem__ = append = extend = add = update = ignore


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TENSORS:
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if module.partition(".")[0] in _SUSPICIOUS or (
            module in ("builtins", "__builtin__") and name in _SUSPICIOUS_BUILTINS
        ):
            raise pickle.UnpicklingError(f"it would call {module}.{name}")
        return Inert


def load_inert(path: Path) -> Any:
    """The content of a file of `torch.save`, on the CPU, with `Inert` objects in the place of all but plain values,
    tensors and parameters.

    Raises:
        Exception: of any kind: it is damaged, no such file, or one made to run programs.
    """
    with path.open("rb") as file:
        module = SimpleNamespace(
            Unpickler=_Unpickler, load=lambda *values, **named: _Unpickler(*values, **named).load(), __name__="pickle"
        )
        try:
            return torch.load(file, map_location="cpu", pickle_module=module, weights_only=False)
        except MemoryError as error:  # a damaged length: what is whole was tried by torch's own loader before
            raise pickle.UnpicklingError("it tells of more than fits the memory") from error
