"""One stage of a study by several processes, as ``torchrun`` starts them."""

import traceback
from collections.abc import Sequence
from pathlib import Path

from engram_eval.check import check_study
from engram_eval.config import StudyConfig
from engram_eval.errors import UserError
from engram_eval.node import Node
from engram_eval.parallel.launched import alone
from engram_eval.parallel.ranks import Ranks, joined
from engram_eval.progress import Reporter
from engram_eval.running.node_run import run_node
from engram_eval.running.runner import run_study, selected
from engram_eval.running.study_folder import check_folder
from engram_eval.stages import STAGES, resolve
from engram_eval.study import graph, solve


def run_in_ranks(
    study: StudyConfig,
    out: Path,
    report: Reporter,
    stages: Sequence[str],
    only: tuple[str | None, int | None],
) -> list[Node]:
    """Run the stages of a study that several processes can share, one after the other.

    Every process calls it. The first makes what the stages need, writes their records and the
    study's folder, as ``runner.run_study`` does; the others only take part.

    Args:
        study: solved here.
        out: the study's folder, on a disk that all processes share.
        report: where progress goes; that of the first process shows it.
        stages: which kinds of stage.
        only: model name and seed to which the stages are limited; None means all.

    Returns:
        The stages that failed in this process; the last of them alone where it is not the others'.
    """
    check_folder(study, out)
    check_study(study)
    solved = solve(study)
    with joined() as ranks:
        wanted = [n for n in graph(solved) if n.stage in stages and selected(n, only)]
        return _run(study, out, report, wanted, only, ranks)


def _run(
    study: StudyConfig,
    out: Path,
    report: Reporter,
    wanted: list[Node],
    only: tuple[str | None, int | None],
    ranks: Ranks,
) -> list[Node]:
    store = out.parent / "store"
    inputs = {node.stage for each in wanted for node in each.inputs.values()}
    if ranks.first:
        with alone():
            run_study(study, out, report, tuple(inputs - {each.stage for each in wanted}), only)
    todo = ranks.share([node.key for node in wanted if not node.done(store)])
    failed = []
    for node in wanted:
        if node.key not in todo:
            continue
        if ranks.first:
            ended_well = run_node(node, store, report) is None
        else:
            ended_well = _take_part(node, store, ranks.rank)
        if not ended_well:
            failed.append(node)
        if not ranks.finish(node.key, failed=not ended_well):
            return failed
    if ranks.first:
        run_study(study, out, report, ())
    return failed


def _take_part(node: Node, store: Path, rank: int) -> bool:
    """Do what the first process does in ``run_node``, without a record; return whether it ended.

    A failure is told on stderr and kept in ``error.<rank>.txt``: usually the first process fails
    alike and records it, but it cannot record what happened here alone.
    """
    inputs = {name: source.folder(store) for name, source in node.inputs.items()}
    function = resolve(STAGES[node.stage].function)
    try:
        function(inputs, node.config, node.seed, node.folder(store), Reporter(quiet=True))
    except UserError:
        raise
    # A stage may fail in any way; the processes stay in step, as ``run_node`` does.
    except Exception as failure:
        told = f"process {rank}, {node.label}: {type(failure).__name__}: {failure}"
        Reporter().say(f"engram-eval: {told}")
        place = node.folder(store) / f"error.{rank}.txt"
        place.write_text(traceback.format_exc(), encoding="utf-8")
        return False
    return True
