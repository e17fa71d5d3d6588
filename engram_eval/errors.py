"""Mistakes that a user can make, told in one line."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """Bad input: the command line prints the message alone and exits with code 2."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> UserError:
    """Build the error for a name that is in no registry: given, allowed, nearest match."""
    names = sorted(allowed)
    return UserError(
        f"unknown {kind} {given!r}{nearest(given, names)}; allowed: {', '.join(names)}"
    )


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return the entry of that name; raises ``unknown`` where there is none."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]
