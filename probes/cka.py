"""Linear CKA between all layers of two models (Kornblith et al. 2019, arXiv:1905.00414).

``CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` with ``K = X X'``. HSIC is the unbiased
estimator of Song et al. 2012 (eq. 5), summed over minibatches before the division as in Nguyen et
al. 2021 (arXiv:2010.15327): 0 in expectation for independent representations, however few the
examples are. A minibatch is a group of whole windows, so that leaving one out at a time gives a
standard error over text. Document separators are left out: their states say nothing about text.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.errors import UserError
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import batches
from probes.findings import Findings
from probes.sample import Floats, Sample

NAME = "cka"
SEPARATOR = 0
LEAST = 4


class Similarity(NamedTuple):
    """CKA of every layer of one model (rows) with every layer of another (columns).

    Attributes:
        value: (La, Lb).
        stderr: the same shape; jackknife over minibatches, NaN with fewer than two.
        n: examples in all minibatches.
    """

    value: Floats
    stderr: Floats
    n: int


def _centred_gram(x: Tensor) -> Tensor:
    """Return ``X X'`` (n, n) with a zero diagonal; sums over it want float64.

    HSIC with linear kernels does not change under a shift of X; removing the mean keeps the
    sums small.
    """
    x = x - x.mean(dim=0)
    return (x @ x.T).double().fill_diagonal_(0.0)


def unbiased_hsic(first: Tensor, second: Tensor) -> Tensor:
    """Return HSIC_1 (Song et al. 2012, eq. 5) of stacked Gram matrices.

    Args:
        first: (La, n, n), zero diagonals.
        second: (Lb, n, n), zero diagonals.

    Returns:
        (La, Lb).
    """
    n = first.shape[-1]
    trace = first.flatten(1) @ second.flatten(1).T
    rows_a, rows_b = first.sum(dim=-1), second.sum(dim=-1)
    sums = rows_a.sum(dim=-1)[:, None] * rows_b.sum(dim=-1)[None, :]
    cross = rows_a @ rows_b.T
    total = trace + sums / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)
    return total / (n * (n - 3))


class CkaFitter:
    """Collects minibatches of paired examples; ``result`` is the similarity so far."""

    def __init__(self) -> None:
        self._cross: list[Tensor] = []
        self._self_a: list[Tensor] = []
        self._self_b: list[Tensor] = []
        self.n = 0

    def update(self, first: list[Tensor], second: list[Tensor]) -> None:
        """Add a minibatch: per layer of each model a tensor (n, width), rows paired.

        Raises:
            UserError: fewer than 4 examples, for which the estimator is not defined.
        """
        n = first[0].shape[0]
        if n < LEAST:
            raise UserError(f"cka: a minibatch of {n} examples; at least {LEAST} are needed")
        a = torch.stack([_centred_gram(x) for x in first])
        b = torch.stack([_centred_gram(x) for x in second])
        self._cross.append(unbiased_hsic(a, b))
        self._self_a.append(_own_hsic(a))
        self._self_b.append(_own_hsic(b))
        self.n += n

    def result(self) -> Similarity:
        """Return CKA over all minibatches so far.

        Raises:
            UserError: there was none.
        """
        if not self._cross:
            raise UserError("cka: no minibatch")
        cross, own_a, own_b = (torch.stack(x) for x in (self._cross, self._self_a, self._self_b))
        value = _ratio(cross.sum(0), own_a.sum(0), own_b.sum(0))
        return Similarity(value.numpy(), _jackknife(cross, own_a, own_b).numpy(), self.n)


def _own_hsic(gram: Tensor) -> Tensor:
    """Return HSIC_1 of each Gram matrix with itself, (L,)."""
    return torch.stack([unbiased_hsic(g[None], g[None])[0, 0] for g in gram])


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

    ``a_j = sum(S_ij * i) / sum(S_ij)`` over the k rows i of largest S_ij. Near the last rows a_j
    is bounded by construction. None where no similarity is positive.
    """
    found: list[float | None] = []
    for column in np.clip(similarity, 0.0, None).T:
        top = np.argsort(-column, kind="stable")[: min(k, column.size)]
        weight = float(column[top].sum())
        found.append(float((column[top] * top).sum() / weight) if weight > 0 else None)
    return found


def neighbours(n_layers: int) -> int:
    """Return k of ``soft_alignment`` for a depth: the paper's 5 at its 30 layers, in proportion."""
    return max(1, round(n_layers / 6))


def similarity(
    first: Adapter, second: Adapter, sample: Sample, report: Reporter | None = None
) -> Similarity:
    """Return CKA of all layers' ``resid_post`` of two models on the same tokens."""
    taps_a, taps_b = _taps(first), _taps(second)
    size = sample.shape[1] * max(1, 1024 // sample.shape[1])
    readers = (
        batches(first, sample, taps_a, tokens_per_batch=size, report=report, title=NAME),
        batches(second, sample, taps_b, tokens_per_batch=size),
    )
    fitter = CkaFitter()
    for a, b in zip(*readers, strict=True):
        keep = (a.tokens != SEPARATOR).flatten()
        if int(keep.sum()) >= LEAST:
            fitter.update(
                [a.taps[tap][keep].cpu() for tap in taps_a],
                [b.taps[tap][keep.to(b.tokens.device)].cpu() for tap in taps_b],
            )
    return fitter.result()


def _taps(adapter: Adapter) -> list[Tap]:
    return [Tap("resid_post", layer) for layer in range(adapter.n_layers)]


def cka(
    first: Adapter, second: Adapter, sample: Sample, report: Reporter | None = None
) -> Findings:
    """Compare two models layer by layer.

    Rows: ``cka`` for each pair of layers (``layer`` of the first, ``other.layer`` of the second);
    ``aligned_layer`` twice: for a layer of the first model, the mean layer of the second that it
    resembles, and with condition ``of_other`` the reverse (``other.layer`` given, the value is a
    layer of the first model). Read either beside two seeds of one architecture.
    """
    found = similarity(first, second, sample, report)
    rows = [
        MetricRow(
            name=NAME,
            metric="cka",
            value=float(found.value[i, j]),
            stderr=None if np.isnan(found.stderr[i, j]) else float(found.stderr[i, j]),
            n=found.n,
            layer=i,
            site="resid_post",
            other={"layer": j, "site": "resid_post"},
            split="val",
            artifact={"key": "cka"},
        )
        for i in range(first.n_layers)
        for j in range(second.n_layers)
    ]
    rows += _alignment_rows(found)
    return Findings(rows, {"cka": found.value, "cka_stderr": found.stderr})


def _alignment_rows(found: Similarity) -> list[MetricRow]:
    layers_a, layers_b = found.value.shape
    own = soft_alignment(found.value.T, neighbours(layers_b))
    theirs = soft_alignment(found.value, neighbours(layers_a))
    rows = [
        _alignment_row(found, value, layer=layer, other={"site": "resid_post"})
        for layer, value in enumerate(own)
    ]
    rows += [
        _alignment_row(
            found, value, condition="of_other", other={"layer": layer, "site": "resid_post"}
        )
        for layer, value in enumerate(theirs)
    ]
    return rows


def _alignment_row(found: Similarity, value: float | None, **fields: Any) -> MetricRow:
    return MetricRow(
        name=NAME,
        metric="aligned_layer",
        value=value,
        n=found.n,
        site="resid_post",
        split="val",
        **fields,
    )
