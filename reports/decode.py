"""Reads recorded JSON leniently: what cannot be understood becomes a message, the rest is kept."""

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from engram_eval.errors import UserError
from engram_eval.records import MetricRow, row_from_dict

T = TypeVar("T")


class Problem(NamedTuple):
    """Something recorded that could not be read: where, and why."""

    where: str
    message: str


def fits(value: Any, hint: Any) -> bool:
    """Tell whether plain JSON data have the shape of a type hint."""
    checker: Callable[[Any], bool] = _checker(hint)
    return checker(value)


@cache
def _checker(hint: Any) -> Callable[[Any], bool]:
    """Compile a type hint into a test of a value."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return lambda value: True
    if origin is typing.Literal:
        return lambda value: value in args
    exact = _exact(hint)
    if exact:
        return lambda value: type(value) in exact
    if origin in (typing.Union, types.UnionType):
        checks = [_checker(arg) for arg in args]
        return lambda value: any(check(value) for check in checks)
    if origin is None:
        return lambda value: isinstance(value, hint)
    inner = [_checker(arg) for arg in args]
    if issubclass(origin, Mapping):
        return lambda value: (
            isinstance(value, Mapping)
            and all(inner[0](k) and inner[1](v) for k, v in value.items())
        )
    return lambda value: isinstance(value, list | tuple) and all(map(inner[0], value))


def _exact(hint: Any) -> frozenset[type]:
    """Return the types of JSON values that a hint of plain types allows; empty for others."""
    args = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) not in (None, typing.Union, types.UnionType):
        return frozenset()
    if not set(args) <= {bool, int, float, str, types.NoneType}:
        return frozenset()
    return frozenset(args) | ({int} if float in args else frozenset())


@cache
def _checks(cls: Any) -> list[tuple[str, Callable[[Any], bool]]]:
    hints: dict[str, Hashable] = typing.get_type_hints(cls)
    return [(field.name, _checker(hints[field.name])) for field in dataclasses.fields(cls)]


@cache
def _names(cls: Any) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(cls))


def check(instance: Any) -> None:
    """Raise ``ValueError`` where a field of a dataclass has not the type it declares."""
    cls: Any = type(instance)
    fields = vars(instance)
    # Most rows are alike: of one whose plain fields have the types of an earlier good one, only
    # those that hold others are looked into.
    seen, types = _seen(cls), tuple(map(type, fields.values()))
    for name, passes in _deep(cls) if types in seen else _checks(cls):
        if not passes(fields[name]):
            raise ValueError(f"{name}: unexpected {fields[name]!r}")
    seen.add(types)


@cache
def _seen(cls: Any) -> set[tuple[type, ...]]:
    """Return a set that fills with the types of fields that were found good, in their order."""
    return set()


@cache
def _deep(cls: Any) -> list[tuple[str, Callable[[Any], bool]]]:
    """Return the checks of fields whose type does not tell all."""
    hints: dict[str, Hashable] = typing.get_type_hints(cls)
    return [(name, passes) for name, passes in _checks(cls) if not _exact(hints[name])]


def decode(cls: type[T], data: Any) -> T:
    """Build a dataclass from an object of JSON, ignoring keys that it does not know.

    Raises:
        ValueError: if the data are no object, lack a needed key or hold a wrong type.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"expected an object, got {data!r}")
    kind: Any = cls
    names = _names(kind)
    try:
        instance = cls(**{key: value for key, value in data.items() if key in names})
    except TypeError as error:
        raise ValueError(str(error).partition("() ")[2] or str(error)) from error
    check(instance)
    return instance


def metric_row(data: Any) -> MetricRow:
    """Rebuild a metric row and check the type of each field; raises ``ValueError``."""
    if not isinstance(data, Mapping) or not isinstance(data.get("schema", 0), int):
        raise ValueError(f"expected a metric row, got {data!r}")
    try:
        row = row_from_dict(data)
    except TypeError as error:
        raise ValueError(f"a field has the wrong type ({error})") from error
    check(row)
    return row


def read_json(path: Path, kind: type[T], problems: list[Problem]) -> T:
    """Return what a JSON file holds, or an empty ``kind`` (with a problem noted) on failure."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, kind):
            return value
        problems.append(Problem(path.name, f"expected {kind.__name__}, got {str(value)[:80]}"))
    except FileNotFoundError:
        problems.append(Problem(path.name, "the file is missing"))
    except (OSError, ValueError) as error:
        problems.append(Problem(path.name, f"cannot be read: {error}"))
    return kind()


def _told(error: Exception) -> str:
    """Say in a few words what is wrong with a line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return (
        f"not JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else str(error)[:300]
    )


def read_lines(
    path: Path, build: Callable[[Any], T], problems: list[Problem], needed: bool = True
) -> Iterator[T]:
    """Yield what ``build`` makes of each line of a JSON-lines file; bad lines become problems."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        if needed or path.exists():
            missing = isinstance(error, FileNotFoundError)
            what = "the file is missing" if missing else f"cannot be read: {error}"
            problems.append(Problem(path.name, what))
        return
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            yield build(json.loads(line))
        except (UserError, ValueError, RecursionError) as error:
            problems.append(Problem(f"{path.name}, line {number}", _told(error)))
