"""``engram-eval verify``: our module against stored reference vectors."""

import argparse
import sys
from pathlib import Path

from engram_eval.verbs.verb import Verb


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.safetensors")
    parser.add_argument("--quiet", action="store_true", help="only the verdict")


def _verify(arguments: argparse.Namespace) -> int:
    from engram_eval.formats.verify import verify
    from engram_eval.progress import Reporter

    passed = verify(arguments.files, Reporter(quiet=arguments.quiet, out=sys.stdout))
    print("all equal" if passed else "MISMATCH")
    return 0 if passed else 1


VERIFY = Verb("check our module against reference vectors", _verify_arguments, _verify)
