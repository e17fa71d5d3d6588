"""``engram-eval mirror``: benchmark data from local files, for machines without the hub."""

import argparse
import json
from pathlib import Path

from engram_eval.verbs.verb import Verb, names_of


def _mirror_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="make a mirror of local files, or add to one")
    build.add_argument("spec", type=Path, metavar="SPEC", help="a .toml file, or eval-pack")
    build.add_argument(
        "--root", type=Path, default=Path(), metavar="DIR", help="what the spec's paths start from"
    )
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="the mirror")
    build.add_argument("--quiet", action="store_true", help="no progress")
    check = actions.add_parser("check", help="say for each task whether it would run")
    check.add_argument("mirror", type=Path, metavar="DIR")
    check.add_argument(
        "--tasks",
        action="extend",
        type=names_of,
        metavar="A,B",
        help="suites and tasks, joined by commas (default: small)",
    )
    check.add_argument("--unsafe-code", action="store_true", help="as for compare")
    check.add_argument("--json", action="store_true", help="machine-readable")
    check.add_argument("--quiet", action="store_true", help="no progress")


def _mirror(arguments: argparse.Namespace) -> int:
    return _build(arguments) if arguments.action == "build" else _check(arguments)


def _build(arguments: argparse.Namespace) -> int:
    from engram_eval.evaluation.mirror_build import build_mirror
    from engram_eval.evaluation.mirror_spec import read_spec
    from engram_eval.progress import Reporter

    report = Reporter(quiet=arguments.quiet)
    print(build_mirror(read_spec(arguments.spec), arguments.root, arguments.out, report))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from engram_eval.evaluation.mirror_check import check_mirror, verdict_table
    from engram_eval.progress import Reporter

    names = ["small"] if arguments.tasks is None else arguments.tasks
    report = Reporter(quiet=arguments.quiet)
    verdicts = check_mirror(arguments.mirror, names, report, arguments.unsafe_code)
    rows = [verdict._asdict() for verdict in verdicts]
    print(json.dumps(rows, indent=1) if arguments.json else verdict_table(verdicts))
    return 0 if all(verdict.runs for verdict in verdicts) else 1


MIRROR = Verb("build or check an offline mirror of benchmark data", _mirror_arguments, _mirror)
