"""What a verb of the command line is."""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

MANY: dict[str, Any] = {"action": "extend", "nargs": "+", "default": []}
"""An option of several words, each time that it is given."""


def names_of(text: str) -> list[str]:
    """Return the names that commas join in one word of the command line, without blanks around.

    Raises:
        ArgumentTypeError: there are none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing; expected names, as a,b")
    return names


class Verb(NamedTuple):
    """One verb: what it does in a line, its arguments, its action (returns the exit code)."""

    about: str
    arguments: Callable[[argparse.ArgumentParser], None]
    action: Callable[[argparse.Namespace], int]
