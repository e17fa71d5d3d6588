"""Linear CKA between all layers of two models (Kornblith et al. 2019, arXiv:1905.00414).

``CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` with ``K = X X'``. HSIC is the unbiased
estimator of Song et al. 2012 (eq. 5), summed over minibatches before the division as in Nguyen et
al. 2021 (arXiv:2010.15327): 0 in expectation for independent representations, however few the
examples are. A minibatch is a group of neighbouring windows, hence mostly of whole documents; the
intervals are from a bootstrap over minibatches, the standard errors from a jackknife. Document
separators are left out: their states say nothing about text. In three lines::

    first, second = open_model("models/moe/seed0"), open_model("models/engram/seed0")
    sample = draw_sample(load_corpus("runs/quick/corpus"))
    rows = cka(first, second, sample).rows


Twice: on all tokens, and on the last tokens of names, as arXiv:2601.07372 does. A layer's soft
alignment (eq. 9) is read against two lines: what the layer gives in its own model (``self``, the
zero), and what two seeds of one architecture give (the null, a pair of its own in every study).
Below nine blocks it is soft in name alone: the number of the one layer that is most alike.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.analysis.stats import resample
from engram_eval.arrays import Floats, Mask
from engram_eval.errors import UserError
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import batches, check_kinds
from probes.findings import Findings
from probes.hsic import hsic_between
from probes.sample import Sample
from probes.settling import interval

NAME = "cka"
LEAST = 4
DRAWS = 200
TOKENS_PER_BATCH, FEWEST_BATCHES = 1024, 8


class Similarity(NamedTuple):
    """CKA of every layer of one model (rows) with every layer of another (columns).

    Attributes:
        value: (La, Lb).
        stderr: the same shape; jackknife over minibatches, NaN with fewer than two.
        draws: bootstrap over minibatches, (draws, La, Lb); none with fewer than two.
        n: examples in all minibatches.
    """

    value: Floats
    stderr: Floats
    draws: Floats
    n: int


class Similarities(NamedTuple):
    """CKA between two models, and of each with itself."""

    cross: Similarity
    first: Similarity
    second: Similarity


class CkaFitter:
    """Collects minibatches of paired examples; ``result`` is the similarity so far."""

    def __init__(self) -> None:
        self._cross: list[Tensor] = []
        self._first: list[Tensor] = []
        self._second: list[Tensor] = []
        self.n = 0

    def update(self, first: list[Tensor], second: list[Tensor]) -> None:
        """Add a minibatch: per layer of each model a tensor (n, width), rows paired.

        Raises:
            UserError: fewer than 4 examples, for which the estimator is not defined.
        """
        n = first[0].shape[0]
        if n < LEAST:
            raise UserError(f"cka: a minibatch of {n} examples; at least {LEAST} are needed")
        between = hsic_between(first, second)
        self._cross.append(between.cross)
        self._first.append(between.first)
        self._second.append(between.second)
        self.n += n

    def result(self, seed: int = 0) -> Similarities:
        """Return CKA over all minibatches so far; ``seed`` draws the bootstrap.

        Raises:
            UserError: there was none.
        """
        if not self._cross:
            raise UserError("cka: no minibatch")
        cross, a, b = (torch.stack(x) for x in (self._cross, self._first, self._second))
        # A single minibatch has no spread.
        draws = DRAWS if len(cross) > 1 else 0
        weights = torch.from_numpy(resample(len(cross), draws, np.random.default_rng(seed)))
        own_a, own_b = (x.diagonal(dim1=1, dim2=2) for x in (a, b))
        parts = ((cross, own_a, own_b), (a, own_a, own_a), (b, own_b, own_b))
        return Similarities(*(self._similarity(*part, weights) for part in parts))

    def _similarity(
        self, cross: Tensor, own_a: Tensor, own_b: Tensor, weights: Tensor
    ) -> Similarity:
        value = _ratio(cross.sum(0), own_a.sum(0), own_b.sum(0))
        draws = _ratio(*(torch.einsum("dm,m...->d...", weights, x) for x in (cross, own_a, own_b)))
        stderr = _jackknife(cross, own_a, own_b)
        return Similarity(value.numpy(), stderr.numpy(), draws.numpy(), self.n)


def _ratio(cross: Tensor, own_a: Tensor, own_b: Tensor) -> Tensor:
    """Divide; a representation without variance gives 0."""
    scale = (own_a.clamp(min=0)[..., :, None] * own_b.clamp(min=0)[..., None, :]).sqrt()
    return torch.where(scale > 0, cross / scale, torch.zeros_like(cross))


def _jackknife(cross: Tensor, own_a: Tensor, own_b: Tensor) -> Tensor:
    """Return the delete-one standard error over minibatches (first axis)."""
    count = cross.shape[0]
    if count < 2:
        return torch.full_like(cross[0], torch.nan)
    without = _ratio(cross.sum(0) - cross, own_a.sum(0) - own_a, own_b.sum(0) - own_b)
    spread = (without - without.mean(0)).square().sum(0)
    return (spread * (count - 1) / count).sqrt()


def soft_alignment(similarity: Floats, k: int = 5) -> list[float | None]:
    """Return for each column j the depth of the rows most like it (arXiv:2601.07372 eq. 9).

    With k = 1 that is the most similar row, a hard argmax; see ``neighbours``.

    ``a_j = sum(S_ij * i) / sum(S_ij)`` over the k rows i of largest S_ij. Near the last rows a_j
    is bounded by construction. None where no similarity is positive.
    """
    return _soft_alignments(similarity[None], k)[0]


def _soft_alignments(similarities: Floats, k: int) -> list[list[float | None]]:
    """Return ``soft_alignment`` of each of many similarities, (m, La, Lb)."""
    positive = np.clip(similarities, 0.0, None)
    top = np.argsort(-positive, axis=1, kind="stable")[:, :k]
    chosen = np.take_along_axis(positive, top, axis=1)
    weights, depths = chosen.sum(1), (chosen * top).sum(1)
    return [
        [depth / weight if weight > 0 else None for depth, weight in zip(*pair, strict=True)]
        for pair in zip(depths.tolist(), weights.tolist(), strict=True)
    ]


def neighbours(n_layers: int) -> int:
    """Return k of ``soft_alignment`` for a depth: the paper's 5 at its 30 layers, in proportion.

    For fewer than nine layers that is 1: the alignment of a layer is then a whole number, the most
    similar layer's, and moves by whole layers; only means over layers or seeds lie between.
    """
    return max(1, round(n_layers / 6))


def similarity(
    first: Adapter,
    second: Adapter,
    sample: Sample,
    masks: Mapping[str, Mask],
    report: Reporter | None = None,
) -> dict[str, Similarities]:
    """Return CKA of all layers' ``resid_post`` of two models on the same tokens.

    Args:
        first: the model of the rows.
        second: the model of the columns.
        sample: what both read.
        masks: which of its N * T tokens are compared, by name; names of too few are left out.
        report: where progress goes.
    """
    taps_a, taps_b = _taps(first), _taps(second)
    count, length = sample.shape
    size = length * max(1, min(TOKENS_PER_BATCH // length, count // FEWEST_BATCHES))
    readers = (
        batches(first, sample, taps_a, tokens_per_batch=size, report=report, title=NAME),
        batches(second, sample, taps_b, tokens_per_batch=size),
    )
    fitters = {name: CkaFitter() for name in masks}
    for a, b in zip(*readers, strict=True):
        for name, mask in masks.items():
            keep = torch.from_numpy(np.flatnonzero(mask[a.part]))
            if len(keep) >= LEAST:
                fitters[name].update(
                    [a.taps[tap].cpu()[keep] for tap in taps_a],
                    [b.taps[tap].cpu()[keep] for tap in taps_b],
                )
    return {name: fitter.result(sample.seed) for name, fitter in fitters.items() if fitter.n}


def _taps(adapter: Adapter) -> list[Tap]:
    return [Tap("resid_post", layer) for layer in range(adapter.n_layers)]


def compared_tokens(sample: Sample) -> dict[str, Mask]:
    """Return which of N * T tokens are compared: all but separators, and last ones of names."""
    return {"": sample.inputs.token != sample.end_id, "name_end": sample.inputs.name_end}


def cka(
    first: Adapter, second: Adapter, sample: Sample, report: Reporter | None = None
) -> Findings:
    """Compare two models layer by layer, on all tokens and on the last tokens of names.

    Rows, those about names with slice ``static_in: name_end``: ``cka`` for each pair of layers
    (``layer`` of the first, ``other.layer`` of the second). ``aligned_layer``: for a layer of the
    first model, the mean layer of the second that it resembles (below nine blocks the one that it
    resembles most); with condition ``of_other`` the
    reverse (``other.layer`` given, the value is a layer of the first model); with ``self`` and
    ``self_of_other`` the same within the first and within the second model.
    ``aligned_shift_layers``: how much deeper than in its own model the layers' counterparts lie
    in the other, on average; with ``of_other`` for the second model's layers. Intervals are over
    minibatches.

    Raises:
        UserError: hardly any token.
    """
    for adapter in (first, second):
        check_kinds(adapter, sample)
    found = similarity(first, second, sample, compared_tokens(sample), report)
    if "" not in found:
        raise UserError("cka: the sample has hardly any token; raise probe.tokens")
    rows: list[MetricRow] = []
    arrays: dict[str, Floats] = {}
    for name, parts in found.items():
        key = "_".join(filter(None, ("cka", name)))
        labels = {"static_in": name} if name else {}
        rows += _pair_rows(parts.cross, key, labels)
        rows += _alignment_rows(parts, labels)
        arrays |= {key: parts.cross.value, f"{key}_stderr": parts.cross.stderr}
    return Findings(rows, arrays)


def _pair_rows(found: Similarity, key: str, labels: Mapping[str, str]) -> list[MetricRow]:
    low, high = _percentiles(found.draws)
    return [
        _row(
            "cka",
            float(found.value[i, j]),
            found.n,
            labels,
            stderr=None if np.isnan(found.stderr[i, j]) else float(found.stderr[i, j]),
            ci_low=None if low is None else float(low[i, j]),
            ci_high=None if high is None else float(high[i, j]),
            layer=i,
            other={"layer": j, "site": "resid_post"},
            artifact={"key": key},
        )
        for i, j in np.ndindex(*found.value.shape)
    ]


def _percentiles(draws: Floats) -> tuple[Floats | None, Floats | None]:
    if not len(draws):
        return None, None
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return low, high


class Aligned(NamedTuple):
    """Soft alignment of every column's layer, and that of every bootstrap draw."""

    value: list[float | None]
    draws: list[list[float | None]]


