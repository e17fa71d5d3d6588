"""Runs tasks through lm-eval and writes what it says, the same bytes each time."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lm_eval import evaluate as lm_evaluate
from lm_eval.api.model import LM

from engram_eval.evaluation.loading import benchmarks, documents
from engram_eval.evaluation.quiet import quiet_lm_eval
from engram_eval.evaluation.result_cache import ResultCache, TaskFiles, keep, restore
from engram_eval.evaluation.samples import per_item, pool
from engram_eval.evaluation.task_hash import LOCAL_KEYS
from engram_eval.files import read_jsonl, write_json, write_jsonl
from engram_eval.progress import Reporter, Task

SEED = 0


class Asked(NamedTuple):
    """One task as it is run: its first ``limit`` items (0 means all), alone or of a benchmark."""

    name: str
    task: Any
    limit: int
    is_part: bool

    def files(self, out: Path) -> TaskFiles:
        """Return where its results and samples are kept."""
        samples = out / ("parts" if self.is_part else "samples") / f"{self.name}.jsonl"
        return TaskFiles(out / "results" / f"{self.name}.json", samples)

    @property
    def size(self) -> int:
        """Items that are asked."""
        size = len(documents(self.task))
        return min(self.limit or size, size)


def run_tasks(
    lm: LM | Callable[[], LM],
    loaded: Mapping[str, Any],
    out: Path,
    reporter: Reporter,
    limit: int = 0,
    cache: ResultCache | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Score a model on tasks, one after the other, and write the results.

    Each finished task leaves ``results/<task>.json``, written last, and its samples: in
    ``samples/<task>.jsonl``, or, if it is part of a benchmark, in ``parts/<task>.jsonl``. A task
    that has both is not run again, so an interrupted evaluation goes on; nor is one that ``cache``
    has from another evaluation, which is said. At the end ``samples/<benchmark>.jsonl`` and
    ``results.json`` join them, groups' means added.

    Args:
        lm: an lm-eval model, or what opens it; it is opened at the first task that must run.
        loaded: what ``load_tasks`` returned.
        out: folder of this very evaluation (model, tasks, items and limit fixed).
        reporter: shows one step per item.
        limit: items per benchmark, the first ones of each of its tasks; 0 means all.
        cache: of the very model that ``lm`` is.

    Returns:
        The samples of each benchmark, in the order of the items.
    """
    asked = {
        benchmark: [
            Asked(name, loaded["tasks"][name], _share(limit, len(names)), is_part) for name in names
        ]
        for benchmark, names in benchmarks(loaded).items()
        for is_part in [benchmark in loaded["pooled"]]
    }
    everything = [entry for entries in asked.values() for entry in entries]
    with reporter.task("evaluate", sum(entry.size for entry in everything)) as bar:
        reused = {entry.name for entry in everything if _finish(lm, entry, out, cache, bar)}
    again = [name for name, parts in asked.items() if all(p.name in reused for p in parts)]
    if again:
        reporter.say(f"asked of this model before, results used again: {', '.join(again)}")
    samples = {name: _samples(name, parts, loaded, out) for name, parts in asked.items()}
    write_json(out / "results.json", _join(loaded, out))
    return samples


def _share(limit: int, parts: int) -> int:
    """Return how many items each of a benchmark's tasks may have; 0 means all."""
    return max(1, limit // parts) if limit else 0


def _finish(
    lm: LM | Callable[[], LM], asked: Asked, out: Path, cache: ResultCache | None, bar: Task
) -> bool:
    """See that a task has its results; tell if another evaluation had them."""
    files, reused = asked.files(out), False
    if not files.results.exists():
        entry = cache.entry(asked.name, asked.task, asked.limit) if cache else None
        reused = entry is not None and restore(entry, files)
        if not reused:
            _run_one(lm if isinstance(lm, LM) else lm(), asked, files)
            if entry is not None:
                keep(entry, files)
    bar.advance(asked.size, asked.name)
    return reused


def _samples(
    benchmark: str, asked: Sequence[Asked], loaded: Mapping[str, Any], out: Path
) -> list[dict[str, Any]]:
    """Read the samples of a benchmark; those of several tasks are put together."""
    found = {entry.name: list(read_jsonl(entry.files(out).samples)) for entry in asked}
    if benchmark not in loaded["pooled"]:
        return found[benchmark]
    samples = pool(found)
    write_jsonl(out / "samples" / f"{benchmark}.jsonl", samples)
    return samples


def _run_one(lm: LM, asked: Asked, files: TaskFiles) -> None:
    """Evaluate one task and write its samples, then its results."""
    name = asked.name
    with quiet_lm_eval(), torch.random.fork_rng():
        torch.manual_seed(SEED)
        results = lm_evaluate(
            lm,
            {"tasks": {name: asked.task}},
            limit=asked.limit or None,
            bootstrap_iters=0,
            # Whoever loads a task that runs code has put the sandbox around it.
            confirm_run_unsafe_code=True,
        )
    plain = json.loads(json.dumps(results, default=_plain))
    write_jsonl(files.samples, per_item(plain.pop("samples")[name], asked.task.OUTPUT_TYPE))
    # Without paths, equal runs give equal files.
    for key in LOCAL_KEYS:
        plain["configs"][name]["metadata"].pop(key, None)
    write_json(files.results, plain)


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
