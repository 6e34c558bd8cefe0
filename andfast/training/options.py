"""Settings from the command line: defaults, YAML files and dotted options; and back to YAML."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from argparse import SUPPRESS, Action
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args

import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader
from jsonargparse.typing import Path_fr

from andfast.training.config import RENAMED, Config
from andfast.training.schema import settings_schema
from andfast.training.setting_names import about_value, meant_by
from andfast.utils.yaml_files import load_yaml, parse, read_text

# The settings, with all below them, that may be infinite.
_UNBOUNDED = re.compile(r"attack\.(epsilon|scale_factors(\..*)?)")


def _load(text: str) -> Any:
    """Parse a value or a whole file; text such as "name:" stays text."""
    try:
        value = load_yaml(text)
    except yaml.reader.ReaderError:  # a character that YAML does not allow, as in file names that are not UTF-8
        return text
    has_no_values = isinstance(value, dict) and value and all(item is None for item in value.values())
    return text if has_no_values else value


set_loader("andfast", _load, (yaml.YAMLError, ValueError))


#: The configurations that come with andfast.
CONFIGS = Path(__file__).parents[1] / "configs"


class Parser(ArgumentParser):
    """A parser that reads files with `andfast.utils.yaml_files` and lists the allowed names if one is unknown."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options | {"parser_mode": "andfast"})

    def parse_args(self, arguments: Sequence[str] | None = None, *more: Any, **options: Any) -> Namespace:
        """The settings; values that jsonargparse accepts but that are invalid end the program with exit code 2.

        `--config` takes the names of `configuration_names()`, too.
        """
        arguments = sys.argv[1:] if arguments is None else arguments
        settings = super().parse_args(_with_files(arguments), *more, **options)
        try:
            for action in self._actions:
                if action.dest in settings:
                    self._check_value(action.dest, settings[action.dest])
        except ValueError as error:
            self.error(str(error))
        return settings

    def parse_path(self, path: str | os.PathLike, *arguments: Any, **options: Any) -> Namespace:
        """Read the settings in a file; one that is not YAML ends the program with exit code 2."""
        if os.fspath(path) == "-":  # standard input
            return super().parse_path(path, *arguments, **options)
        try:
            text = read_text(path)
            self._check(path, parse(path, text))
        except (OSError, ValueError) as error:
            self.error(f"--config {error}")
        with Path_fr(os.fspath(path)).relative_path_context():
            return self.parse_string(text, os.path.basename(path), *arguments, **options)

    def _check(self, path: str | os.PathLike, content: Any) -> None:
        """Raise a ValueError for a file that has no settings, an empty group, or one setting twice."""
        if not isinstance(content, dict) or not content:
            raise ValueError(f"{path}: holds no settings; a setting is a line as seed: 1")
        leaves = list(_leaves(content))
        for key, value in leaves:
            self._check_value(key, value, f"{path}: ")
            if [other for other, _ in leaves].count(key) > 1:
                raise ValueError(f"{path}: {key} stands twice, nested and dotted")

    def _check_value(self, key: str, value: Any, where: str = "") -> None:
        """Raise a ValueError for the value of a whole group, and for null or infinity where they are invalid."""
        names = [action.dest for action in self._actions if not action.dest.endswith(".help")]
        below = [name for name in names if name.startswith(f"{key}.")]
        kind = next((getattr(action, "_typehint", None) for action in self._actions if action.dest == key), None)
        if below and value is None:
            raise ValueError(f"{where}there is no setting below {key}; leave that line out, too")
        if below and not isinstance(value, (dict, Namespace)):
            raise ValueError(f"{where}{key} is {value!r}; it is a group: give the settings below it, as {below[0]}")
        if value is None and kind is not None and NoneType not in get_args(kind):
            default = json.dumps(self.get_default(key), default=str)
            raise ValueError(f"{where}{key} is null, which is no value for it; leave it out for its default, {default}")
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(part, float) and math.isinf(part) for part in parts) and not _UNBOUNDED.fullmatch(key):
            raise ValueError(f"{where}{key} is {value}; it must be finite")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown = re.search(r"(?:Group '([\w.]+)' does not accept option '([\w.]+)'|arguments: --([\w.]+))", message)
        if unknown:
            group, option, whole = unknown.groups()
            key = whole or f"{group}.{option}"
            parent = key.rpartition(".")[0]
            known = [action.dest for action in self._actions if not action.dest.endswith((SUPPRESS, "help"))]
            siblings = [name for name in known if name.rpartition(".")[0] == parent]
            allowed = f"allowed are {', '.join(siblings)}" if siblings else f"there is no group {parent}"
            message = f"{message}\n  {key} is no setting; {self._hint(key, known)}{allowed}"
        if missing := re.search(r"Parser key \"config\": File does not exist: '(.*)'", message):
            names = ", ".join(configuration_names())
            message = f"--config {missing[1]}: no such file, nor a configuration of andfast; those are {names}"
        super().error(about_value(message) or message, ex)

    def _hint(self, key: str, known: Sequence[str]) -> str:
        """Which setting may be meant by a wrong key, and how its value looks; empty: there is no telling."""
        name = meant_by(key, known)
        if name is None:
            return ""
        if name == RENAMED.get(key):
            return f"it is called {name} now; "
        if name == "config":
            return "did you mean --config? "
        example = json.dumps(self.get_default(name), default=str)
        return f"did you mean {name}? {'' if example[0] == '{' else f'Its default is {example}; '}"


