"""Users' own classes by where they are: `my_file.py:MyNet` or `package.module:MyNet`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from jsonargparse.typing import restricted_string_type

PATTERN = r"^([\s\S]+):([A-Za-z_]\w*)$"
"""What an import path looks like, as a regular expression of Python and of JavaScript."""


ImportPath = restricted_string_type("ImportPath", PATTERN, "a class of your own, as my_file.py:MyClass")


def is_import_path(name: str) -> bool:
    """Whether a name has the form of an import path."""
    return re.match(PATTERN, name) is not None


def import_class(name: str, key: str) -> type:
    """Import the class that a setting names; this runs the code of its module.

    Args:
        name: FILE.py:CLASS, the file relative to the current folder, or MODULE:CLASS.
        key: of the setting, for errors.

    Raises:
        ValueError: there is no such file, module or class, or its code fails.
    """
    found = re.match(PATTERN, name)
    if found is None:
        raise ValueError(f"{key} is {name}; a class of your own is my_file.py:MyClass or package.module:MyClass")
    where, attribute = found.groups()
    is_file = where.endswith(".py")
    if is_file and not Path(where).is_file():
        raise ValueError(f"{key} is {name}: no file {Path(where).absolute()}")
    try:
        module = _load_file(Path(where).resolve()) if is_file else importlib.import_module(where)
    except Exception as error:  # whatever the code raises
        raise ValueError(f"{key} is {name}: importing it fails ({type(error).__name__}: {error})") from error
    kind = getattr(module, attribute, None)
    if not isinstance(kind, type):
        own = [
            each
            for each, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__  # not those that it imports
        ]
        raise ValueError(f"{key} is {name}: {where} has no class {attribute}; it has {', '.join(own) or 'none'}")
    return kind


def _load_file(path: Path) -> ModuleType:
    """Import a file once, under a name that no other module has; it may import its neighbours as a script may."""
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]  # a .py file has a spec and a loader
    sys.modules[name] = module
    sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module