def aligned(found: Similarity, transpose: bool = False) -> Aligned:
    """Return ``soft_alignment`` of a similarity's columns, or of its rows if ``transpose``."""
    value, draws = found.value, found.draws
    if transpose:
        value, draws = value.T, draws.transpose(0, 2, 1)
    k = neighbours(len(value))
    return Aligned(soft_alignment(value, k), _soft_alignments(draws, k))


def _alignment_rows(parts: Similarities, labels: Mapping[str, str]) -> list[MetricRow]:
    found: dict[str | None, Aligned] = {
        None: aligned(parts.cross, transpose=True),
        "of_other": aligned(parts.cross),
        "self": aligned(parts.first),
        "self_of_other": aligned(parts.second),
    }
    rows = []
    for condition, one in found.items():
        for layer, value in enumerate(one.value):
            low, high = interval([draw[layer] for draw in one.draws])
            other = {"site": "resid_post"}
            place = {"other": other, "layer": layer}
            if condition in ("of_other", "self_of_other"):
                place = {"other": {**other, "layer": layer}}
            rows.append(
                _row(
                    "aligned_layer",
                    value,
                    parts.cross.n,
                    labels,
                    ci_low=low,
                    ci_high=high,
                    condition=condition,
                    **place,
                )
            )
    return rows + _shift_rows(found, parts.cross.n, labels)


def _shift_rows(
    found: Mapping[str | None, Aligned], n: int, labels: Mapping[str, str]
) -> list[MetricRow]:
    rows = []
    for condition, zero in ((None, "self"), ("of_other", "self_of_other")):
        here, own = found[condition], found[zero]
        draws = [_shift(*pair) for pair in zip(here.draws, own.draws, strict=True)]
        low, high = interval(draws)
        rows.append(
            _row(
                "aligned_shift_layers",
                _shift(here.value, own.value),
                n,
                labels,
                ci_low=low,
                ci_high=high,
                condition=condition,
                other={"site": "resid_post"},
                baseline=0.0,
            )
        )
    return rows


def _shift(values: list[float | None], own: list[float | None]) -> float | None:
    """Return the mean difference over the layers where both are defined."""
    pairs = zip(values, own, strict=True)
    gaps = [a - b for a, b in pairs if a is not None and b is not None]
    return float(np.mean(gaps)) if gaps else None


def _row(
    metric: str, value: float | None, n: int, labels: Mapping[str, str], **fields: Any
) -> MetricRow:
    return MetricRow(
        name=NAME,
        metric=metric,
        value=value,
        n=n,
        site="resid_post",
        split="val",
        slice=dict(labels),
        **fields,
    )
