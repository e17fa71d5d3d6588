"""``engram-eval convert``: a checkpoint under other names, or with quantised rows."""

import argparse
from pathlib import Path

from engram_eval.verbs.verb import Verb


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="a model's folder or tensor file")
    parser.add_argument("target", type=Path, metavar="DST", help="what to write; must not exist")
    parser.add_argument(
        "--to", required=True, help="hf, official (DeepSeek's demonstration), or int8 or fp8 rows"
    )


def _convert(arguments: argparse.Namespace) -> int:
    from engram_eval.formats.convert import convert

    convert(arguments.source, arguments.target, arguments.to)
    print(arguments.target)
    return 0


CONVERT = Verb("rename Engram weights, or quantise their rows", _convert_arguments, _convert)
