"""The stages of a study: what each is called, where it lives, which version it has.

``study.py`` imports nothing above it; it finds the stages here by name. A version is bumped
when the code changes what its numbers mean: finished stages of another version run again.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, cast


class Stage(NamedTuple):
    """Where a stage's function is, and the version of what it computes."""

    function: str
    version: int


STAGES: dict[str, Stage] = {
    "corpus": Stage("engram_eval.corpus.build:build_corpus", 2),
    "items": Stage("engram_eval.evaluation.items:build_items", 2),
    "tune": Stage("engram_eval.training.tune:tune", 1),
    "train": Stage("engram_eval.training.stage:train", 2),
    "equal_loss": Stage("engram_eval.training.equal_loss:equal_loss", 1),
    "load": Stage("engram_eval.adapters.stage:load", 1),
    "evaluate": Stage("engram_eval.evaluation.heldout_stage:evaluate", 2),
    "score_equal_loss": Stage("engram_eval.evaluation.stage:evaluate_equal_loss", 2),
    "baseline": Stage("engram_eval.baselines.stage:evaluate_baseline", 9),
    "update": Stage("engram_eval.updates.stage:update", 5),
    "offload": Stage("engram_eval.bench.offload_stage:time_storages", 2),
    "sample": Stage("probes.sample_stage:sample", 3),
    "probe": Stage("probes.stage:probe", 4),
    "probe_pair": Stage("probes.stage:probe_pair", 3),
}

TRAININGS = ("tune", "train")

ANALYZE = "engram_eval.analysis.analyze:analyze"
REPORT = "reports.build:build_report"
COMPARISON = "reports.comparison:build_comparison"
FIGURES = "reports.figures:save_figures"
MARKDOWN = "reports.markdown:results"
FIND_PROBE = "probes.registry:find_probe"
PROBE_SOURCE = "probes.registry:probe_source"


def resolve(target: str) -> Callable[..., Any]:
    """Import ``module:function``."""
    module, _, name = target.partition(":")
    return cast(Callable[..., Any], getattr(importlib.import_module(module), name))
