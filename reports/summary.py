"""The key results for machines: ``summary.json`` beside the report."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from engram_eval.records import SCHEMA, MetricRow
from reports.answer import answer
from reports.load import Study
from reports.query import (
    by_domain,
    domain_of,
    heldout,
    only_domain,
    ordered,
    pick,
    pooled_comparisons,
    value_of,
)
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
        "tokenizers": dict(study.tokenizers),
        "complete": bool(study.stage_count) and not study.unfinished,
        "unfinished": {s.label: s.error or s.status for s in study.unfinished},
        "models": {m.name: asdict(m) for m in study.models},
        "heldout_bits_per_byte": _by_domain(heldout(study)),
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
    rows = pick(study.rows, name="memory")
    return {
        metric: _by_model(row for row in rows if row.metric == metric)
        for metric in ordered(row.metric for row in rows)
    }


def _nested(rows: Sequence[MetricRow]) -> dict[str, Any]:
    """Arrange rows as task -> model -> seed -> value."""
    return {
        name: _by_model(row for row in rows if row.name == name)
        for name in ordered(row.name for row in rows)
    }


def _by_domain(rows: Sequence[MetricRow]) -> dict[str, Any]:
    """Arrange rows as domain -> model -> seed -> value."""
    return {
        name: _by_model(row for row in rows if domain_of(row) == name)
        for name in by_domain(map(domain_of, rows))
    }


def _by_model(rows: Iterable[MetricRow]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in rows:
        seeds = found.setdefault(str(row.model), {})
        seeds["all" if row.seed is None else str(row.seed)] = value_of(row)
    return found
