"""The public names of the modules of docs/api.md: each says in its docstring what it takes."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from documents import ROOT

MODULES = re.findall(r"^\| `(andfast[\w.]*)` \|", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)


def public_names(module: ModuleType) -> list[str]:
    """Its `__all__`, or else what is defined in it without a leading underscore, sorted."""
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return sorted(getattr(module, "__all__", None) or [name for name in defined if not name.startswith("_")])


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class of andfast defines or takes from another one."""
    for name in sorted(dir(kind)):
        owner = next((base for base in kind.__mro__ if name in vars(base)), None)
        if owner is None or not owner.__module__.startswith("andfast.") or name.startswith("_"):
            continue
        member = inspect.getattr_static(kind, name)
        if isinstance(member, (property, classmethod, staticmethod)) or inspect.isfunction(member):
            yield name, member


def is_constant(value: Any) -> bool:
    """Whether it is neither a class nor a function; a type's other name is one."""
    return hasattr(value, "__origin__") or not (inspect.isclass(value) or inspect.isroutine(value))


def constant_docstring(module: ModuleType, name: str) -> str | None:
    """The string below an assignment of `name` in the module or, if that is a package, in one of its modules."""
    folder = Path(inspect.getsourcefile(module))
    for path in sorted(folder.parent.glob("*.py")) if folder.name == "__init__.py" else [folder]:
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for node, after in pairwise(body):
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and target.id == name and isinstance(after, ast.Expr):
                return ast.literal_eval(after.value)
    return None


def public() -> list[tuple[str, str]]:
    """(module, name) of all public names but modules, each object once."""
    found, seen = [], set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in public_names(module):
            value = getattr(module, name)
            if not inspect.ismodule(value) and id(value) not in seen:
                seen.add(id(value))
                found.append((module_name, name))
    return found


def unnamed(function: object, docstring: str) -> list[str]:
    """Parameters that a docstring does not name."""
    parameters = [name for name in inspect.signature(function).parameters if name not in ("self", "args", "kwargs")]
    return [name for name in parameters if not re.search(rf"\b{name}\b", docstring)]


def class_docstring(kind: type) -> str:
    """With those of andfast's classes that it goes on from, whose arguments it has."""
    return "\n".join(base.__doc__ or "" for base in kind.__mro__ if base.__module__.startswith("andfast."))


@pytest.mark.parametrize(("module_name", "name"), public(), ids=".".join)
def test_it_says_what_it_takes(module_name: str, name: str) -> None:
    module = importlib.import_module(module_name)
    value = getattr(module, name)
    if is_constant(value):
        assert constant_docstring(module, name)
        return
    # A dataclass without a docstring is given its signature.
    assert value.__doc__
    assert not value.__doc__.startswith(f"{name}(")
    if inspect.isroutine(value):
        assert not unnamed(value, value.__doc__)
        return
    if not issubclass(value, Exception):
        assert not unnamed(value, class_docstring(value))
    public = dict(members(value))
    if "__call__" in vars(value):
        public["__call__"] = value.__call__
    for member, function in public.items():
        # Of a method that takes another one's place, that one's will do.
        docstring = inspect.getdoc(getattr(value, member) if inspect.isroutine(function) else function)
        assert docstring, member
        if not isinstance(function, property):
            inner = getattr(function, "__func__", function)
            assert not [each for each in unnamed(inner, docstring) if each != "cls"], member
