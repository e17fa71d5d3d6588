"""``engram-eval list``: what there is by name."""

import argparse
import json
from collections.abc import Sequence

from engram_eval.errors import UserError
from engram_eval.verbs.verb import MANY, Verb


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        help="studies, scales, variants, suites, tasks, probes, baselines, updates or claims",
    )
    parser.add_argument(
        *("--include-path", "--include_path"),
        **MANY,
        metavar="DIR",
        help="tasks: also those of your own folders",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _list(arguments: argparse.Namespace) -> int:
    from engram_eval.listing import listing

    rows = listing(arguments.what)
    if arguments.include_path:
        rows |= _included(arguments.what, arguments.include_path)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    width = max(len(name) for name in rows)
    for name, about in rows.items():
        print(f"{name:{width}}  {about}")
    return 0


def _included(what: str, folders: Sequence[str]) -> dict[str, str]:
    """Return every task, group and tag of the user's folders -> the files that name it."""
    from engram_eval.evaluation.included import included_names

    if what != "tasks":
        raise UserError(f"--include-path {' '.join(folders)}: only tasks have folders, not {what}")
    return {
        name: ", ".join(sorted(map(str, files))) for name, files in included_names(folders).items()
    }


LIST = Verb("what there is: studies, tasks, probes", _list_arguments, _list)
