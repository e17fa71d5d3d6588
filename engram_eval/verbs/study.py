"""Studies: run all stages or one, count what they cost, compare trained models."""

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_eval.errors import UserError, unknown
from engram_eval.parallel.launched import launched
from engram_eval.verbs.verb import MANY, Verb, names_of

if TYPE_CHECKING:
    from engram_eval.node import Node

STUDY_HELP = "a shipped study, a scale, a .toml/.json file or a folder"

TOKENIZER_HELP = (
    "an existing fast tokenizer instead of one that is trained on the text: a folder, a "
    "tokenizer.json or a name on the Hugging Face hub"
)

STAGE_VERBS = {
    "train": ("tune", "train", "load"),
    "evaluate": ("evaluate", "equal_loss", "score_equal_loss", "baseline", "update"),
    "probe": ("equal_loss", "sample", "probe", "probe_pair"),
    "analyze": ("analyze",),
    "report": ("analyze", "report"),
}

SHARED_VERBS = {"train": ("train",), "evaluate": ("evaluate",)}
"""What several processes can do together, and which stages that is."""


CHOICES = ("set", "seeds", "tune", "arms")
"""Options that make another study of one."""

PLACES = ("scale", "corpus", "tokenizer", "mirror", "include_path", "unsafe_code")
"""Options that find a name's study, or what it reads."""


def _study_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", help=STUDY_HELP)
    _change_arguments(parser)


def _change_arguments(parser: argparse.ArgumentParser) -> None:
    choice_arguments(parser)
    parser.add_argument(
        "--skip-bad-batches", type=int, metavar="N", help="leave out up to N that give no number"
    )
    parser.add_argument("--tensorboard", action="store_true", help="also log for TensorBoard")
    _process_arguments(parser)


def choice_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides, beside the study's name, which study it is and where it lies."""
    parser.add_argument("--scale", help="smoke, tiny, quick (default), small or wiki")
    parser.add_argument("--out", type=Path, help="the study's folder (default: runs/<study>)")
    parser.add_argument("--seeds", type=int, help="seeds 0..N-1 for every model")
    parser.add_argument("--arms", **MANY, metavar="NAME", help="only these of its models")
    parser.add_argument("--corpus", **MANY, metavar="PATH", help="your own text")
    parser.add_argument("--tokenizer", metavar="WHERE", help=TOKENIZER_HELP)
    parser.add_argument("--tune", action="store_true", help="choose each arm's rates by short runs")
    parser.add_argument("--set", **MANY, metavar="KEY=VALUE", help="overrides")
    _data_arguments(parser)


def _process_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=int, help="processes (default: one for each GPU, else for each core)"
    )
    parser.add_argument(
        "--launcher", choices=("processes", "submitit"), default="processes", help="who runs stages"
    )
    parser.add_argument("--job", **MANY, metavar="KEY=VALUE", help="submitit: timeout_min=60 ...")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _launcher(arguments: argparse.Namespace) -> Any:
    """Return what runs the stages, or None for processes on this machine."""
    if arguments.launcher == "processes":
        if arguments.job:
            raise UserError("--job is for --launcher submitit")
        return None
    from engram_eval.running.submitit_jobs import read_parameters, run_as_jobs

    parameters = read_parameters(arguments.job)
    return functools.partial(run_as_jobs, parameters=parameters, workers=arguments.workers)


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        *("--include-path", "--include_path"),
        **MANY,
        metavar="DIR",
        help="folders of your own tasks (lm-eval's YAML), then asked by name",
    )
    parser.add_argument("--mirror", metavar="DIR", help="read lm-eval's datasets from here")
    parser.add_argument(
        "--unsafe-code", action="store_true", help="run generated code without the sandbox"
    )


def _stage_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", help=STUDY_HELP)
    _change_arguments(parser)
    parser.add_argument("--model", help="only this model")
    parser.add_argument("--seed", type=int, help="only this seed")


