"""The public names: each says in its docstring what it takes, and docs/api.md lists what they say."""

import importlib
import inspect
import re
import runpy

import pytest
from documents import ROOT

API = runpy.run_path(str(ROOT / "docs" / "api.py"))


def public() -> list[tuple[str, str]]:
    """(module, name) of all public names but modules, each object once."""
    found, seen = [], set()
    for module_name in API["MODULES"]:
        module = importlib.import_module(module_name)
        for name in API["public_names"](module):
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
    if API["is_constant"](value):
        assert API["constant_docstring"](module, name)
        return
    # A dataclass without a docstring is given its signature.
    assert value.__doc__
    assert not value.__doc__.startswith(f"{name}(")
    if inspect.isroutine(value):
        assert not unnamed(value, value.__doc__)
        return
    if not issubclass(value, Exception):
        assert not unnamed(value, class_docstring(value))
    members = dict(API["members"](value))
    if "__call__" in vars(value):
        members["__call__"] = value.__call__
    for member, function in members.items():
        # Of a method that takes another one's place, that one's will do.
        docstring = inspect.getdoc(getattr(value, member) if inspect.isroutine(function) else function)
        assert docstring, member
        if not isinstance(function, property):
            inner = getattr(function, "__func__", function)
            assert not [each for each in unnamed(inner, docstring) if each != "cls"], member


def test_the_page_is_what_the_docstrings_say() -> None:
    assert (ROOT / "docs" / "api.md").read_text() == API["page"](), "run `python docs/api.py > docs/api.md`"
