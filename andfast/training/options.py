"""Settings from the command line: defaults, YAML files and dotted options; and back to YAML."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

from andfast.training.config import Config


def dump_yaml(settings: dict[str, Any]) -> str:
    """Settings as the text of a YAML file that `--config` reads."""
    return yaml.safe_dump(settings, sort_keys=False)


class Parser(ArgumentParser):
    """Adds the allowed names to the message about an unknown one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown = re.search(r"(?:Group '([\w.]+)' does not accept option '([\w.]+)'|arguments: --([\w.]+))", message)
        if unknown:
            group, option, whole = unknown.groups()
            key = whole or f"{group}.{option}"
            parent = key.rpartition(".")[0]
            known = [action.dest for action in self._actions if action.dest.rpartition(".")[0] == parent]
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            message = f"{message}\n  {key} is no setting; {hint}allowed are {', '.join(known)}"
        super().error(message, ex)


def make_parser() -> ArgumentParser:
    """The command line of `python -m andfast.train`."""
    parser = Parser(
        prog="python -m andfast.train",
        usage="%(prog)s [--config FILE] [--KEY VALUE ...]",
        allow_abbrev=False,
        description="Train a blind super-resolution model against the adversarial degradation of the AND paper.",
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of the settings below")
    parser.add_class_arguments(Config)
    return parser


def parse_config(arguments: Sequence[str] | None = None) -> Config:
    """The configuration from defaults, `--config FILE` and dotted options, later ones first.

    A wrong key or value ends the program with exit code 2 and a message that names it and what is allowed.
    """
    parser = make_parser()
    namespace = parser.parse_args(join_lists(arguments, "--data.hr", "--data.val_hr"))
    try:
        return _build(parser, namespace)
    except ValueError as error:
        parser.error(str(error))
        raise  # not reached


def _build(parser: ArgumentParser, namespace: Namespace) -> Config:
    values = parser.instantiate(namespace)
    return Config(**{name: getattr(values, name) for name in Config.__dataclass_fields__})


def join_lists(arguments: Sequence[str] | None, *options: str) -> list[str]:
    """The arguments (None: the process's) with `OPTION A B` of `options` as the one JSON list that the parser takes."""
    joined: list[str] = []
    values: list[str] | None = None
    for argument in [*(sys.argv[1:] if arguments is None else arguments), "--"]:
        option, equals, value = argument.partition("=")
        if values is not None and not argument.startswith("--"):
            values.append(argument)
            continue
        if values is not None:
            literal = len(values) == 1 and values[0].startswith("[")
            # Without a value the option is left bare, for the parser to complain.
            joined += values if literal or not values else [json.dumps(values)]
            values = None
        if option in options:
            joined.append(option)
            values = [value] if equals else []
        else:
            joined.append(argument)
    return joined[:-1]
