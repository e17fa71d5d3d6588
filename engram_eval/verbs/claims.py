"""``engram-eval claims``: the verdicts over one or more study folders."""

import argparse
import json
import sys
from pathlib import Path

from engram_eval.verbs.verb import Verb


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="study folders")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="machine-readable")
    form.add_argument("--markdown", action="store_true", help="a table, as for a README")


def _claims(arguments: argparse.Namespace) -> int:
    from engram_eval.claims.table import brief, markdown, table
    from engram_eval.claims.verdicts import FILE, read_verdicts

    told = [folder for folder in arguments.folders if (folder / FILE).exists()]
    for folder in arguments.folders:
        # A published study whose claims could not be tested has none; others beside it do.
        if folder not in told and (folder / "study.json").exists() and told:
            print(f"{folder}: no claim of it could be tested", file=sys.stderr)
        elif folder not in told:
            told.append(folder)
    found = [entry for folder in told for entry in read_verdicts(folder)]
    if arguments.json:
        print(json.dumps([brief(entry) for entry in found], indent=1))
    else:
        print(markdown(found) if arguments.markdown else table(found))
    return 0


CLAIMS = Verb("the verdicts of finished studies", _arguments, _claims)
