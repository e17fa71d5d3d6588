"""Says for every task whether it would run from a mirror, and why not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engram_eval.errors import UserError
from engram_eval.evaluation.loading import check_tasks, documents, load_tasks
from engram_eval.evaluation.mirror import Mirror, open_mirror
from engram_eval.evaluation.suites import expand
from engram_eval.progress import Reporter


class Verdict(NamedTuple):
    """What became of one task.

    Attributes:
        task: as it was asked for.
        runs: whether its prompts can be made.
        items: how many there are; 0 where it does not run.
        remark: why it does not run, or what the mirror notes about its data.
    """

    task: str
    runs: bool
    items: int
    remark: str


def check_mirror(
    mirror: Path, names: Sequence[str], reporter: Reporter, unsafe_code: bool = False
) -> list[Verdict]:
    """Load every task of the suites, groups and tasks named, and build its first prompt.

    Args:
        mirror: its folder.
        names: as for ``load_tasks``.
        reporter: where progress goes.
        unsafe_code: as for ``load_tasks``.

    Raises:
        UserError: no mirror, or a name that is unknown.
    """
    opened = open_mirror(mirror)
    check_tasks(names)
    found = []
    requests = expand(names)
    with reporter.task("mirror check", len(requests)) as bar:
        for request in requests:
            found.append(_verdict(request, opened, unsafe_code))
            bar.advance(1, request)
    return found


def _verdict(request: str, mirror: Mirror, unsafe_code: bool) -> Verdict:
    try:
        tasks = load_tasks([request], None, mirror.folder, unsafe_code)["tasks"]
        for task in tasks.values():
            _first_prompt(task)
    except UserError as error:
        return Verdict(request, False, 0, str(error))
    items = sum(len(documents(task)) for task in tasks.values())
    return Verdict(request, True, items, "; ".join(_notes(tasks.values(), mirror)))


def _first_prompt(task: Any) -> None:
    """Build one prompt, as an evaluation would; a row that does not fit shows here."""
    try:
        doc = documents(task)[0]
        prefix = task.doc_to_prefix(doc)
        context = task.fewshot_context(doc, task.config.num_fewshot or 0, gen_prefix=prefix)
        task.construct_requests(doc, context, metadata=(task.config.task, 0, 1))
    except UserError:
        raise
    # The task's own templates and functions run here, on data of any shape.
    except Exception as error:
        raise UserError(
            f"task {task.config.task!r}: its first prompt cannot be made "
            f"({type(error).__name__}: {error})"
        ) from error


def _notes(tasks: Any, mirror: Mirror) -> list[str]:
    """Return what the mirror notes about the data of tasks, each once."""
    found: dict[str, None] = {}
    for task in tasks:
        source = task.config.dataset_kwargs or {}
        for split in mirror.sets.get(str(source.get("repo")), {}).values():
            found |= {entry["note"]: None for entry in split.values() if entry["note"]}
    return list(found)


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """Lay verdicts out as text, one a line, and say how many run."""
    width = max(len(verdict.task) for verdict in verdicts)
    lines = [
        f"{v.task:{width}}  {f'{v.items:,} items' if v.runs else 'no':>13}  {v.remark}".rstrip()
        for v in verdicts
    ]
    return "\n".join([*lines, f"{sum(v.runs for v in verdicts)} of {len(verdicts)} would run"])
