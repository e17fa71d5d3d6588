"""The command line: ``engram-eval VERB ...``.

Heavy imports happen inside the verbs, so that ``--help`` answers at once. A mistake of the user
is one line on stderr and exit code 2; a failed stage or mismatch is exit code 1.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from engram_eval.errors import UserError, nearest, unknown
from engram_eval.quiet import settle_libraries

INTERRUPTED = 130
STAGE_VERBS = {
    "train": ("train", "load"),
    "evaluate": ("evaluate", "baseline"),
    "probe": ("probe", "probe_pair"),
    "analyze": ("analyze",),
    "report": ("analyze", "report"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Turn argparse's complaint into a ``UserError``."""
        raise UserError(f"{self.prog}: {message} (see {self.prog} --help)")


class Verb(NamedTuple):
    """One verb: what it does in a line, its arguments, its action (returns the exit code)."""

    about: str
    arguments: Callable[[argparse.ArgumentParser], None]
    action: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # Threads of libgomp wait by spinning, for milliseconds; on a busy machine that is taken from
    # the very thread they wait for. It is read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"engram-eval: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output has left (`| head`); there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"engram-eval: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("engram-eval: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _dispatch(argv: list[str]) -> int:
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        raise UserError(
            f"unknown verb {argv[0]!r}{nearest(argv[0], VERBS)}; allowed: {', '.join(VERBS)}"
        )
    arguments = build_parser().parse_args(argv or ["--help"])
    if arguments.verb != "bench":
        settle_libraries()
    return VERBS[arguments.verb].action(arguments)


def build_parser() -> Parser:
    """Return the parser of all verbs; its errors are ``UserError``."""
    parser = Parser(prog="engram-eval", description="The referee for conditional memory.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        sub = verbs.add_parser(name, help=verb.about, description=verb.about)
        verb.arguments(sub)
    return parser


def _study_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", help="a shipped study, a scale, a .toml/.json file or a folder")
    parser.add_argument("--scale", help="smoke, quick (default) or small")
    parser.add_argument("--out", type=Path, help="the study's folder (default: runs/<study>)")
    parser.add_argument("--seeds", type=int, help="seeds 0..N-1 for every model")
    parser.add_argument("--corpus", nargs="+", default=[], metavar="PATH", help="your own text")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides")
    _process_arguments(parser)


def _process_arguments(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=cores, help="processes (default: cores)")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _stage_arguments(parser: argparse.ArgumentParser) -> None:
    _study_arguments(parser)
    parser.add_argument("--model", help="only this model")
    parser.add_argument("--seed", type=int, help="only this seed")


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    _stage_arguments(parser)
    parser.add_argument("--figures", type=Path, metavar="DIR", help="also save PNG, SVG, PDF, CSV")
    parser.add_argument("--markdown", action="store_true", help="print the key results instead")


def _report(arguments: argparse.Namespace) -> int:
    from engram_eval.stages import FIGURES, MARKDOWN, resolve

    code = _one_stage(arguments) if not arguments.markdown else 0
    _, out = _find(arguments)
    if arguments.figures is not None:
        resolve(FIGURES)(out, arguments.figures)
        print(arguments.figures)
    if arguments.markdown:
        print(resolve(MARKDOWN)(out), end="")
    return code


def _find(arguments: argparse.Namespace) -> tuple[Any, Path]:
    """Resolve the study and its folder."""
    from engram_eval.studies.registry import find_study, study_folder

    study = find_study(
        arguments.study, arguments.scale, arguments.set, arguments.corpus, arguments.seeds
    )
    changed = bool(arguments.set or arguments.corpus or arguments.seeds)
    return study, arguments.out or study_folder(study, arguments.study, changed)


def _every_stage() -> tuple[str, ...]:
    from engram_eval.stages import STAGES

    return (*STAGES, "analyze", "report")


def _run(arguments: argparse.Namespace) -> int:
    study, out = _find(arguments)
    return _run_study(study, out, _every_stage(), arguments)


def _one_stage(arguments: argparse.Namespace) -> int:
    study, out = _find(arguments)
    names = [model.name for model in study.models]
    if arguments.model is not None and arguments.model not in names:
        raise unknown("model", arguments.model, names)
    seeds = {seed for model in study.models for seed in model.seeds}
    if arguments.seed is not None and arguments.seed not in seeds:
        raise UserError(f"--seed {arguments.seed}: the study has {sorted(seeds)}")
    only = (arguments.model, arguments.seed)
    return _run_study(study, out, STAGE_VERBS[arguments.verb], arguments, only)


def _run_study(
    study: Any,
    out: Path,
    stages: Sequence[str],
    arguments: argparse.Namespace,
    only: tuple[str | None, int | None] = (None, None),
) -> int:
    from engram_eval.progress import Reporter
    from engram_eval.runner import run_study

    if arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: at least 1 is needed")
    report = Reporter(quiet=arguments.quiet)
    failed = run_study(study, out, report, stages, only, arguments.workers)
    for node in failed:
        print(f"engram-eval: {node.label} did not finish", file=sys.stderr)
    print(out / "report.html" if "report" in stages else out)
    return 1 if failed else 0


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folders of trained models")
    parser.add_argument("--tasks", default="pocket", help="names, joined by commas")
    parser.add_argument("--with", dest="beside", default="", help="baselines, joined by commas")
    parser.add_argument("--limit", type=int, default=0, help="most items of a task (0: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder to fill")
    _process_arguments(parser)


def _compare(arguments: argparse.Namespace) -> int:
    from engram_eval.studies.loaded import loaded_study

    tasks = [name for name in arguments.tasks.split(",") if name]
    beside = [name for name in arguments.beside.split(",") if name]
    study = loaded_study(arguments.models, tasks, arguments.limit, beside)
    return _run_study(study, arguments.out, _every_stage(), arguments)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    _study_arguments(parser)
    parser.add_argument("--no-time", action="store_true", help="do not measure this machine")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _plan(arguments: argparse.Namespace) -> int:
    from engram_eval.plan import plan, plan_table
    from engram_eval.study import solve

    study, _ = _find(arguments)
    planned = plan(solve(study), measure=not arguments.no_time)
    print(json.dumps(planned, indent=1) if arguments.json else plan_table(planned))
    return 0


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.safetensors")
    parser.add_argument("--quiet", action="store_true", help="only the verdict")


def _verify(arguments: argparse.Namespace) -> int:
    from engram_eval.progress import Reporter
    from engram_eval.verify import verify

    passed = verify(arguments.files, Reporter(quiet=arguments.quiet, out=sys.stdout))
    print("all equal" if passed else "MISMATCH")
    return 0 if passed else 1


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", help="train or evaluate")
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


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", help="studies, scales, variants, tasks, probes or baselines")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _list(arguments: argparse.Namespace) -> int:
    from engram_eval.listing import LISTS, listing

    if arguments.what not in LISTS:
        raise unknown("list", arguments.what, LISTS)
    rows = listing(arguments.what)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    width = max(len(name) for name in rows)
    for name, about in rows.items():
        print(f"{name:{width}}  {about}")
    return 0


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _status(arguments: argparse.Namespace) -> int:
    from engram_eval.listing import status, status_table

    stages = status(arguments.folder)
    print(json.dumps(stages, indent=1) if arguments.json else status_table(stages))
    return 0 if all(stage["status"] == "ok" for stage in stages) else 1


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="DIR", help="a model's folder")
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=40, help="how many to add")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    parser.add_argument("--seed", type=int, default=0)


