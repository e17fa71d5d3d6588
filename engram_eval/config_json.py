"""Configurations as plain JSON data, decoded strictly.

An unknown key, a value of the wrong type or an impossible value is a ``UserError`` that names
the path of the key and the nearest match. ``to_dict`` and ``from_dict`` are inverse.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, Union

from engram_eval.errors import UserError, nearest

T = TypeVar("T")

UNKEYED = {"keyed": False}
"""Marks a field that a finished result does not hang on: it is no part of a stage's key."""

KEYED_IF_SET = {"keyed": "if set"}
"""Marks a field that came later, with what was done before as its default: it is part of a key
where it says otherwise, so that what was finished before stays so."""


def to_dict(value: Any) -> Any:
    """Turn a configuration into plain JSON data (tuples become lists)."""
    return _plain(value, lambda found, item: True)


def key_dict(value: Any) -> Any:
    """Return ``to_dict`` without the fields that are no part of a key; see ``UNKEYED``."""
    return _plain(value, _in_key)


def _in_key(found: dataclasses.Field[Any], item: Any) -> bool:
    keyed = found.metadata.get("keyed", True)
    return item != found.default if keyed == "if set" else keyed


def _plain(value: Any, wanted: Callable[[dataclasses.Field[Any], Any], bool]) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [(f, getattr(value, f.name)) for f in dataclasses.fields(value)]
        return {f.name: _plain(item, wanted) for f, item in items if wanted(f, item)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, wanted) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, wanted) for item in value]
    return value


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Build ``cls`` from plain data; raises ``UserError`` with the path of the bad key."""
    if not isinstance(data, Mapping):
        raise UserError(f"{where or cls.__name__}: expected a table of keys, got {data!r}")
    hints = typing.get_type_hints(cls)
    values = {}
    for key, item in data.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in hints:
            raise UserError(
                f"unknown key {path!r}{nearest(str(key), hints)}; allowed: {', '.join(hints)}"
            )
        values[key] = _decode(hints[key], item, path)
    missing = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where or cls.__name__}: missing {', '.join(missing)}")
    return cls(**values)


def _decode(hint: Any, item: Any, path: str) -> Any:
    """Check one value against its type hint and convert lists to tuples."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return item
    if origin in (Union, types.UnionType):
        if item is None and type(None) in args:
            return None
        return _decode(next(a for a in args if a is not type(None)), item, path)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), item, path)
    if origin is tuple and isinstance(item, list | tuple):
        return tuple(_decode(args[0], x, f"{path}[{i}]") for i, x in enumerate(item))
    if origin is not None and issubclass(origin, Mapping) and isinstance(item, Mapping):
        return {str(k): _decode(args[1], v, f"{path}.{k}") for k, v in item.items()}
    if hint is float and isinstance(item, int) and not isinstance(item, bool):
        return float(item)
    if isinstance(item, float) and not math.isfinite(item):
        raise UserError(f"{path}: {item} is no number")
    if isinstance(hint, type) and type(item) is hint:
        return item
    if origin is tuple:
        words = item.split(",") if isinstance(item, str) else [item]
        shown = json.dumps([word.strip() if isinstance(word, str) else word for word in words])
        raise UserError(f"{path}: expected a list, as {shown}, got {item!r}")
    name = getattr(hint, "__name__", str(hint))
    raise UserError(f"{path}: expected {name}, got {item!r}")
