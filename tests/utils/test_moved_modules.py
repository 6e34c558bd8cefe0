"""Old names of moved modules give the modules of today, with a warning."""

import importlib
import sys

import pytest

from andfast.utils.moved_modules import MOVED


@pytest.fixture(autouse=True)
def _not_imported_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if any(name == old or name.startswith(f"{old}.") for old in MOVED):
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(("old", "new"), [*MOVED.items(), ("andfast.upscaling.formats", "andfast.inference.formats")])
def test_the_old_name_is_the_same_module(old: str, new: str) -> None:
    expected = importlib.import_module(new)
    spec = expected.__spec__
    with pytest.warns(FutureWarning, match=f"{old} is now {new}; the old name will go"):
        module = importlib.import_module(old)
    assert module is expected
    assert (module.__name__, module.__spec__) == (new, spec)


def test_other_names_are_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match="andfast\\.nothing"):
        importlib.import_module("andfast.nothing")
