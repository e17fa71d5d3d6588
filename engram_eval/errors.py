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


def check_text(text: str) -> None:
    """Refuse what the terminal could not read as UTF-8; no tokenizer takes it.

    Raises:
        UserError: says where the first such byte stands.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text is not UTF-8, from its character {error.start} on") from error


def check_seed(where: str, seed: int) -> None:
    """Refuse a seed that generators of random numbers do not take.

    Raises:
        UserError: names the seed by ``where`` it was given.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"{where} {seed}: no seed; allowed: 0 to 2^63 - 1")


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return the entry of that name; raises ``unknown`` where there is none."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]
