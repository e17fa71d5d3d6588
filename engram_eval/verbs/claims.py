"""``engram-eval claims``: the verdicts over one or more study folders."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from engram_eval.errors import UserError
from engram_eval.verbs.verb import Verb


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="study folders")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="machine-readable")
    form.add_argument("--markdown", action="store_true", help="a table, as for a README")


def _claims(arguments: argparse.Namespace) -> int:
    from engram_eval.claims.stored import read_verdicts
    from engram_eval.claims.table import brief, markdown, table

    _each_once(arguments.folders)
    found = [
        entry
        for folder in arguments.folders
        if not _untested(folder, alone=len(arguments.folders) == 1)
        for entry in read_verdicts(folder)
    ]
    if arguments.json:
        print(json.dumps([brief(entry) for entry in found], indent=1))
    else:
        print(markdown(found) if arguments.markdown else table(found))
    return 0


def _each_once(folders: Sequence[Path]) -> None:
    """Refuse a folder that is given twice: its claims would count twice."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        first = seen.setdefault(folder.resolve(), folder)
        if first is not folder:
            raise UserError(f"{folder}: given twice, before as {first}")


def _untested(folder: Path, alone: bool) -> bool:
    """Tell, and say, whether a published study among others has no claim that could be tested."""
    from engram_eval.claims.stored import FILE

    published = (folder / "provenance.json").exists() and not (folder / FILE).exists()
    if published and not alone:
        print(f"{folder}: no claim of it could be tested", file=sys.stderr)
    return published and not alone


CLAIMS = Verb("the verdicts of finished studies", _arguments, _claims)
