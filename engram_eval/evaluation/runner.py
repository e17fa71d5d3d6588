"""Runs tasks through lm-eval and writes what it says, the same bytes each time."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lm_eval import evaluate as lm_evaluate
from lm_eval.api.model import LM

from engram_eval.evaluation.loading import benchmarks, documents
from engram_eval.evaluation.quiet import quiet_lm_eval
from engram_eval.evaluation.samples import per_item, pool
from engram_eval.progress import Reporter
from engram_eval.records import read_jsonl, write_json, write_jsonl

# Paths differ from machine to machine; without them equal runs give equal files.
_LOCAL_KEYS = ("config_source", "data_dir", "mirror", "unsafe_code")
SEED = 0


def run_tasks(
    lm: LM, loaded: Mapping[str, Any], out: Path, reporter: Reporter, limit: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Score a model on tasks, one after the other, and write the results.

    Each finished task leaves ``results/<task>.json``, written last, and its samples: in
    ``samples/<task>.jsonl``, or, if it is part of a benchmark, in ``parts/<task>.jsonl``. A task
    that has both is not run again, so an interrupted evaluation goes on. At the end
    ``samples/<benchmark>.jsonl`` and ``results.json`` join them, groups' means added.

    Args:
        lm: an lm-eval model.
        loaded: what ``load_tasks`` returned.
        out: folder of this very evaluation (model, tasks, items and limit fixed).
        reporter: shows one step per item.
        limit: items per benchmark, the first ones of each of its tasks; 0 means all.

    Returns:
        The samples of each benchmark, in the order of the items.
    """
    tasks, together = loaded["tasks"], benchmarks(loaded)
    limits = {
        task: _share(limit, len(members)) for members in together.values() for task in members
    }
    samples = {}
    with reporter.task("evaluate", sum(_size(t, limits[n]) for n, t in tasks.items())) as bar:
        for benchmark, members in together.items():
            found = {}
            for name in members:
                found[name] = _finish(lm, name, tasks[name], out, limits[name], len(members) > 1)
                bar.advance(_size(tasks[name], limits[name]), name)
            if benchmark in loaded["pooled"]:
                samples[benchmark] = pool(found)
                write_jsonl(out / "samples" / f"{benchmark}.jsonl", samples[benchmark])
            else:
                samples[benchmark] = found[benchmark]
    write_json(out / "results.json", _join(loaded, out))
    return samples


def _share(limit: int, parts: int) -> int:
    """Return how many items each of a benchmark's tasks may have; 0 means all."""
    return max(1, limit // parts) if limit else 0


def _size(task: Any, limit: int) -> int:
    size = len(documents(task))
    return min(limit or size, size)


def _finish(
    lm: LM, name: str, task: Any, out: Path, limit: int, is_part: bool
) -> list[dict[str, Any]]:
    """Return a task's samples; it is run if it has not been."""
    path = out / ("parts" if is_part else "samples") / f"{name}.jsonl"
    if not (out / "results" / f"{name}.json").exists():
        _run_one(lm, name, task, out, limit, path)
    return list(read_jsonl(path))


def _run_one(lm: LM, name: str, task: Any, out: Path, limit: int, path: Path) -> None:
    """Evaluate one task and write its samples, then its results."""
    with quiet_lm_eval(), torch.random.fork_rng():
        torch.manual_seed(SEED)
        results = lm_evaluate(
            lm,
            {"tasks": {name: task}},
            limit=limit or None,
            bootstrap_iters=0,
            # Whoever loads a task that runs code has put the sandbox around it.
            confirm_run_unsafe_code=True,
        )
    plain = json.loads(json.dumps(results, default=_plain))
    write_jsonl(path, per_item(plain.pop("samples")[name], task.OUTPUT_TYPE))
    for key in _LOCAL_KEYS:
        plain["configs"][name]["metadata"].pop(key, None)
    write_json(out / "results" / f"{name}.json", plain)


def _plain(value: Any) -> Any:
    """Turn NumPy scalars into numbers, anything else (functions, devices) into text."""
    return value.item() if hasattr(value, "item") else str(value)


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
