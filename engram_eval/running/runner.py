"""Run a study: stage by stage, resumable, a failed stage recorded and the rest finished."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from engram_eval.check import check_study
from engram_eval.config import StudyConfig
from engram_eval.errors import UserError
from engram_eval.files import read_json
from engram_eval.locks import refusing_lock
from engram_eval.node import Node
from engram_eval.progress import Reporter
from engram_eval.records import TOKENIZERS, read_record
from engram_eval.running.stage_seconds import of_flops
from engram_eval.running.study_folder import check_folder, study_ledger, write_study_folder
from engram_eval.running.workers import Launcher, run_nodes
from engram_eval.stages import ANALYZE, REPORT, STAGES, resolve
from engram_eval.study import graph, solve


def run_study(
    study: StudyConfig,
    out: Path,
    report: Reporter,
    stages: Sequence[str] = (*STAGES, "analyze", "report"),
    only: tuple[str | None, int | None] = (None, None),
    workers: int = 1,
    launcher: Launcher | None = None,
) -> list[Node]:
    """Run the missing stages of a study and write its folder.

    Args:
        study: solved here if it is not yet.
        out: the study's folder; results go to ``store`` beside it.
        report: where progress goes.
        stages: which kinds of stage may run; inputs that are missing are made first.
        only: model name and seed to which the stages are limited; None means all.
        workers: processes that run stages side by side.
        launcher: runs the stages elsewhere; see ``workers.run_nodes``.

    Returns:
        The stages that failed or could not run; empty if all is well.

    Raises:
        UserError: a mistake in the study, or a folder that holds another one.
    """
    check_folder(study, out)
    study, nodes = _prepared(study, out, stages, report)
    store = out.parent / "store"
    wanted = _with_inputs([n for n in nodes if n.stage in stages and selected(n, only)])
    # A report alone must not touch what was recorded elsewhere, or by another version.
    ours = bool(wanted) or any(node.done(store) for node in nodes)
    if not ours and not (out / "metrics.jsonl").exists():
        raise UserError(f"{out}: nothing of this study has run here; `engram-eval run` does that")
    out.mkdir(parents=True, exist_ok=True)
    with refusing_lock(out / ".lock"):
        failed: list[Node] = []
        for message in _outdated(out):
            report.say(message)
        if ours:
            write_study_folder(study, nodes, store, out)
        if wanted:
            try:
                todo = [node for node in nodes if node.key in wanted]
                usual = of_flops(study, study_ledger(study))
                failed = run_nodes(todo, store, report, workers, launcher, usual)
            finally:
                write_study_folder(study, nodes, store, out)
        for message in _tokenizers(out):
            report.say(message)
        if "analyze" in stages:
            resolve(ANALYZE)(out)
        if "report" in stages:
            resolve(REPORT)(out, out / "report.html")
    return failed


def _prepared(
    study: StudyConfig, out: Path, stages: Sequence[str], report: Reporter
) -> tuple[StudyConfig, list[Node]]:
    """Return the solved study and its stages.

    What came from another machine can be reported without the text and data that it was made of:
    it has no stages here then.
    """
    try:
        check_study(study)
        solved = solve(study)
        return solved, graph(solved)
    except UserError as error:
        if set(stages) & set(STAGES) or not (out / "metrics.jsonl").exists():
            raise
        report.say(f"{out}: its rows stay as they are ({error})")
        return study, []


def _tokenizers(out: Path) -> Iterator[str]:
    """Say which models read text with another tokenizer, and what is left out for that."""
    if (out / TOKENIZERS).exists():
        yield str(read_json(out / TOKENIZERS)["note"])


def _outdated(out: Path) -> Iterator[str]:
    """Name the stages whose code has changed its meaning since the study was run last."""
    path = out / "stages.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        # It is rebuilt from the records, damaged or not.
        return
    seen = {(stage["stage"], stage.get("version")) for stage in known}
    for name, version in sorted(seen, key=str):
        if name in STAGES and version not in (None, STAGES[name].version):
            yield (
                f"{name}: version {version} has become {STAGES[name].version}, its numbers mean "
                "something else now; it runs again, and so does what rests on it"
            )


def reason(node: Node, store: Path) -> str | None:
    """Return why a stage failed, in a line; None for one that only waited for another."""
    record = read_record(node.folder(store))
    return None if record is None or record.error is None else " ".join(record.error.split())


def selected(node: Node, only: tuple[str | None, int | None]) -> bool:
    """Tell whether a stage belongs to a model and a seed; None stands for all."""
    model, seed = only
    return (model is None or node.model in (None, model)) and (
        seed is None or node.seed in (None, seed)
    )


def _with_inputs(nodes: Sequence[Node]) -> set[str]:
    keys: set[str] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node.key not in keys:
            keys.add(node.key)
            pending.extend(node.inputs.values())
    return keys
