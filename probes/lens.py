"""LogitLens: what each layer would predict if the model ended there (arXiv:2601.07372 Fig. 4a).

The residual stream after each block, and the embedding as ``resid_pre`` of block 0, goes through
the final norm and the unembedding. The paper leaves norm, direction and text open; here the norm
is applied and both directions are given. A lens reads a layer in the *last* layer's language: a
low divergence shows that the prediction is there, a high one not that it is absent.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import Batch, batches
from probes.findings import Findings, mean_rows
from probes.sample import Floats, Sample, Slice

NAME = "logit_lens"
KEPT = ("kl_bits", "cross_entropy_bits")

# Cells of one temporary matrix (tokens, V): a few of them fit into a core's cache.
CELLS = 262_144


class Reference(NamedTuple):
    """The model's own predictions for n tokens.

    Attributes:
        log_p: natural logarithm of the probabilities, (n, V).
        p: the probabilities, (n, V).
        top: the likeliest token, (n, 1).
        targets: the token that came, (n, 1).
    """

    log_p: Tensor
    p: Tensor
    top: Tensor
    targets: Tensor


class Divergence(NamedTuple):
    """How a lens differs from the model's end, per token: each (n,), in bits where so named.

    Attributes:
        kl_bits: KL(final || lens).
        kl_reverse_bits: KL(lens || final).
        cross_entropy_bits: of the true next token under the lens.
        entropy_bits: of the lens.
        top1_agreement: 1 where lens and model agree on the likeliest token.
    """

    kl_bits: Tensor
    kl_reverse_bits: Tensor
    cross_entropy_bits: Tensor
    entropy_bits: Tensor
    top1_agreement: Tensor


def reference(logits: Tensor, targets: Tensor) -> Reference:
    """Prepare the model's logits (n, V) and the true tokens (n,) for many comparisons."""
    log_p = logits.log_softmax(-1)
    return Reference(log_p, log_p.exp(), log_p.argmax(-1, keepdim=True), targets[:, None])


def divergence(final: Reference, lens: Tensor) -> Divergence:
    """Compare the logits of a lens (n, V) with the model's own predictions."""
    log_q = lens.log_softmax(-1)
    q, gap = log_q.exp(), final.log_p - log_q
    bits = 1 / math.log(2)
    return Divergence(
        kl_bits=torch.linalg.vecdot(final.p, gap) * bits,
        kl_reverse_bits=-torch.linalg.vecdot(q, gap) * bits,
        cross_entropy_bits=-log_q.gather(-1, final.targets)[:, 0] * bits,
        entropy_bits=-torch.linalg.vecdot(q, log_q) * bits,
        top1_agreement=(log_q.gather(-1, final.top)[:, 0] == log_q.amax(-1)).float(),
    )


def lens_taps(adapter: Adapter) -> list[Tap]:
    """Return the residual streams in order of depth: the embedding, then after each block."""
    return [Tap("resid_pre", 0)] + [Tap("resid_post", i) for i in range(adapter.n_layers)]


def measure(adapter: Adapter, sample: Sample, report: Reporter | None = None) -> Floats:
    """Return all divergences as an array (measures, depths, tokens)."""
    taps = lens_taps(adapter)
    count, length = sample.shape
    values = np.empty((len(Divergence._fields), len(taps), count * length))
    for batch in batches(adapter, sample, taps, logits=True, report=report, title=NAME):
        values[:, :, batch.part] = _measure_batch(adapter, batch, taps).cpu().numpy()
    return values


def _measure_batch(adapter: Adapter, batch: Batch, taps: list[Tap]) -> Tensor:
    """Return the divergences of a batch, (measures, depths, n)."""
    assert batch.logits is not None
    step = max(1, CELLS // adapter.vocab_size)
    parts = []
    with torch.no_grad():
        for start in range(0, len(batch.logits), step):
            part = slice(start, start + step)
            final = reference(batch.logits[part], batch.targets[part])
            lenses = (adapter.unembed(batch.taps[tap][part]) for tap in taps)
            found = [torch.stack(list(divergence(final, lens))) for lens in lenses]
            parts.append(torch.stack(found, dim=1))
    return torch.cat(parts, dim=2)


def logit_lens(adapter: Adapter, sample: Sample, report: Reporter | None = None) -> Findings:
    """Measure every depth on every slice; see the module for what it shows and does not.

    Rows: the fields of ``Divergence`` per depth; ``early_kl_bits``, the mean of ``kl_bits`` after
    the blocks of the first third; ``depth_half_layers`` and ``depth_90_layers``, the number of
    blocks (interpolated) after which KL(final || lens) has fallen to a half and to a tenth of
    what it is at the embedding. Standard errors are over documents.
    """
    values = measure(adapter, sample, report)
    documents, slices = sample.targets.document, sample.slices("static_out")
    rows = []
    for depth, tap in enumerate(lens_taps(adapter)):
        for metric, per_token in zip(Divergence._fields, values[:, depth], strict=True):
            artifact = {"key": metric} if metric in KEPT else None
            rows += mean_rows(
                per_token,
                documents,
                slices,
                name=NAME,
                metric=metric,
                layer=tap.layer,
                site=tap.site,
                artifact=artifact,
            )
    kl = values[Divergence._fields.index("kl_bits")]
    early = kl[1 : 1 + math.ceil(adapter.n_layers / 3)].mean(axis=0)
    rows += mean_rows(
        early, documents, slices, name=NAME, metric="early_kl_bits", site="resid_post"
    )
    rows += [row for part in slices for row in _depth_rows(kl, part)]
    arrays = {key: values[Divergence._fields.index(key)].astype(np.float32) for key in KEPT}
    return Findings(rows, {**arrays, **sample.index()})


def _depth_rows(kl: Floats, part: Slice) -> list[MetricRow]:
    curve = kl[:, part.mask].mean(axis=1)
    return [
        MetricRow(
            name=NAME,
            metric=metric,
            value=fall_depth(curve, share),
            site="resid_post",
            split="val",
            slice=part.labels,
            n=int(part.mask.sum()),
        )
        for metric, share in (("depth_half_layers", 0.5), ("depth_90_layers", 0.1))
    ]


def fall_depth(curve: Floats, share: float) -> float | None:
    """Return where a curve (depths,) first falls to ``share`` of its first value.

    Linear between depths; 0 is the first depth. None where the curve starts at 0 or never falls
    so far.
    """
    goal = share * curve[0]
    below = np.flatnonzero(curve <= goal)
    if curve[0] <= 0 or below.size == 0:
        return None
    end = int(below[0])
    before, after = curve[end - 1], curve[end]
    return float(end - 1 + (before - goal) / (before - after))
