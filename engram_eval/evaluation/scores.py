"""From samples to metric rows: every number beside its chance level and its uncertainty."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engram_eval.analysis.stats import Ratio, centred, ratio
from engram_eval.evaluation.samples import (
    FRACTIONS,
    GUESSED,
    has_number,
    has_ratio,
    slices_of,
    sources_of,
)
from engram_eval.evaluation.suites import domain_of
from engram_eval.records import MetricRow

MOST_PERPLEXITY = 1e300


def chance_level(samples: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the accuracy of guessing: the mean of 1 / choices; None without choices."""
    counts = [
        sample.get("n_choices") or len(sample["doc"].get("choices") or ()) for sample in samples
    ]
    return float(np.mean([1 / n for n in counts])) if counts and all(counts) else None


def task_rows(
    task: str, metadata: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> list[MetricRow]:
    """Score a task as a whole and on each of its slices.

    Args:
        task: its name.
        metadata: of its YAML; ``domain`` (without it: that of the suite that has the task)
            becomes a slice label, ``chance`` the baseline (without it: one over the number of
            choices).
        samples: in the form of ``samples.per_item``.
    """
    kind = metadata.get("domain") or domain_of(task)
    domain = {"domain": str(kind)} if kind else {}
    rows = _rows(task, domain, metadata, samples)
    for label, value in _labels(samples):
        part = [sample for sample in samples if slices_of(sample).get(label) == value]
        rows += _rows(task, {**domain, label: value}, metadata, part)
    return rows + _further_filters(task, domain, samples)


def _labels(samples: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """List the (label, value) pairs by which samples differ."""
    values: dict[str, set[str]] = {}
    for sample in samples:
        for label, value in slices_of(sample).items():
            values.setdefault(label, set()).add(value)
    return sorted((label, v) for label, vs in values.items() if len(vs) > 1 for v in vs)


def _rows(
    task: str,
    labels: Mapping[str, str],
    metadata: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
) -> list[MetricRow]:
    """Score one set of samples by all metrics that each of them has."""
    common: dict[str, Any] = {"split": "test", "slice": dict(labels), "n": len(samples)}
    sources = sources_of(samples) or range(len(samples))
    rows = []
    for metric in FRACTIONS:
        if has_number(metric, samples):
            scores = [float(sample[metric]) for sample in samples]
            chance = metadata.get("chance", chance_level(samples)) if metric in GUESSED else 0.0
            rows += _fraction_rows(task, metric, _mean(scores, sources), chance, common)
    if has_ratio("bits_per_byte", samples):
        nats, size = np.array([sample["bits_per_byte"] for sample in samples], np.float64).T
        value, stderr = ratio(-nats / math.log(2), size, sources)
        rows.append(MetricRow(task, "bits_per_byte", value, stderr=stderr, **common))
    if has_number("perplexity", samples):
        rows.append(_perplexity_row(task, [s["perplexity"] for s in samples], sources, common))
    return rows


def _mean(scores: Sequence[float], sources: Sequence[object]) -> Ratio:
    """Return the mean of scores, its error clustered by source."""
    return ratio(np.array(scores, np.float64), np.ones(len(scores)), sources)


def _fraction_rows(
    task: str,
    metric: str,
    mean: Ratio,
    chance: float | None,
    common: Mapping[str, Any],
) -> list[MetricRow]:
    """Return a mean of scores, and for ``acc`` also the one above chance."""
    value, stderr = mean
    rows = [MetricRow(task, metric, value, stderr=stderr, baseline=chance, **common)]
    if metric == "acc" and chance is not None and value is not None:
        scaled = None if stderr is None else stderr / (1 - chance)
        rows.append(
            MetricRow(
                task, "acc_centered", centred(value, chance), stderr=scaled, baseline=0.0, **common
            )
        )
    return rows


def _perplexity_row(
    task: str,
    log_likelihoods: Sequence[float],
    sources: Sequence[object],
    common: Mapping[str, Any],
) -> MetricRow:
    """Return lm-eval's ``perplexity``, the exponential of the mean loss in nats per item.

    Without a finite value (the exponential overflows) it is None.
    """
    loss = -float(np.mean(log_likelihoods))
    value = math.exp(loss) if loss < math.log(MOST_PERPLEXITY) else None
    relative = _mean(log_likelihoods, sources).stderr
    stderr = None if value is None or relative is None else value * relative
    return MetricRow(task, "perplexity", value, stderr=stderr, **common)


def _further_filters(
    task: str, labels: Mapping[str, str], samples: Sequence[Mapping[str, Any]]
) -> list[MetricRow]:
    """Score what a task's other filters found, under the label ``filter``."""
    names = sorted({name for sample in samples for name in sample.get("by_filter", ())})
    return [
        row
        for name in names
        for row in _rows(
            task,
            {**labels, "filter": name},
            {},
            [{**_identity(sample), **sample["by_filter"][name]} for sample in samples],
        )
    ]


def _identity(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells an item from others and names its source."""
    return {key: sample[key] for key in ("doc", "doc_id", "doc_hash", "item") if key in sample}
