"""``engram-eval status``: what a run's folder holds and lacks."""

import argparse
import json
from pathlib import Path

from engram_eval.verbs.verb import Verb


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _status(arguments: argparse.Namespace) -> int:
    from engram_eval.running.status import status, status_table

    stages = status(arguments.folder)
    print(json.dumps(stages, indent=1) if arguments.json else status_table(stages))
    return 0 if all(stage["status"] == "ok" for stage in stages) else 1


STATUS = Verb("what a run's folder holds and lacks", _status_arguments, _status)
