"""The import graph of the package: no cycle, and the commands on top."""

import ast
from graphlib import TopologicalSorter

from documents import ROOT

from andfast.utils.command_line import COMMANDS

PACKAGE = ROOT / "andfast"


def module_name(path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(module: str) -> set[str]:
    """The modules of the package that a module imports, inside functions, too."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            imported |= {name if name in MODULES else node.module for name in names}
    return (imported & MODULES.keys()) - {module}


GRAPH = {module: imports_of(module) for module in MODULES}


def test_no_import_cycle():
    TopologicalSorter(GRAPH).prepare()  # raises CycleError, which names the cycle


def test_only_commands_are_directly_in_the_package():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert files | {"demo"} == set(COMMANDS)
    assert "andfast.demo.__main__" in MODULES


def test_no_folder_imports_a_command():
    commands = {f"andfast.{name}" for name in COMMANDS if (PACKAGE / f"{name}.py").exists()} | {"andfast.demo.__main__"}
    importing = {module: sorted(GRAPH[module] & commands) for module in MODULES if GRAPH[module] & commands}
    assert importing == {}
