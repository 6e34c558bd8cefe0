"""Writes docs/api.md, the public names with a line each from their docstrings: `python docs/api.py > docs/api.md`."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import andfast

MODULES = (
    "andfast",
    "andfast.attack",
    "andfast.losses",
    "andfast.metrics",
    "andfast.models",
    "andfast.pretrained",
    "andfast.ops",
    "andfast.degradation",
    "andfast.inference",
    "andfast.export",
)
"""What a user's own code imports from; a name stands under the first that has it."""

_BREAK = MODULES.index("andfast.pretrained")
HEAD = f"""# API

The public names, and what their docstrings begin with; shapes, types, ranges and errors stand in the rest of them. All
of it with the source, as pages to browse, is made by

```bash
pip install -e '.[docs]'
python -m pdoc --docformat google {" ".join(MODULES[:_BREAK])} \\
    {" ".join(MODULES[_BREAK:])} --output-directory api
```

`python docs/api.py > docs/api.md` writes this page.
"""


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


def summary(docstring: str | None) -> str:
    """Its first paragraph, in one line of a table."""
    first = inspect.cleandoc(docstring or "").partition("\n\n")[0]
    return " ".join(first.split()).replace("|", "\\|")


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


def is_constant(value: Any) -> bool:
    """Whether it is neither a class nor a function; a type's other name is one."""
    return hasattr(value, "__origin__") or not (inspect.isclass(value) or inspect.isroutine(value))


def called(name: str, function: Any) -> str:
    """With the names of its parameters."""
    parameters = [each for each in inspect.signature(function).parameters if each not in ("self", "cls")]
    return f"{name}({', '.join(parameters)})"


def rows(module: ModuleType, seen: set[int]) -> Iterator[tuple[str, str]]:
    """The module's names that are not `seen`, with those of their members that they define themselves."""
    for name in public_names(module):
        value = getattr(module, name)
        if id(value) in seen or inspect.ismodule(value):
            continue
        seen.add(id(value))
        if is_constant(value):
            yield name, summary(constant_docstring(module, name))
            continue
        yield called(name, value) if inspect.isroutine(value) else name, summary(value.__doc__)
        for member, function in members(value) if inspect.isclass(value) else ():
            if member in vars(value) and member != "forward" and function.__doc__:
                title = f"{name}.{member}"
                inner = getattr(function, "__func__", function)
                yield title if isinstance(function, property) else called(title, inner), summary(function.__doc__)


def commands() -> Iterator[tuple[str, str]]:
    """The modules, and packages with a `__main__`, that are commands, with what they say of themselves."""
    for found in pkgutil.iter_modules(andfast.__path__, "andfast."):
        main = f"{found.name}.__main__" if found.ispkg else found.name
        if found.name == "andfast._C" or importlib.util.find_spec(main) is None:
            continue
        module = importlib.import_module(main)
        if hasattr(module, "main"):
            yield f"python -m {found.name}", about(module)


def about(module: ModuleType) -> str:
    """What a module says of itself, without the command line that those of commands add."""
    first = summary(module.__doc__).partition(": `")[0]
    return f"{first.removesuffix('.')}."


def page() -> str:
    """The whole page."""
    parts, seen = [HEAD], set()
    tables = [(name, importlib.import_module(name)) for name in MODULES]
    for name, module in tables:
        found = list(rows(module, seen))
        if found:
            parts.append(f"## {name}\n\n{about(module)}\n\n{_table(found)}\n")
    return "\n".join([*parts, f"## Commands\n\n{_table(list(commands()))}\n"])


def _table(lines: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in lines)])


if __name__ == "__main__":
    print(page(), end="")
