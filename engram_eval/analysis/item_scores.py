"""Per-item scores of all evaluated models, aligned so that they can be compared in pairs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engram_eval.arrays import Floats, Mask
from engram_eval.errors import UserError
from engram_eval.evaluation.samples import (
    FRACTIONS,
    has_number,
    has_ratio,
    item_id,
    shared,
    slices_of,
    sources_of,
)
from engram_eval.files import read_jsonl

Trained = tuple[str, int | None]

BITS_PER_NAT = 1 / np.log(2)


class Measure(NamedTuple):
    """A score that is a ratio of sums: numerators by trained model (n,), one denominator (n,)."""

    tops: Mapping[Trained, Floats]
    bottom: Floats


@dataclass(frozen=True)
class Table:
    """Scores of n units (items or documents) by several trained models.

    Attributes:
        name: the task, ``tasks`` for all tasks of a domain, or ``heldout``.
        labels: the slice, as in metric rows.
        ids: what each unit is, equal for all models.
        slices: labels of each unit.
        metrics: measure by metric name.
        sources: what each unit was made from, if several share one: these are no independent
            evidence and are resampled together; empty if no two do.
    """

    name: str
    labels: Mapping[str, str]
    split: str
    units: str
    ids: tuple[str, ...]
    slices: tuple[Mapping[str, str], ...]
    metrics: Mapping[str, Measure]
    sources: tuple[str, ...] = ()

    def has(self, metric: str, who: Iterable[Trained]) -> bool:
        """Tell whether all of these trained models were scored."""
        return all(entry in self.metrics[metric].tops for entry in who)

    def mean_top(self, metric: str, who: Sequence[Trained]) -> Floats:
        """Return the numerators, averaged over trained models, (n,)."""
        tops = self.metrics[metric].tops
        return np.mean([tops[entry] for entry in who], axis=0)

    def score(self, metric: str, who: Trained) -> float:
        """Return the score of one trained model."""
        measure = self.metrics[metric]
        return float(measure.tops[who].sum() / measure.bottom.sum())

    def rows(self, keep: Mask, labels: Mapping[str, str]) -> "Table":
        """Return some of the units under another label."""
        return Table(
            self.name,
            labels,
            self.split,
            self.units,
            tuple(ident for ident, kept in zip(self.ids, keep, strict=True) if kept),
            tuple(entry for entry, kept in zip(self.slices, keep, strict=True) if kept),
            {
                name: Measure(
                    {who: top[keep] for who, top in measure.tops.items()}, measure.bottom[keep]
                )
                for name, measure in self.metrics.items()
            },
            shared(tuple(s for s, kept in zip(self.sources, keep, strict=True) if kept))
            if self.sources
            else (),
        )

    def grouped(self, values: Floats) -> Floats:
        """Sum values of units, (n, k), over those that share a source, (sources, k)."""
        if not self.sources:
            return values
        index = {source: place for place, source in enumerate(dict.fromkeys(self.sources))}
        sums = np.zeros((len(index), values.shape[1]))
        np.add.at(sums, [index[source] for source in self.sources], values)
        return sums

    @staticmethod
    def joined(name: str, parts: Sequence["Table"], labels: Mapping[str, str]) -> "Table":
        """Put the units of several tables together; kept are metrics and models that all have."""
        common = [m for m in parts[0].metrics if all(m in part.metrics for part in parts)]
        return Table(
            name,
            labels,
            parts[0].split,
            parts[0].units,
            tuple(ident for part in parts for ident in part.ids),
            tuple(entry for part in parts for entry in part.slices),
            {metric: _joined([part.metrics[metric] for part in parts]) for metric in common},
            shared(tuple(s for part in parts for s in part.sources or part.ids)),
        )


def _joined(measures: Sequence[Measure]) -> Measure:
    models = [who for who in measures[0].tops if all(who in m.tops for m in measures)]
    return Measure(
        {who: np.concatenate([m.tops[who] for m in measures]) for who in models},
        np.concatenate([m.bottom for m in measures]),
    )


class Scores(NamedTuple):
    """All tables of a study and who was scored.

    Attributes:
        tables: all of them.
        models: the seeds of each model (a baseline's only seed is None).
        beside: which of the models are another one with a memory beside it, or only a memory.
    """

    tables: list[Table]
    models: Mapping[str, tuple[int | None, ...]]
    beside: frozenset[str]


def select(table: Table, label: str, value: str) -> Table | None:
    """Return the units with a label, or None where there is none."""
    keep = np.array([entry.get(label) == value for entry in table.slices])
    return table.rows(keep, {**table.labels, label: value}) if keep.any() else None


def load_scores(study_dir: Path) -> Scores:
    """Read the samples and held-out documents of every finished evaluation.

    Raises:
        UserError: no stages.json, or two models that saw different items.
    """
    path = study_dir / "stages.json"
    if not path.exists():
        raise UserError(f"{study_dir}: no stages.json; run the study first")
    scored = [
        stage
        for stage in json.loads(path.read_text())
        if stage["stage"] in ("evaluate", "baseline") and stage["status"] == "ok"
    ]
    folders = {(s["model"], s["seed"]): study_dir / s["folder"] for s in scored}
    beside = frozenset(s["model"] for s in scored if s["stage"] == "baseline")
    models: dict[str, tuple[int | None, ...]] = {}
    for model, seed in folders:
        models[model] = (*models.get(model, ()), seed)
    names = sorted({f.stem for folder in folders.values() for f in folder.glob("samples/*.jsonl")})
    domains = _task_domains(study_dir)
    tasks = [_task_table(name, folders, domains.get(name)) for name in names]
    return Scores([*tasks, *_heldout_tables(folders)], models, beside)


def _task_domains(study_dir: Path) -> dict[str, str]:
    """Return the domain of every task, as the metric rows label it."""
    return {
        row["name"]: row["slice"]["domain"]
        for row in read_jsonl(study_dir / "metrics.jsonl")
        if row["split"] == "test" and "domain" in row["slice"]
    }


def _task_table(name: str, folders: Mapping[Trained, Path], domain: str | None) -> Table:
    found = {
        who: list(read_jsonl(path))
        for who, folder in folders.items()
        if (path := folder / "samples" / f"{name}.jsonl").exists()
    }
    ids = {who: tuple(item_id(sample) for sample in samples) for who, samples in found.items()}
    _check_equal(name, ids)
    first = next(iter(found.values()))
    slices = tuple(slices_of(sample) for sample in first)
    labels = {} if domain is None else {"domain": domain}
    sources = sources_of(first)
    kept = next(iter(ids.values()))
    return Table(name, labels, "test", "items", kept, slices, _measures(found), sources)


def _measures(found: Mapping[Trained, Sequence[Mapping[str, Any]]]) -> dict[str, Measure]:
    """Return the metrics that every sample of every model has."""
    everything = [sample for samples in found.values() for sample in samples]
    first = next(iter(found.values()))
    measures = {}
    for metric in FRACTIONS:
        if has_number(metric, everything):
            scores = {who: _column(samples, metric) for who, samples in found.items()}
            measures[metric] = Measure(scores, np.ones(len(first)))
    if has_ratio("bits_per_byte", everything):
        bits = {who: -_column(v, "bits_per_byte", 0) * BITS_PER_NAT for who, v in found.items()}
        measures["bits_per_byte"] = Measure(bits, _column(first, "bits_per_byte", 1))
    return measures


def _column(samples: Sequence[Mapping[str, Any]], key: str, part: int | None = None) -> Floats:
    """Return one number of every sample, (n,); ``part`` picks an element of a list."""
    values = [sample[key] if part is None else sample[key][part] for sample in samples]
    return np.array(values, dtype=np.float64)


def _check_equal(name: str, ids: Mapping[Trained, tuple[str, ...]]) -> None:
    (first, expected), *rest = ids.items()
    for who, found in rest:
        if found != expected:
            raise UserError(f"{name}: {who} and {first} were scored on different items")


def _heldout_tables(folders: Mapping[Trained, Path]) -> list[Table]:
    """Return the documents as a whole and per domain, and those with answers."""
    found = {
        who: list(read_jsonl(path))
        for who, folder in folders.items()
        if (path := folder / "heldout.jsonl").exists()
    }
    if not found:
        return []
    _check_equal("heldout", {who: tuple(str(d["document"]) for d in v) for who, v in found.items()})
    parts = [
        part
        for metric, top, bottom in (
            ("bits_per_byte", "bits", "bytes"),
            ("bits_per_answer", "answer_bits", "answers"),
        )
        if (part := _document_table(found, metric, top, bottom)) is not None
    ]
    return [table for part in parts for table in (part, *_by_domain(part))]


def _document_table(
    found: Mapping[Trained, Sequence[Mapping[str, Any]]], metric: str, top: str, bottom: str
) -> Table | None:
    """Return a ratio per document; documents without a denominator say nothing about it."""
    # Of models with another tokenizer than the corpus no answers are scored.
    found = {who: docs for who, docs in found.items() if any(d[bottom] > 0 for d in docs)}
    if not found:
        return None
    first = next(iter(found.values()))
    keep = np.array([document[bottom] > 0 for document in first])
    tops = {who: np.array([d[top] for d in docs], float)[keep] for who, docs in found.items()}
    below = np.array([d[bottom] for d in first], float)[keep]
    kept = [document for document, chosen in zip(first, keep, strict=True) if chosen]
    return Table(
        "heldout",
        {},
        "val",
        "documents",
        tuple(str(document["document"]) for document in kept),
        tuple({"domain": str(document["domain"])} for document in kept),
        {metric: Measure(tops, below)},
    )


def _by_domain(table: Table) -> list[Table]:
    domains = dict.fromkeys(entry["domain"] for entry in table.slices)
    found = [select(table, "domain", domain) for domain in domains]
    return [part for part in found if part is not None]
