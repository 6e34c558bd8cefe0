"""YAML as people write it, and settings written as YAML."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

# By their marks, the encodings that editors and shells of Windows write; all else is UTF-8.
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_FLOAT, _TIME = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"


class YamlError(ValueError):
    """A file that is no YAML; the message names it, and the line where there is one."""


class _Loader(yaml.SafeLoader):
    """Takes 1e-4 for a number, as YAML has since 1.2, and dates for text; refuses keys that stand twice.

    In Python, for libyaml refuses the escapes of names that are no UTF-8.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (that is what it is called)
        first: [(tag, form) for tag, form in forms if tag not in (_FLOAT, _TIME)]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_DIGITS = r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
_NUMBER = re.compile(rf"(?:{_DIGITS}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")


class _Dumper(yaml.SafeDumper):
    """Puts a text that `_Loader` would take for a number in quotes."""


for _kind in (_Loader, _Dumper):  # whole numbers are looked for first
    _kind.add_implicit_resolver(_FLOAT, _NUMBER, list("-+0123456789."))


def load_yaml(text: str) -> Any:
    """The value that a text of YAML stands for.

    Raises:
        yaml.YAMLError: it is none, has a key twice, or holds what holds itself.
    """
    try:
        value = yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested without end") from None
    _refuse_cycles(value, set())
    return value


def _refuse_cycles(value: Any, seen: set[int], name: str = "", within: tuple[Any, ...] = ()) -> None:
    """`seen`: by their ids, what was looked through before, which anchors can name any number of times."""
    if any(value is outer for outer in within):
        raise yaml.YAMLError(f"{name} holds itself")
    if id(value) in seen:
        return
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        _refuse_cycles(part, seen, f"{name}.{key}" if name else str(key), (*within, value))
    if isinstance(value, (dict, list)):
        seen.add(id(value))


def dump_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as the text of a YAML file, in ASCII."""
    return yaml.dump(dict(settings), Dumper=_Dumper, sort_keys=False)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The value in a YAML file: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        YamlError: it is no text, no YAML, or has a key twice.
        OSError: it cannot be read.
    """
    return parse(path, read_text(path))


def read_text(path: str | os.PathLike[str]) -> str:
    """The text in a file: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        YamlError: it is neither.
        OSError: it cannot be read.
    """
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise YamlError(f"{path}: line {line}: no text in UTF-8; save the file as UTF-8") from error
    if "\0" in text:  # as UTF-16 without its mark, or UTF-32
        raise YamlError(f"{path}: not YAML in UTF-8 (there are zeros in it); save the file as UTF-8")
    return text


def parse(path: str | os.PathLike[str], text: str) -> Any:
    """As `load_yaml`, of the text in a file.

    Raises:
        YamlError: it is no YAML, or has a key twice.
    """
    try:
        return load_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise YamlError(f"{path}: {line}{error.problem or error.context}") from error
    except yaml.YAMLError as error:  # a character that YAML has not
        raise YamlError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    except ValueError as error:  # as 0x_, or a date that is none, would be
        raise YamlError(f"{path}: not YAML ({error})") from error
