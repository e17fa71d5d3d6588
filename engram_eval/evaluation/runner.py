"""Runs tasks through lm-eval and writes what it says, the same bytes each time."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval import evaluate as lm_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from engram_eval.errors import UserError, unknown
from engram_eval.evaluation.quiet import quiet_lm_eval
from engram_eval.paths import tasks_dir
from engram_eval.progress import Reporter
from engram_eval.records import read_jsonl, write_json, write_jsonl

# Paths differ from machine to machine; without them equal runs give equal files.
_LOCAL_KEYS = ("config_source", "data_dir")
_SAMPLE_KEYS = ("arguments", "resps")


def task_manager(data_dir: Path | None = None) -> TaskManager:
    """Index the suite's own tasks; ``data_dir`` holds their items (None: the committed ones)."""
    metadata = {"data_dir": str(data_dir)} if data_dir else None
    return TaskManager(include_path=[str(tasks_dir())], include_defaults=False, metadata=metadata)


def check_tasks(names: Sequence[str]) -> None:
    """Raise ``UserError`` for a name that is no task, group or tag; cheap, loads no model."""
    if not names:
        raise UserError("no tasks given")
    known = task_manager().all_tasks
    for name in names:
        if name not in known:
            raise unknown("task", name, known)


def load_tasks(names: Sequence[str], data_dir: Path | None = None) -> dict[str, Any]:
    """Load tasks with their items, groups expanded; the form that lm-eval's ``evaluate`` takes.

    Raises:
        UserError: an unknown name, with its nearest match, or items that are not there.
    """
    check_tasks(names)
    with quiet_lm_eval():
        return dict(task_manager(data_dir).load(list(dict.fromkeys(names))))


def run_tasks(
    lm: LM, loaded: Mapping[str, Any], out: Path, reporter: Reporter, limit: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Score a model on tasks, one after the other, and write the results.

    Each finished task leaves ``samples/<task>.jsonl`` and, last, ``results/<task>.json``; a task
    that has both is not run again, so an interrupted evaluation goes on. ``results.json`` joins
    them and adds the groups' means.

    Args:
        lm: an lm-eval model.
        loaded: what ``load_tasks`` returned.
        out: folder of this very evaluation (model, tasks, items and limit fixed).
        reporter: shows one step per item.
        limit: items per task, the first ones; 0 means all.

    Returns:
        The samples of each task, in the order of the items.
    """
    tasks = loaded["tasks"]
    samples = {}
    with reporter.task("evaluate", sum(_size(task, limit) for task in tasks.values())) as bar:
        for name, task in tasks.items():
            if not (out / "results" / f"{name}.json").exists():
                _run_one(lm, name, task, out, limit)
            samples[name] = list(read_jsonl(out / "samples" / f"{name}.jsonl"))
            bar.advance(_size(task, limit), name)
    write_json(out / "results.json", _join(loaded, out))
    return samples


def _size(task: Any, limit: int) -> int:
    return min(limit or len(task.eval_docs), len(task.eval_docs))


def _run_one(lm: LM, name: str, task: Any, out: Path, limit: int) -> None:
    """Evaluate one task and write its samples, then its results."""
    with quiet_lm_eval():
        results = lm_evaluate(lm, {"tasks": {name: task}}, limit=limit or None, bootstrap_iters=0)
    plain = json.loads(json.dumps(results, default=_plain))
    write_jsonl(out / "samples" / f"{name}.jsonl", map(_strip, plain.pop("samples")[name]))
    for key in _LOCAL_KEYS:
        plain["configs"][name]["metadata"].pop(key, None)
    write_json(out / "results" / f"{name}.json", plain)


def _plain(value: Any) -> Any:
    """Turn NumPy scalars into numbers, anything else (functions, devices) into text."""
    return value.item() if hasattr(value, "item") else str(value)


def _strip(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a sample what can be rebuilt from its item."""
    return {key: value for key, value in sample.items() if key not in _SAMPLE_KEYS}


def _join(loaded: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Merge the tasks' results into one dictionary of lm-eval's form and add the groups."""
    joined: dict[str, Any] = {}
    for name in loaded["tasks"]:
        part = json.loads((out / "results" / f"{name}.json").read_text())
        for key, value in part.items():
            joined.setdefault(key, {}).update(value)
    groups = loaded.get("groups", {})
    joined["groups"] = {g.name: g.aggregate(joined["results"]) for g in _inner_first(groups)}
    joined["group_subtasks"] = {name: group.child_names for name, group in groups.items()}
    return json.loads(json.dumps(joined, default=_plain))


def _inner_first(groups: Mapping[str, Any]) -> Iterable[Any]:
    """Order groups so that a group's subgroups come before it."""
    return sorted(groups.values(), key=lambda group: len(group.get_all_groups()))
