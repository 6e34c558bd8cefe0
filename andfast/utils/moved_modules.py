"""Old names of modules that were moved: importing one warns, and gives the module by its new name."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Old -> new; the modules of a package move with it.
MOVED = {
    "andfast.console": "andfast.utils.console",
    "andfast.degradations": "andfast.degradation",
    "andfast.devices": "andfast.utils.devices",
    "andfast.files": "andfast.utils.files",
    "andfast.locks": "andfast.utils.locks",
    "andfast.theta": "andfast.ops.theta_layout",
    "andfast.upscaling": "andfast.inference",
    "andfast.upscaling.engine": "andfast.inference.upscaler",
    "andfast.upscaling.work": "andfast.inference.output_paths",
    "andfast.yaml_files": "andfast.utils.yaml_files",
}


class _Alias(Loader):
    """Gives a module that exists under another name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import machinery has put the alias's in its place


class _MovedModules(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, module = name.rpartition(".")
        new = MOVED.get(name) or (MOVED.get(package) and f"{MOVED[package]}.{module}")
        if not new:
            return None
        warnings.warn(f"{name} is now {new}; the old name will go with the next release", FutureWarning, stacklevel=2)
        return ModuleSpec(name, _Alias(new))


def install() -> None:
    """Make the old names importable. First of all finders: a package's own path would load a module twice."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MovedModules())
