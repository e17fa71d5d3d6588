"""``engram-eval publish``: keep what a finished study found, small enough for a repository."""

import argparse
from pathlib import Path

from engram_eval.verbs.verb import Verb


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="a study's folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="where to, as reports/published/main")


def _publish(arguments: argparse.Namespace) -> int:
    from engram_eval.publish import publish

    print(publish(arguments.folder, arguments.out))
    return 0


PUBLISH = Verb("keep what a finished study found", _arguments, _publish)
