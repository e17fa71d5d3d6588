"""From samples to metric rows: every number beside its chance level and its uncertainty."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_eval.records import MetricRow
from engram_eval.stats import centred, clustered_stderr, mean_stderr

Floats = npt.NDArray[np.float64]


class Ratio(NamedTuple):
    """A ratio of sums with its standard error; None where there are too few units for one."""

    value: float
    stderr: float | None


def ratio(top: Floats, bottom: Floats, clusters: Sequence[object] | None = None) -> Ratio:
    """Return ``sum(top) / sum(bottom)`` and its linearised standard error.

    Cochran (1977), Sampling Techniques, eq. 6.13, without the finite-population factor.

    Args:
        top: e.g. the bits of each item, (n,).
        bottom: e.g. the bytes of each item, (n,), not all zero.
        clusters: label of each entry; entries of one label are no independent evidence.
    """
    value = float(top.sum() / bottom.sum())
    labels = list(range(len(top))) if clusters is None else list(clusters)
    if len(set(labels)) < 2:
        return Ratio(value, None)
    residuals = (top - value * bottom) / bottom.mean()
    return Ratio(value, clustered_stderr(residuals, labels))


def chance_level(samples: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the accuracy of guessing: the mean of 1 / choices; None without choices."""
    counts = [len(sample["doc"].get("choices") or ()) for sample in samples]
    return float(np.mean([1 / n for n in counts])) if counts and all(counts) else None


def task_rows(
    task: str, metadata: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> list[MetricRow]:
    """Score a task as a whole and on each of its slices.

    Args:
        task: its name.
        metadata: of its YAML; ``domain`` becomes a slice label, ``chance`` the baseline (without
            it: one over the number of choices).
        samples: lm-eval's, with ``doc``, ``acc`` and ``bits_per_byte``.
    """
    domain = {"domain": str(metadata["domain"])} if "domain" in metadata else {}
    rows = _rows(task, domain, metadata, samples)
    for label, value in _labels(samples):
        part = [sample for sample in samples if _slices(sample).get(label) == value]
        rows += _rows(task, {**domain, label: value}, metadata, part)
    return rows


def _slices(sample: Mapping[str, Any]) -> Mapping[str, str]:
    return sample["doc"].get("slices") or {}


def _labels(samples: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """List the (label, value) pairs by which samples differ."""
    values: dict[str, set[str]] = {}
    for sample in samples:
        for label, value in _slices(sample).items():
            values.setdefault(label, set()).add(value)
    return sorted((label, v) for label, vs in values.items() if len(vs) > 1 for v in vs)


def _rows(
    task: str,
    labels: Mapping[str, str],
    metadata: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
) -> list[MetricRow]:
    """Score one set of samples: ``acc``, ``acc_centered``, ``bits_per_byte``."""
    common: dict[str, Any] = {"split": "test", "slice": dict(labels), "n": len(samples)}
    rows = []
    if all("acc" in sample for sample in samples):
        chance = metadata.get("chance", chance_level(samples))
        rows += _accuracy_rows(task, [sample["acc"] for sample in samples], chance, common)
    if all(isinstance(sample.get("bits_per_byte"), list | tuple) for sample in samples):
        nats, size = np.array([sample["bits_per_byte"] for sample in samples], np.float64).T
        value, stderr = ratio(-nats / math.log(2), size)
        rows.append(MetricRow(task, "bits_per_byte", value, stderr=stderr, **common))
    return rows


def _accuracy_rows(
    task: str, right: Sequence[float], chance: float | None, common: Mapping[str, Any]
) -> list[MetricRow]:
    value = float(np.mean(right))
    stderr = mean_stderr(right)[1] if len(right) > 1 else None
    rows = [MetricRow(task, "acc", value, stderr=stderr, baseline=chance, **common)]
    if chance is not None:
        scaled = None if stderr is None else stderr / (1 - chance)
        rows.append(
            MetricRow(
                task, "acc_centered", centred(value, chance), stderr=scaled, baseline=0.0, **common
            )
        )
    return rows