def _generate(arguments: argparse.Namespace) -> int:
    from engram_eval.generate import generate

    print(
        generate(
            arguments.model,
            arguments.prompt,
            arguments.tokens,
            arguments.temperature,
            arguments.seed,
        )
    )
    return 0


def _trace_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", help="a sentence")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a model's folder")
    parser.add_argument("--random", action="store_true", help="an untrained model instead")
    parser.add_argument("--seed", type=int, default=0, help="of the untrained model")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page, too")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _trace(arguments: argparse.Namespace) -> int:
    if (arguments.model is None) == (not arguments.random):
        raise UserError("trace needs either --model DIR or --random")
    from engram_eval.records import write_atomic
    from engram_eval.trace import trace_folder, trace_random
    from engram_eval.trace_view import trace_data, trace_html, trace_text

    if arguments.random:
        traced = trace_random(arguments.text, arguments.seed)
    else:
        traced = trace_folder(arguments.text, arguments.model)
    data = json.dumps(trace_data(traced), indent=1, ensure_ascii=False)
    print(data if arguments.json else trace_text(traced))
    if arguments.html is not None:
        write_atomic(arguments.html, trace_html(traced))
    return 0


VERBS: dict[str, Verb] = {
    "run": Verb("run a study: train, evaluate, probe, report", _study_arguments, _run),
    "compare": Verb("score trained models on the same items", _compare_arguments, _compare),
    "plan": Verb("count a study's cost without training", _plan_arguments, _plan),
    "train": Verb("only the training of a study", _stage_arguments, _one_stage),
    "evaluate": Verb("only the evaluation of a study", _stage_arguments, _one_stage),
    "probe": Verb("only the probes of a study", _stage_arguments, _one_stage),
    "analyze": Verb("compare the models of a study", _stage_arguments, _one_stage),
    "report": Verb("write the report of what is there", _report_arguments, _report),
    "verify": Verb("check our module against reference vectors", _verify_arguments, _verify),
    "bench": Verb("measure here and now, beside a peer", _bench_arguments, _bench),
    "list": Verb("what there is: studies, tasks, probes", _list_arguments, _list),
    "status": Verb("what a run's folder holds and lacks", _status_arguments, _status),
    "trace": Verb("follow a text through the memory", _trace_arguments, _trace),
    "generate": Verb("a quick taste of a model", _generate_arguments, _generate),
}


if __name__ == "__main__":
    sys.exit(main())
