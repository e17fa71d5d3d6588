"""What a verb of the command line is."""

import argparse
from collections.abc import Callable
from typing import NamedTuple


class Verb(NamedTuple):
    """One verb: what it does in a line, its arguments, its action (returns the exit code)."""

    about: str
    arguments: Callable[[argparse.ArgumentParser], None]
    action: Callable[[argparse.Namespace], int]
