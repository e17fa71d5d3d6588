"""Finds and loads tasks: ours, and lm-eval's as they are, from a mirror if there is one."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind

from engram_eval.evaluation.code_eval import ContainedCodeEval, contain, contained_load
from engram_eval.evaluation.mirror import Mirror
from engram_eval.evaluation.samples import SCORED, unscored
from engram_eval.evaluation.sandbox import Outcome, check_sandbox, check_unsafe, run_program
from engram_eval.evaluation.stock_tasks import folders_of, members_of, read_yaml
from engram_eval.paths import tasks_dir


class Sources(NamedTuple):
    """Where tasks get their data, and whether they may run code unprotected.

    Attributes:
        items: folder of ``<task>.jsonl`` for our own tasks; None means the committed ones.
        mirror: None lets lm-eval read its datasets from the Hugging Face hub.
        unsafe_code: run generated code without the sandbox.
        run_code: False where only questions and answers are wanted; no sandbox is needed then.
        lengths: of contexts that are made; none means the tasks' own.
        tokenizer: folder of the one that counts them; "" means the one that ``items`` have.
        include: folders of the user's own tasks.
    """

    items: Path | None = None
    mirror: Mirror | None = None
    unsafe_code: bool = False
    run_code: bool = True
    lengths: tuple[int, ...] = ()
    tokenizer: str = ""
    include: tuple[str, ...] = ()

    def metadata(self) -> dict[str, Any]:
        """Return what lm-eval hands on to functions that make a task's data."""
        return {
            key: value
            for key, value in (
                ("data_dir", str(self.items) if self.items else None),
                ("mirror", str(self.mirror.folder) if self.mirror else None),
                ("unsafe_code", self.unsafe_code or None),
                ("lengths", list(self.lengths) or None),
                ("tokenizer", self.tokenizer or None),
                ("include_path", list(self.include) or None),
            )
            if value is not None
        }


class SuiteTaskManager(TaskManager):
    """lm-eval's task manager over our tasks, the user's, and those of its own that are asked for.

    Args:
        names: tasks, groups and tags that will be loaded; folders of others are not read.
        sources: where data come from.
    """

    def __init__(self, names: Sequence[str], sources: Sources) -> None:
        super().__init__(
            # A name that several have is the last one's.
            include_path=[*folders_of(names, sources.include), tasks_dir(), *sources.include],
            include_defaults=False,
            metadata=sources.metadata() or None,
        )
        self.sources = sources
        self.shots: int | None = None
        self._load_config = self._factory._load_full_config
        # The one place through which every task's configuration goes; lm-eval is pinned.
        self._factory._load_full_config = self._adapted

    def load_with(self, name: str, shots: int | None) -> dict[str, Any]:
        """Load one task, group or tag; ``shots`` examples before each question, if not None."""
        self.shots = shots
        try:
            return dict(self.load([name]))
        finally:
            self.shots = None

    def check_with(self, name: str, shots: int | None) -> None:
        """Do all that ``load_with`` does but read data.

        Raises:
            UserError: data or the sandbox are not there, or no metric is one that a study keeps.
        """
        self.shots = shots
        try:
            for task in self._leaves(name):
                config = self._adapted(self.task_index[task])
                _check_metrics(task, config)
                base = config["metadata"].get("base")
                if base is not None:
                    inner = self.sources._replace(run_code=False)
                    SuiteTaskManager([base], inner).check_with(
                        base, config["metadata"].get("shots")
                    )
        finally:
            self.shots = None

    def _leaves(self, name: str) -> list[str]:
        """Return the tasks of a group or tag, at any depth; a task is its own."""
        entry = self.task_index[name]
        if entry.kind is Kind.TAG:
            return sorted(entry.tags)
        if entry.kind is not Kind.GROUP:
            return [name]
        members = members_of(read_yaml(entry.yaml_path))
        return [task for member in members for task in self._leaves(member)]

    def _adapted(self, entry: Any, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        code = entry.yaml_path is not None and _runs_code(entry.yaml_path)
        metric = self._code_metric() if code else None
        with contained_load(metric) if metric else nullcontext():
            config = dict(self._load_config(entry, overrides))
        if metric:
            contain(config, metric)
        if "group" in config or "task" not in config:
            return config
        if not _is_ours(entry):
            # Items that a study makes are of our tasks; others have theirs beside their YAML.
            config["metadata"].pop("data_dir", None)
        if self.shots is not None:
            config = _with_shots(config, self.shots)
        if not config.get("num_fewshot"):
            # lm-eval makes a list of all that could be examples, even where none are shown.
            config |= {"fewshot_split": None, "fewshot_config": {"samples": []}}
        if self.sources.mirror is not None:
            config = self.sources.mirror.redirect(config)
        return config

    def _code_metric(self) -> ContainedCodeEval:
        if not self.sources.run_code:
            return ContainedCodeEval(lambda _: Outcome(False, "not run"))
        unsafe = self.sources.unsafe_code
        check_unsafe() if unsafe else check_sandbox()
        return ContainedCodeEval(lambda program: run_program(program, unsafe=unsafe))


def _is_ours(entry: Any) -> bool:
    return entry.yaml_path is not None and entry.yaml_path.is_relative_to(tasks_dir())


def _check_metrics(task: str, config: Mapping[str, Any]) -> None:
    """Refuse a task of whose scores nothing would be kept; functions are named when they run."""
    metrics = [metric["metric"] for metric in config.get("metric_list") or ()]
    if metrics and SCORED.isdisjoint(metrics) and not any(map(callable, metrics)):
        raise unscored(task, metrics)


def _with_shots(config: dict[str, Any], shots: int) -> dict[str, Any]:
    """Return a configuration with another number of examples; made tasks ask their base for it."""
    if "base" in config["metadata"]:
        return {**config, "metadata": {**config["metadata"], "shots": shots}}
    return {**config, "num_fewshot": shots}


def _runs_code(yaml_path: Path) -> bool:
    """Tell whether a task executes what a model writes, without importing its functions."""
    return bool(read_yaml(yaml_path).get("unsafe_code"))