class _PrintSchema(Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, SUPPRESS, nargs=0, default=SUPPRESS, **options)

    def __call__(self, parser: Any, *arguments: Any) -> None:
        print(json.dumps(settings_schema(), indent=1, allow_nan=False))
        parser.exit()


def configuration_names() -> list[str]:
    """The names of the configurations that come with andfast, sorted."""
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))


def one_of_andfast() -> str:
    """For the help of `--config`: its names."""
    return f"one that comes with andfast: {', '.join(configuration_names())}"


def _with_files(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with the files of configurations that `--config` names."""
    found, names = list(arguments), configuration_names()
    for index, argument in enumerate(found):
        option, equals, value = argument.partition("=")
        if option == "--config" and equals:
            given, prefix = value, "--config="
        elif found[index - 1 : index] == ["--config"]:
            given, prefix = argument, ""
        else:
            continue
        name = given.removesuffix(".yaml")
        if name in names and not os.path.isfile(given):
            found[index] = f"{prefix}{CONFIGS / name}.yaml"
    return found


def _leaves(settings: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested settings with their dotted names, repeated names included."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parse_config(arguments: Sequence[str] | None = None) -> Config:
    """The configuration of `andfast.train` from defaults, `--config FILE` and dotted options, of which later ones win.

    A wrong key or value ends the program with exit code 2 and a message that names it and the allowed ones.
    """
    parser = Parser(
        prog="python -m andfast.train",
        usage="%(prog)s [--config FILE] [--KEY VALUE ...]",
        allow_abbrev=False,
        description="Train a blind super-resolution model against the adversarial degradation of the AND paper.",
    )
    names = ", ".join(configuration_names())
    parser.add_argument(
        "--config", action="config", help=f"a YAML file with any of the settings below, or one of {names}"
    )
    parser.add_argument(
        "--print_schema", action=_PrintSchema, help="print the settings' JSON schema, for editors, and exit"
    )
    parser.add_class_arguments(Config)
    namespace = parser.parse_args(join_lists(arguments, "--data.hr", "--data.val_hr"))
    try:
        values = parser.instantiate(namespace)
        return Config(**{name: getattr(values, name) for name in Config.__dataclass_fields__})
    except ValueError as error:
        parser.error(str(error))


def join_lists(arguments: Sequence[str] | None, *options: str) -> list[str]:
    """The arguments (None: the process's), with `OPTION A B` of `options` joined to one JSON list for the parser."""
    joined: list[str] = []
    values: list[str] | None = None
    for argument in [*(sys.argv[1:] if arguments is None else arguments), "--"]:
        option, equals, value = argument.partition("=")
        if values is not None and not argument.startswith("--"):
            values.append(argument)
            continue
        if values is not None:
            literal = len(values) == 1 and values[0].startswith("[")
            # An option without a value stays bare, which the parser refuses.
            joined += values if literal or not values else [json.dumps(values)]
            values = None
        if option in options:
            joined.append(option)
            values = [value] if equals else []
        else:
            joined.append(argument)
    return joined[:-1]
