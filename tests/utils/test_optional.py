"""Optional packages and the commands that install them."""

import re
import shlex

import pytest
from documents import ROOT

from andfast.utils.optional import EXTRAS, install_command, packages_of

FOR_DEVELOPERS = {"docs", "test"}


def test_extras_are_those_of_the_project() -> None:
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name: list(requirements) for name, requirements in EXTRAS.items()} == {
        name: requirements for name, requirements in extras.items() if name not in FOR_DEVELOPERS
    }


@pytest.mark.parametrize("extra", EXTRAS)
def test_commands_are_for_a_shell(extra: str) -> None:
    assert shlex.split(install_command(extra)) == ["pip", "install", *EXTRAS[extra]]
    assert all(re.fullmatch(r"\w+", package) for package in packages_of(extra))


def test_nobody_is_sent_to_an_index_for_andfast() -> None:
    """It is on none."""
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *(ROOT / "andfast").rglob("*.py"), ROOT / "setup.py"]:
        assert not re.search(r"pip install (-\S+ )*['\"]?andfast\b(?!\S* @ )", path.read_text()), path