def find(arguments: argparse.Namespace) -> tuple[Any, Path]:
    """Resolve the study and its folder."""
    from engram_eval.studies.registry import find_study, study_folder

    study = find_study(
        arguments.study,
        arguments.scale,
        arguments.set,
        arguments.corpus,
        arguments.seeds,
        arguments.tune,
        arguments.arms,
        arguments.tokenizer,
    )
    study = _with_data(study, arguments)
    changed = any(getattr(arguments, name) for name in (*CHOICES, "corpus", "tokenizer"))
    manner: dict[str, Any] = {"tensorboard": True} if arguments.tensorboard else {}
    if arguments.skip_bad_batches is not None:
        manner["skip_bad_batches"] = arguments.skip_bad_batches
    study = dataclasses.replace(study, train=dataclasses.replace(study.train, **manner))
    return study, arguments.out or study_folder(study, arguments.study, changed)


def _with_data(study: Any, arguments: argparse.Namespace) -> Any:
    """Put in where benchmark data lie, if that was given."""
    evaluate = study.evaluate
    if arguments.mirror is not None:
        mirror = str(Path(arguments.mirror).absolute())
        evaluate = dataclasses.replace(evaluate, mirror=mirror)
    if arguments.include_path:
        folders = tuple(str(Path(folder).absolute()) for folder in arguments.include_path)
        evaluate = dataclasses.replace(evaluate, include_path=folders)
    if arguments.unsafe_code:
        evaluate = dataclasses.replace(evaluate, unsafe_code=True)
    return dataclasses.replace(study, evaluate=evaluate)


def _every_stage() -> tuple[str, ...]:
    from engram_eval.stages import STAGES

    return (*STAGES, "analyze", "report")


def _run(arguments: argparse.Namespace) -> int:
    study, out = find(arguments)
    return _run_study(study, out, _every_stage(), arguments)


def one_stage(arguments: argparse.Namespace) -> int:
    """Run the stages of a verb on a study; return the exit code."""
    study, out = find(arguments)
    names = [model.name for model in study.models]
    if arguments.model is not None and arguments.model not in names:
        raise unknown("model", arguments.model, names)
    asked = [model for model in study.models if arguments.model in (None, model.name)]
    seeds = {seed for model in asked for seed in model.seeds}
    if arguments.seed is not None and arguments.seed not in seeds:
        whose = "the study" if arguments.model is None else arguments.model
        raise UserError(f"--seed {arguments.seed}: {whose} has {sorted(seeds)}")
    only = (arguments.model, arguments.seed)
    if launched():
        return _in_ranks(study, out, arguments, only)
    return _run_study(study, out, STAGE_VERBS[arguments.verb], arguments, only)


def _in_ranks(
    study: Any, out: Path, arguments: argparse.Namespace, only: tuple[str | None, int | None]
) -> int:
    """Run the stage as one of the processes that ``torchrun`` has started."""
    from engram_eval.progress import Reporter
    from engram_eval.running.rank_runner import run_in_ranks

    if arguments.verb not in SHARED_VERBS:
        allowed = " or ".join(SHARED_VERBS)
        raise UserError(f"torchrun: {arguments.verb} runs in one process; allowed: {allowed}")
    first = os.environ.get("RANK", "0") == "0"
    report = Reporter(quiet=arguments.quiet or not first)
    failed = run_in_ranks(study, out, report, SHARED_VERBS[arguments.verb], only)
    _tell(failed, out)
    if first:
        print(out)
    return 1 if failed else 0


def _run_study(
    study: Any,
    out: Path,
    stages: Sequence[str],
    arguments: argparse.Namespace,
    only: tuple[str | None, int | None] = (None, None),
    table: bool = False,
) -> int:
    from engram_eval.environment import default_workers
    from engram_eval.progress import Reporter
    from engram_eval.running.runner import run_study
    from engram_eval.stages import MARKDOWN, resolve

    workers = default_workers() if arguments.workers is None else arguments.workers
    if workers < 1:
        raise UserError(f"--workers {workers}: at least 1 is needed")
    report = Reporter(quiet=arguments.quiet)
    failed = run_study(study, out, report, stages, only, workers, _launcher(arguments))
    _tell(failed, out)
    if table:
        print(resolve(MARKDOWN)(out))
    print(out / "report.html" if "report" in stages else out)
    return 1 if failed else 0


