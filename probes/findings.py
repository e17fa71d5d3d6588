"""What a probe returns: metric rows with errors over documents, and the arrays behind them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_eval.analysis.stats import ratio
from engram_eval.arrays import Floats, Ints, Mask
from engram_eval.records import MetricRow
from probes.sample import Slice


class Findings(NamedTuple):
    """Rows and named arrays; a row's ``artifact`` gives the ``key`` of the array behind it."""

    rows: list[MetricRow]
    arrays: Mapping[str, npt.NDArray[Any]]


def ratio_rows(
    top: Floats, bottom: Floats, documents: Ints, slices: Iterable[Slice], **fields: Any
) -> list[MetricRow]:
    """Return one row per slice with the ratio of sums over its tokens.

    Args:
        top: per token, (n,).
        bottom: per token, (n,).
        documents: which one each token is from, (n,), or several sources (``stats.ratio``), (n, k).
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
