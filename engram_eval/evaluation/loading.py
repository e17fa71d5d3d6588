"""Loads the tasks that were asked for by name (ours, lm-eval's, the user's), with their data."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engram_eval.errors import UserError, nearest
from engram_eval.evaluation.included import included_names
from engram_eval.evaluation.mirror import open_mirror
from engram_eval.evaluation.quiet import quiet_lm_eval
from engram_eval.evaluation.stock_tasks import stock_names
from engram_eval.evaluation.suites import SUITES, TaskRequest, expand, parse_request
from engram_eval.evaluation.table import task_table
from engram_eval.evaluation.task_manager import Sources, SuiteTaskManager
from engram_eval.paths import tasks_dir

FEWSHOT_SEED = 1234


def check_tasks(names: Sequence[str], include: Sequence[str] = ()) -> None:
    """Raise ``UserError`` for a name that is no suite, task, group or tag; loads nothing.

    Args:
        names: as for ``load_tasks``.
        include: folders of the user's own tasks, as for ``load_tasks``.
    """
    if not names:
        raise UserError("no tasks given")
    own = {*task_table(), *included_names(include)}
    for request in expand(names):
        name = parse_request(request).name
        if name not in own and name not in stock_names():
            # Of lm-eval's many names only those of about this length are worth the comparison.
            alike = [known for known in stock_names() if abs(len(known) - len(name)) <= 2]
            close = nearest(name, [*alike, *own, *SUITES])
            hint = "" if include else "; --include-path DIR adds your own"
            raise UserError(
                f"unknown task {request!r}{close}; see engram-eval list tasks, engram-eval list "
                f"suites and lm-eval ls{hint}"
            )


def check_data(
    names: Sequence[str],
    mirror: str = "",
    unsafe_code: bool = False,
    include: Sequence[str] = (),
) -> None:
    """Check names, and that data and sandbox are there, without reading data or a model.

    Args:
        names: as for ``load_tasks``.
        mirror: its folder; "" means the hub, which is not asked.
        unsafe_code: as for ``load_tasks``.
        include: as for ``load_tasks``.

    Raises:
        UserError: an unknown name; a folder without tasks; a dataset or split that the mirror
            lacks, or that was changed; no sandbox for a task that runs generated code.
    """
    check_tasks(names, include)
    opened = open_mirror(Path(mirror)) if mirror else None
    sources = Sources(None, opened, unsafe_code, include=tuple(include))
    own = task_table()
    requests = [parse_request(name) for name in expand(names)]
    if not mirror and all(request.name in own for request in requests):
        return
    with quiet_lm_eval():
        manager = SuiteTaskManager([request.name for request in requests], sources)
        for request in requests:
            with _named(request.name, sources):
                manager.check_with(request.name, request.shots)


def load_tasks(
    names: Sequence[str],
    data_dir: Path | None = None,
    mirror: Path | None = None,
    unsafe_code: bool = False,
    lengths: Sequence[int] = (),
    tokenizer: str = "",
    include: Sequence[str] = (),
) -> dict[str, Any]:
    """Load tasks with their items; groups are expanded.

    Args:
        names: suites, tasks, groups or tags, each with ``@shots`` or without.
        data_dir: items of our own tasks; None means the committed ones.
        mirror: folder that lm-eval's datasets are read from; None means the hub.
        unsafe_code: run generated code without the sandbox.
        lengths: of contexts that are made, in tokens; none means the tasks' own.
        tokenizer: folder of the one that counts them; "" means that of ``data_dir``.
        include: folders of the user's own tasks, in lm-eval's form.

    Returns:
        The form that lm-eval's ``evaluate`` takes: ``tasks`` and ``groups``, keyed as asked for
        (``gsm8k@8``). Beside them ``pooled``: benchmark -> its tasks, for groups of lm-eval,
        which count as one benchmark each.

    Raises:
        UserError: an unknown name, with its nearest match, or data that are not there.
    """
    check_tasks(names, include)
    requests = [parse_request(name) for name in expand(names)]
    opened = open_mirror(mirror) if mirror else None
    sources = Sources(
        data_dir,
        opened,
        unsafe_code,
        lengths=tuple(lengths),
        tokenizer=tokenizer,
        include=tuple(include),
    )
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "pooled": {}}
    with quiet_lm_eval():
        manager = SuiteTaskManager([request.name for request in requests], sources)
        for request in requests:
            _add(loaded, request, load_one(manager, request), manager)
    return loaded


def load_one(manager: SuiteTaskManager, request: TaskRequest) -> dict[str, Any]:
    """Load one request; whatever keeps lm-eval from it is a ``UserError`` that names it."""
    with _named(request.name, manager.sources):
        loaded = manager.load_with(request.name, request.shots)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(FEWSHOT_SEED)
    return loaded


@contextmanager
def _named(name: str, sources: Sources) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    # Tasks bring code of their own, and datasets and the hub fail in many ways.
    except Exception as error:
        code = isinstance(error, ImportError | AttributeError)
        hint = "" if sources.mirror or code else "; --mirror DIR reads its data from local files"
        first = str(error).strip().splitlines()[:1]
        why = f"{type(error).__name__}{': ' + first[0] if first else ''}"
        raise UserError(f"task {name!r} cannot be loaded ({why}){hint}") from error


def _add(
    loaded: dict[str, Any],
    request: TaskRequest,
    found: Mapping[str, Any],
    manager: SuiteTaskManager,
) -> None:
    """Put the tasks of a request in, under names that tell how many examples they have."""
    suffix = "" if request.shots is None else f"@{request.shots}"
    keys = {name: f"{name}{suffix}" for name in found["tasks"]}
    twice = next((key for key in keys.values() if key in loaded["tasks"]), None)
    if twice is not None:
        raise UserError(f"task {twice!r} is asked for twice, alone or in a group")
    loaded["tasks"] |= {keys[name]: task for name, task in found["tasks"].items()}
    entry = manager.task_index[request.name]
    if not found.get("groups"):
        return
    if _is_pooled(entry):
        loaded["pooled"][f"{request.name}{suffix}"] = list(keys.values())
    else:
        loaded["groups"] |= found["groups"]


def _is_pooled(entry: Any) -> bool:
    """Tell whether a group is one benchmark: lm-eval's are, ours if their metadata say so."""
    ours = entry.yaml_path is not None and entry.yaml_path.is_relative_to(tasks_dir())
    return not ours or bool((entry.cfg.get("metadata") or {}).get("pooled"))


def documents(task: Any) -> Any:
    """Return a task's documents; ``eval_docs`` would make them anew each time it is read."""
    kept = getattr(task, "task_docs", None)
    return task.eval_docs if kept is None else kept


def benchmarks(loaded: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return benchmark -> its tasks; a task outside of pooled groups is one by itself."""
    inside = {task for tasks in loaded["pooled"].values() for task in tasks}
    alone = {task: [task] for task in loaded["tasks"] if task not in inside}
    return alone | dict(loaded["pooled"])
