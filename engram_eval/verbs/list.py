"""``engram-eval list``: what there is by name."""

import argparse
import json

from engram_eval.verbs.verb import Verb


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        help="studies, scales, variants, suites, tasks, probes, baselines, updates or claims",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _list(arguments: argparse.Namespace) -> int:
    from engram_eval.listing import listing

    rows = listing(arguments.what)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    width = max(len(name) for name in rows)
    for name, about in rows.items():
        print(f"{name:{width}}  {about}")
    return 0


LIST = Verb("what there is: studies, tasks, probes", _list_arguments, _list)
