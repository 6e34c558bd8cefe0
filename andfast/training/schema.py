"""The settings as a JSON schema, by which editors complete and check YAML files; from dataclasses and docstrings."""

from __future__ import annotations

import inspect
import math
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse  # comes with jsonargparse[signatures], which reads docstrings for --help
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from andfast.training.config import Config, plain
from andfast.utils.import_path import PATTERN, ImportPath

_SIMPLE: dict[Any, dict[str, Any]] = {
    Any: {},
    bool: {"type": "boolean"},
    float: {"type": "number"},
    int: {"type": "integer"},
    str: {"type": "string"},
    NoneType: {"type": "null"},
    ImportPath: {"type": "string", "pattern": PATTERN},
    NonNegativeFloat: {"type": "number", "minimum": 0},
    NonNegativeInt: {"type": "integer", "minimum": 0},
    PositiveFloat: {"type": "number", "exclusiveMinimum": 0},
    PositiveInt: {"type": "integer", "exclusiveMinimum": 0},
}


def settings_schema() -> dict[str, Any]:
    """The JSON schema (draft 7) of a YAML file for `--config`, which may have any of the settings."""
    schema = _of_group(Config) | {"$schema": "http://json-schema.org/draft-07/schema#", "title": "andfast.train"}
    # Dotted names, as in attack.steps: 5, are valid at the top.
    return schema | {"patternProperties": {r"\.": {}}}


def _of_group(kind: type) -> dict[str, Any]:
    docstring = parse(inspect.getdoc(kind) or "")
    descriptions = {each.arg_name: " ".join((each.description or "").split()) for each in docstring.params}
    hints = get_type_hints(kind)
    properties = {}
    for setting in fields(kind):
        properties[setting.name] = _of(hints[setting.name]) | {"description": descriptions[setting.name]}
        default = setting.default if setting.default_factory is MISSING else setting.default_factory()
        if not is_dataclass(default) and default != math.inf:  # which JSON cannot write
            properties[setting.name]["default"] = plain(default)
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _of(hint: Any) -> dict[str, Any]:
    """The schema of a setting's type."""
    if hint in _SIMPLE:
        return dict(_SIMPLE[hint])
    if isinstance(hint, type) and is_dataclass(hint):
        return _of_group(hint)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(parts)}
    if origin in (Union, UnionType):
        return {"anyOf": [_of(part) for part in parts]}
    if origin is list:
        return {"type": "array", "items": _of(parts[0])}
    if origin is tuple:
        size = {"minItems": len(parts), "maxItems": len(parts)}
        return {"type": "array", "items": [_of(part) for part in parts], **size}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(parts[1])}
    raise TypeError(f"there is no schema for {hint}")
