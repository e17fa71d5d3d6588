"""``engram-eval bench``: measured here and now, each beside its peer."""

import argparse
import json

from engram_eval.errors import unknown
from engram_eval.verbs.verb import Verb


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", help="train, evaluate, lookup, offload or probe")
    parser.add_argument("--seconds", type=float, default=60.0, help="time to spend")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _bench(arguments: argparse.Namespace) -> int:
    from engram_eval.bench.registry import BENCHES, bench_table
    from engram_eval.progress import Reporter
    from engram_eval.stages import resolve

    if arguments.what not in BENCHES:
        raise unknown("bench", arguments.what, BENCHES)
    rows = resolve(BENCHES[arguments.what])(arguments.seconds, Reporter(quiet=arguments.quiet))
    print(json.dumps(rows, indent=1) if arguments.json else bench_table(rows))
    return 0


BENCH = Verb("measure here and now, beside a peer", _bench_arguments, _bench)