def _tell(failed: Sequence["Node"], out: Path) -> None:
    """Say what did not finish, the first reason, and where all of them are told."""
    from engram_eval.running.runner import reason

    for node in failed:
        print(f"engram-eval: {node.label} did not finish", file=sys.stderr)
    for node in failed:
        why = reason(node, out.parent / "store")
        if why is not None:
            print(
                f"engram-eval: {node.label}: {why}; all reasons: engram-eval status {out}",
                file=sys.stderr,
            )
            return


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folders of trained models")
    parser.add_argument(
        "--tasks",
        action="extend",
        type=names_of,
        metavar="A,B",
        help="suites and tasks (task@shots), joined by commas (default: pocket)",
    )
    parser.add_argument(
        "--with",
        action="extend",
        dest="beside",
        type=names_of,
        default=[],
        metavar="A,B",
        help="memories beside the models, alone and around each: ngram, infini, cache, knn, rag",
    )
    parser.add_argument(
        "--corpus", **MANY, metavar="PATH", help="their text, if not the models' own"
    )
    parser.add_argument("--limit", type=int, default=0, help="most items of a task (0: all)")
    parser.add_argument("--lengths", type=int, **MANY, metavar="N", help="of the context suite")
    parser.add_argument("--out", type=Path, help="folder to fill (default: runs/compare-<hash>)")
    _data_arguments(parser)
    _process_arguments(parser)


def find_loaded(arguments: argparse.Namespace) -> Any:
    """Resolve what ``compare`` is given to the study that it runs."""
    from engram_eval.studies.loaded import loaded_study

    study = loaded_study(
        arguments.models,
        ["pocket"] if arguments.tasks is None else arguments.tasks,
        arguments.limit,
        arguments.beside,
        arguments.corpus,
        arguments.lengths,
    )
    return _with_data(study, arguments)


def _compare(arguments: argparse.Namespace) -> int:
    from engram_eval.config_json import to_dict
    from engram_eval.files import content_hash

    study = find_loaded(arguments)
    # What else was compared stays.
    own = Path("runs") / f"compare-{content_hash(to_dict(study))[:6]}"
    return _run_study(study, arguments.out or own, _every_stage(), arguments, table=True)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", nargs="?", help=STUDY_HELP)
    parser.add_argument("--paper", action="store_true", help="count the paper's models instead")
    _change_arguments(parser)
    parser.add_argument("--ranks", type=int, metavar="N", help="costs of N processes")
    parser.add_argument("--no-time", action="store_true", help="do not measure this machine")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.paper == (arguments.study is not None):
        raise UserError("plan needs either a study or --paper")
    if arguments.paper:
        return _plan_paper(arguments.json)
    from engram_eval.check import check_study
    from engram_eval.running.plan import plan, plan_table
    from engram_eval.study import solve

    study, _ = find(arguments)
    check_study(study, data=False)
    if arguments.ranks is not None and arguments.ranks < 1:
        raise UserError(f"--ranks {arguments.ranks}: at least 1 is needed")
    planned = plan(solve(study), not arguments.no_time, arguments.ranks)
    print(json.dumps(planned, indent=1) if arguments.json else plan_table(planned))
    return 0


def _plan_paper(as_json: bool) -> int:
    from engram_eval.costs.paper import paper_plan, paper_table

    rows = paper_plan()
    print(json.dumps(rows, indent=1) if as_json else paper_table(rows))
    return 0


STUDY_VERBS: dict[str, Verb] = {
    "run": Verb("run a study: train, evaluate, probe, report", _study_arguments, _run),
    "compare": Verb("score trained models on the same items", _compare_arguments, _compare),
    "plan": Verb("count a study's cost without training", _plan_arguments, _plan),
    "train": Verb("only the training of a study", _stage_arguments, one_stage),
    "evaluate": Verb("only the evaluation of a study", _stage_arguments, one_stage),
    "probe": Verb("only the probes of a study", _stage_arguments, one_stage),
    "analyze": Verb("compare the models of a study", _stage_arguments, one_stage),
}
