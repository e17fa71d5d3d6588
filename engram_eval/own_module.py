"""Modules of the user's own, by name: where Python finds them, in every process alike."""

import importlib
from types import ModuleType

from engram_eval.errors import UserError


def own_module(name: str, wanted_by: str) -> ModuleType:
    """Import a module of the user's.

    Args:
        name: as in an ``import``.
        wanted_by: begins the message where there is none.

    Raises:
        UserError: Python finds no such module. What a module that is found fails with is its own.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"{wanted_by}: Python finds no module {name}; install it, or name its folder in "
            "PYTHONPATH"
        ) from error
