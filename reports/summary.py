"""The key results for machines: ``summary.json`` beside the report."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from engram_eval.records import SCHEMA, MetricRow
from reports.answer import answer
from reports.load import Study
from reports.query import domain_of, heldout, only_domain, pick, pooled_comparisons, value_of
from reports.sections.scores import uninformative


def summary(study: Study) -> dict[str, Any]:
    """Return question, answer, ledger, scores and problems as plain data."""
    told = answer(study)
    return {
        "schema": SCHEMA,
        "study": study.text("name"),
        "scale": study.text("scale"),
        "question": study.text("question"),
        "answer": {
            "text": told.text,
            "scale": told.scale,
            "verdict": told.verdict,
            "reference": told.reference,
            "candidate": told.candidate,
        },
        "complete": bool(study.stage_count) and not study.unfinished,
        "unfinished": {s.label: s.error or s.status for s in study.unfinished},
        "models": {m.name: asdict(m) for m in study.models},
        "heldout_bits_per_byte": _nested(heldout(study), domain=True),
        "accuracy": _nested(_tasks(study, "acc")),
        "task_bits_per_byte": _nested(_tasks(study, "bits_per_byte")),
        "memory": _memory(study),
        "uninformative": uninformative(study),
        "comparisons": [
            asdict(c)
            for metric in ("bits_per_byte", "acc")
            for c in pooled_comparisons(study, metric)
            if set(c.slice) <= {"domain"}
        ],
        "problems": [problem._asdict() for problem in study.problems],
    }


def _tasks(study: Study, metric: str) -> list[MetricRow]:
    rows = pick(study.rows, metric=metric, split="test", condition=None)
    return [row for row in rows if only_domain(row)]


def _memory(study: Study) -> dict[str, Any]:
    """Return what memories beside the models cost: metric -> model -> seed -> value."""
    found: dict[str, Any] = {}
    for row in pick(study.rows, name="memory"):
        seeds = found.setdefault(row.metric, {}).setdefault(str(row.model), {})
        seeds["all" if row.seed is None else str(row.seed)] = value_of(row)
    return found


def _nested(rows: Sequence[MetricRow], domain: bool = False) -> dict[str, Any]:
    """Arrange rows as task (or domain) -> model -> seed -> value."""
    found: dict[str, Any] = {}
    for row in rows:
        key = domain_of(row) if domain else row.name
        seeds = found.setdefault(key, {}).setdefault(str(row.model), {})
        seeds["all" if row.seed is None else str(row.seed)] = value_of(row)
    return found
