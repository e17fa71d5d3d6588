"""``engram-eval bench``: measured here and now, each beside its peer."""

import argparse
import inspect
import json
from pathlib import Path

from engram_eval.errors import UserError, unknown
from engram_eval.quiet import settle_libraries
from engram_eval.verbs.verb import Verb


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", help="train, evaluate, lookup, offload, probe or quantised")
    parser.add_argument("model", nargs="?", type=Path, help="a trained model, for quantised")
    parser.add_argument(
        "--corpus", type=Path, metavar="DIR", help="built text to score it on (default: its run's)"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="time to spend")
    parser.add_argument("--scale", help="shape of what is trained (train; default: quick)")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _bench(arguments: argparse.Namespace) -> int:
    from engram_eval.bench.registry import BENCHES, MODEL_BENCHES, bench_table
    from engram_eval.progress import Reporter
    from engram_eval.stages import resolve

    what, model, corpus = arguments.what, arguments.model, arguments.corpus
    if what not in {**BENCHES, **MODEL_BENCHES}:
        raise unknown("bench", what, [*BENCHES, *MODEL_BENCHES])
    if arguments.seconds <= 0:
        raise UserError(f"--seconds {arguments.seconds:g}: must be above 0")
    bench, options = resolve({**BENCHES, **MODEL_BENCHES}[what]), {}
    if arguments.scale is not None:
        if "scale" not in inspect.signature(bench).parameters:
            raise UserError(f"bench {what} takes no --scale")
        options["scale"] = arguments.scale
    spent = arguments.seconds, Reporter(quiet=arguments.quiet)
    if what in BENCHES:
        if model is not None or corpus is not None:
            raise UserError(f"bench {what} makes its own models and text; leave {model or corpus}")
        rows = bench(*spent, **options)
    elif model is None:
        raise UserError(f"bench {what} needs a model's folder, such as runs/.../seed0")
    else:
        # Its numbers do not depend on the cores, and no progress but ours is shown.
        settle_libraries()
        rows = bench(model, corpus, *spent)
    print(json.dumps(rows, indent=1) if arguments.json else bench_table(rows))
    return 0


BENCH = Verb("measure here and now, beside a peer", _bench_arguments, _bench)
