"""``--set key.path=value``: changes to a configuration, checked as it is."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from engram_eval.config_json import from_dict, to_dict
from engram_eval.errors import UserError, nearest

T = TypeVar("T")


def override(config: T, assignments: Sequence[str]) -> T:
    """Apply ``key.path=value`` assignments; values are JSON, or bare text.

    List elements are addressed by name where they have one (``models.moe.seeds=[0,1,2]``).
    """
    data = to_dict(config)
    for assignment in assignments:
        path, value = read_assignment("--set", assignment)
        keys = path.split(".")
        if keys[0] not in data:
            raise _unknown_key(path, keys[0], data)
        _assign(data, keys, value, path)
    return from_dict(type(config), data)


def read_assignment(option: str, word: str, example: str = "") -> tuple[str, Any]:
    """Split ``key=value``; the value is JSON, or bare text.

    Raises:
        UserError: there is no ``=``; names the option that the word was given to, and an example.
    """
    key, sign, text = word.partition("=")
    if not sign:
        hint = f", as {example}" if example else ""
        raise UserError(f"{option} {word!r}: expected key=value{hint}")
    try:
        return key, json.loads(text)
    except json.JSONDecodeError:
        return key, text


def _unknown_key(path: str, key: str, data: Mapping[str, Any]) -> UserError:
    """Build the error for a key that a table lacks; a table below may have it."""
    below = [
        f"{name}.{key}" for name, part in data.items() if isinstance(part, dict) and key in part
    ]
    hint = f" (did you mean {' or '.join(map(repr, below))}?)" if below else nearest(key, data)
    return UserError(f"--set {path}: unknown key {key!r}{hint}; allowed: {', '.join(data)}")


def _assign(data: Any, keys: list[str], value: Any, path: str) -> None:
    """Set a nested value in plain data, creating nothing that is not in the schema."""
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(data, list):
            named = {str(item.get("name")): item for item in data if isinstance(item, dict)}
            if key not in named:
                raise UserError(
                    f"--set {path}: no element {key!r}{nearest(key, named)}; "
                    f"allowed: {', '.join(named)}"
                )
            if last:
                raise UserError(f"--set {path}: name a key of {key!r}")
            data = named[key]
        elif isinstance(data, dict):
            if last:
                data[key] = value
            elif key not in data:
                raise _unknown_key(path, key, data)
            else:
                data = data[key]
        else:
            raise UserError(f"--set {path}: {'.'.join(keys[:position])} has no keys")
