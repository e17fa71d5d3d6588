"""What a probe returns: metric rows with errors over documents, and the arrays behind them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_eval.records import MetricRow
from probes.sample import Floats, Ints, Mask, Slice
from probes.sharing import shared_error


class Findings(NamedTuple):
    """Rows and named arrays; a row's ``artifact`` gives the ``key`` of the array behind it."""

    rows: list[MetricRow]
    arrays: Mapping[str, npt.NDArray[Any]]


class Ratio(NamedTuple):
    """A ratio of sums with its standard error over documents; None where it is not defined."""

    value: float | None
    stderr: float | None


def ratio(top: Floats, bottom: Floats, documents: Ints) -> Ratio:
    """Return sum(top) / sum(bottom) over tokens, with tokens of one document kept together.

    The standard error linearises the ratio (Cochran 1977, eq. 6.13), so that it equals the
    clustered standard error of the mean where ``bottom`` is 1. A denominator that is not
    positive gives None, as does the error of a single document.

    Args:
        top: per token, (n,).
        bottom: per token, (n,).
        documents: which document each token is from, (n,); or (n, k) where each item depends on
            several sources, as a pair does on two people (``sharing``).
    """
    below = float(bottom.sum())
    if below <= 0:
        return Ratio(None, None)
    value = float(top.sum()) / below
    if documents.ndim > 1:
        shared = shared_error(top - value * bottom, bottom, documents)
        return Ratio(value, None if shared is None else shared / below)
    sizes = np.bincount(documents - documents.min())
    count = int((sizes > 0).sum())
    if count < 2:
        return Ratio(value, None)
    # As ``stats.clustered_stderr``, for whole numbers as names: a probe asks thousands of times.
    sums = np.bincount(documents - documents.min(), weights=top - value * bottom)
    error = math.sqrt(count / (count - 1) * float(np.square(sums).sum()))
    return Ratio(value, error / below)


def ratio_rows(
    top: Floats, bottom: Floats, documents: Ints, slices: Iterable[Slice], **fields: Any
) -> list[MetricRow]:
    """Return one row per slice with the ratio of sums over its tokens.

    Args:
        top: per token, (n,).
        bottom: per token, (n,).
        documents: see ``ratio``.
        slices: which tokens; their labels join ``fields["slice"]``.
        fields: the rest of ``MetricRow``; a ``baseline`` may be per token, (n,), and the split is
            ``val`` where none is given.
    """
    own, baseline = fields.pop("slice", {}), fields.pop("baseline", None)
    rows = []
    for labels, mask in slices:
        value, stderr = ratio(top[mask], bottom[mask], documents[mask])
        rows.append(
            MetricRow(
                value=value,
                stderr=stderr,
                n=int(mask.sum()),
                slice={**own, **labels},
                baseline=_baseline(baseline, mask),
                **{"split": "val", **fields},
            )
        )
    return rows


def where(slices: Iterable[Slice], wanted: Mask) -> list[Slice]:
    """Return slices without the tokens that are not wanted, (n,); those with none left go."""
    parts = [Slice(part.labels, part.mask & wanted) for part in slices]
    return [part for part in parts if part.mask.any()]


def _baseline(given: npt.NDArray[Any] | float | None, mask: Mask) -> float | None:
    return float(given[mask].mean()) if isinstance(given, np.ndarray) else given


def mean_rows(
    values: npt.ArrayLike, documents: Ints, slices: Iterable[Slice], **fields: Any
) -> list[MetricRow]:
    """Return one row per slice with the mean of a value per token, as ``ratio_rows``."""
    array = np.asarray(values, dtype=np.float64)
    return ratio_rows(array, np.ones_like(array), documents, slices, **fields)


def bucket_names(edges: Sequence[int]) -> list[str]:
    """Name buckets by their first numbers, the last one open: ``0``, ``1``, ``2-3``, ``4+``."""
    closed = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in pairwise(edges)]
    return [*closed, f"{edges[-1]}+"]
