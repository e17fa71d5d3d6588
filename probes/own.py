"""Probes that lie outside of this package, named by where they are: ``my_probes:token_norms``."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from engram_eval.errors import UserError, unknown
from engram_eval.files import file_sha256
from engram_eval.own_module import own_module
from probes.entry import Probe

SINGLE, PAIR = 3, 4
"""Positional arguments: (adapter, sample, reporter), with a second adapter for two models."""


def own_probe(name: str) -> Probe:
    """Return a probe from ``module:function``, of a module that Python finds.

    A function of three positional arguments, (adapter, sample, reporter), looks at one model; one
    of four, (adapter, adapter, sample, reporter), compares two. It returns ``Findings``.

    Raises:
        UserError: no such module or function, or it takes other arguments.
    """
    function = _function(name)
    given = inspect.signature(function).parameters.values()
    count = sum(each.kind < inspect.Parameter.VAR_POSITIONAL for each in given)
    kinds: dict[int, Literal["single", "pair"]] = {SINGLE: "single", PAIR: "pair"}
    if count not in kinds:
        raise UserError(
            f"probe {name!r} takes {count} arguments; a probe takes (adapter, sample, reporter), "
            "or (adapter, adapter, sample, reporter) to compare two models"
        )
    about = (inspect.getdoc(function) or "a probe of your own").splitlines()[0]
    return Probe(name, kinds[count], about)


def own_source(name: str) -> str:
    """Return the SHA-256 of the file that an own probe is written in.

    A changed file is asked again. Modules that it imports do not count.

    Raises:
        UserError: no module or function of this name, or one without a file.
    """
    source = inspect.getsourcefile(_function(name))
    if source is None:
        raise UserError(f"probe {name!r} has no source file, by which a study would know it again")
    return file_sha256(Path(source))


def _function(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    found = own_module(module, f"probe {name!r}")
    functions = {key: value for key, value in vars(found).items() if inspect.isfunction(value)}
    if attribute not in functions:
        raise unknown(f"function of {module}", attribute, functions)
    return functions[attribute]
