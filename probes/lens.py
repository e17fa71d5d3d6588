"""LogitLens: what each layer would predict if the model ended there (arXiv:2601.07372 Fig. 4a).

The residual stream goes through the final norm and the unembedding. The paper leaves norm,
direction and text open; here the norm is applied and both directions are given. A lens reads a
layer in the *last* layer's language: a low divergence shows that the prediction is there, a high
one not that it is absent; ``tuned_lens`` is its control. In three lines::

    adapter = open_model("runs/quick/models/engram/seed0")
    sample = draw_sample(load_corpus("runs/quick/corpus"))
    rows = logit_lens(adapter, sample).rows

Sites, in the order in which a block writes: ``resid_pre`` of block 0 is the embedding,
``resid_memory`` the stream after the memory's write, ``resid_mid`` after attention's,
``resid_post`` after the block. Under condition ``memory_subtracted`` everything that memories have
written up to there is taken away again: what is left of an early low divergence is not the write
itself but what the blocks made of it.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap, widened
from engram_eval.arrays import Floats, Ints, Mask
from engram_eval.progress import Reporter
from engram_eval.records import MEMORY_SUBTRACTED, MetricRow
from probes.capture import Batch, batches, check_kinds
from probes.findings import Findings, mean_rows
from probes.sample import Sample, Slice
from probes.settling import early_weights, fall_bounds, prediction_depth
from probes.vocabulary import CELLS, pieces, row_dots, unembedder

NAME = "logit_lens"
KEPT = ("kl_bits", "cross_entropy_bits")
# Places inside blocks are many: they are read on every second batch of the text.
INSIDE, STRIDE = ("resid_memory", "resid_mid"), 2


class Reference(NamedTuple):
    """The model's own predictions for n tokens.

    Attributes:
        log_p: natural logarithm of the probabilities, (n, V).
        p: the probabilities, (n, V).
        negentropy: sum of p log p, (n,).
        top: the likeliest token, (n, 1).
        targets: the token that came, (n, 1).
    """

    log_p: Tensor
    p: Tensor
    negentropy: Tensor
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
        final_rank_log2: log2 of the rank (from 1) that the model's likeliest token has here.
    """

    kl_bits: Tensor
    kl_reverse_bits: Tensor
    cross_entropy_bits: Tensor
    entropy_bits: Tensor
    top1_agreement: Tensor
    final_rank_log2: Tensor


class View(NamedTuple):
    """One reading of a model: where the stream is taken, and whether memories' writes are in it."""

    site: str
    layer: int
    condition: str | None = None


# Turns the stream at a view, (n, D), into what the unembedding reads, (n, D).
Readout = Callable[[View, Tensor], Tensor]


def reference(logits: Tensor, targets: Tensor) -> Reference:
    """Prepare the model's logits (n, V) and the true tokens (n,) for many comparisons."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    top = log_p.argmax(-1, keepdim=True)
    return Reference(log_p, p, row_dots(p, log_p), top, targets[:, None])


def divergence(final: Reference, lens: Tensor) -> Divergence:
    """Compare the logits of a lens (n, V), which are overwritten, with the model's predictions."""
    # Few passes in two places that stay in the cache; log q itself is never written.
    z = lens.sub_(lens.amax(-1, keepdim=True))
    q = z.exp()
    total = q.sum(-1)
    log_total = total.log()
    entropy = log_total - row_dots(q, z) / total
    cross = row_dots(q, final.log_p) / total
    chosen = z.gather(-1, final.top)
    # Ones and zeros of the same type are added up in a fifth of the time that booleans take.
    likelier = torch.gt(z, chosen, out=q).sum(-1)
    bits = 1 / math.log(2)
    return Divergence(
        kl_bits=(final.negentropy - row_dots(final.p, z) + log_total) * bits,
        kl_reverse_bits=-(entropy + cross) * bits,
        cross_entropy_bits=(log_total - z.gather(-1, final.targets)[:, 0]) * bits,
        entropy_bits=entropy * bits,
        top1_agreement=(chosen[:, 0] == 0).to(z.dtype),
        final_rank_log2=(1 + likelier).log2(),
    )


def lens_taps(adapter: Adapter) -> list[Tap]:
    """Return the residual streams in order of depth: the embedding, then after each block."""
    return [Tap("resid_pre", 0)] + [Tap("resid_post", i) for i in range(adapter.n_layers)]


def depths(adapter: Adapter, condition: str | None = None) -> list[View]:
    """Return the views that make a curve over depth; with no write to subtract, none.

    Hyper-connections mix a write into the other streams, from which it cannot be taken out again.
    """
    if condition == MEMORY_SUBTRACTED and (not adapter.memory_layers or adapter.streams > 1):
        return []
    return [View(tap.site, tap.layer, condition) for tap in lens_taps(adapter)]


def views(adapter: Adapter) -> list[View]:
    """Return all readings: depths, the places inside blocks, and the depths less the writes.

    Before the first memory nothing is subtracted, so that no view is read twice. Where several
    streams are mixed, what lies between attention and feed-forward is not the sum of its parts. A
    memory that writes last leaves nothing to read inside of its block.
    """
    at_first = () if adapter.memory_ends_block else adapter.memory_layers
    inside = [View("resid_memory", layer) for layer in at_first]
    if adapter.streams == 1:
        inside += [View("resid_mid", layer) for layer in range(adapter.n_layers)]
    first = min(adapter.memory_layers, default=adapter.n_layers)
    late = [
        v for v in depths(adapter, MEMORY_SUBTRACTED) if v.site == "resid_post" and v.layer >= first
    ]
    return [*depths(adapter), *inside, *late]


def streams(adapter: Adapter, batch: Batch, wanted: list[View]) -> Iterator[tuple[View, Tensor]]:
    """Yield the stream at each view, (n, D); ``batch`` must have the taps of ``view_taps``."""
    for view in wanted:
        yield view, _stream(adapter, batch.taps, view)


def _stream(adapter: Adapter, taps: dict[Tap, Tensor], view: View) -> Tensor:
    site, layer = view.site, view.layer
    if site == "resid_mid":
        stream = taps[Tap("resid_post", layer)] - taps[Tap("mlp_out", layer)]
    elif site == "resid_memory":
        before = Tap("resid_post", layer - 1) if layer else Tap("resid_pre", 0)
        stream = taps[before] + taps[Tap("memory_out", layer)]
    else:
        stream = taps[Tap(site, layer)]
    if view.condition == MEMORY_SUBTRACTED and site != "resid_pre":
        for memory in adapter.memory_layers:
            if memory <= layer:
                stream = stream - taps[Tap("memory_out", memory)]
    return stream


def view_taps(adapter: Adapter, wanted: list[View]) -> list[Tap]:
    """Return the taps from which the views are made."""
    found = lens_taps(adapter) + [Tap("memory_out", i) for i in adapter.memory_layers]
    return found + [Tap("mlp_out", v.layer) for v in wanted if v.site == "resid_mid"]


def measure(
    adapter: Adapter,
    sample: Sample,
    wanted: list[View],
    readout: Readout,
    report: Reporter | None = None,
    title: str = NAME,
) -> Floats:
    """Return all divergences as an array (measures, views, tokens).

    What lies inside blocks is NaN on every second batch.
    """
    shape = (len(Divergence._fields), len(wanted), sample.inputs.token.size)
    values = np.full(shape, np.nan, dtype=np.float32)
    taps, outside = view_taps(adapter, wanted), [v for v in wanted if v.site not in INSIDE]
    read = batches(adapter, sample, taps, logits=True, report=report, title=title)
    for turn, batch in enumerate(read):
        here = outside if turn % STRIDE else wanted
        places = np.array([wanted.index(view) for view in here])
        found = _measure_batch(adapter, batch, here, readout).cpu().numpy()
        values[:, places, batch.part] = found
    return values.astype(np.float64)


def _measure_batch(adapter: Adapter, batch: Batch, wanted: list[View], readout: Readout) -> Tensor:
    """Return the divergences of a batch, (measures, views, n)."""
    assert batch.logits is not None
    shape = (len(Divergence._fields), len(wanted), len(batch.targets))
    found = torch.empty(shape, device=adapter.device)
    unembed = unembedder(adapter)
    with torch.no_grad():
        read = [readout(view, stream) for view, stream in streams(adapter, batch, wanted)]
        for part in pieces(len(batch.targets), adapter.vocab_size, CELLS, adapter.device):
            final = reference(batch.logits[part], batch.targets[part])
            for place, hidden in enumerate(read):
                measured = divergence(final, widened(unembed(hidden[part])))
                found[:, place, part] = torch.stack(list(measured))
    return found


def logit_lens(adapter: Adapter, sample: Sample, report: Reporter | None = None) -> Findings:
    """Measure every view on every slice; see the module for what it shows and does not.

    Rows: the fields of ``Divergence`` per view, and the curve's numbers of ``curve_rows``, all
    with errors or intervals over documents; those inside blocks on half of the text (see ``n``).
    """
    check_kinds(adapter, sample)
    wanted = views(adapter)
    values = measure(adapter, sample, wanted, lambda _, x: adapter.normed(x), report)
    return lens_findings(NAME, adapter, sample, wanted, values)


def lens_findings(
    name: str,
    adapter: Adapter,
    sample: Sample,
    wanted: list[View],
    values: Floats,
    chosen: Mask | None = None,
) -> Findings:
    """Turn divergences of a sample into rows; keep those of the depths.

    Args:
        name: of the probe.
        adapter: the model.
        sample: what it read.
        wanted: the views.
        values: the divergences, (measures, views, n).
        chosen: which tokens rows and arrays are about, (n,); all where it is None.
    """
    chosen = np.ones(values.shape[-1], dtype=bool) if chosen is None else chosen
    values, documents = values[..., chosen], sample.targets.document[chosen]
    parts = [Slice(labels, mask[chosen]) for labels, mask in sample.slices("static_out")]
    slices = [part for part in parts if part.mask.any()]
    rows = view_rows(name, wanted, values, documents, slices)
    place = {view: index for index, view in enumerate(wanted)}
    arrays = {}
    for condition in (None, MEMORY_SUBTRACTED):
        here = [
            place.get(v, place.get(v._replace(condition=None))) for v in depths(adapter, condition)
        ]
        if here:
            curve = values[:, np.array(here)]
            rows += curve_rows(name, condition, curve, documents, slices, sample.seed)
    plain = [place[view] for view in depths(adapter)]
    for key in KEPT:
        arrays[key] = values[Divergence._fields.index(key)][plain].astype(np.float32)
    index = {name: labels[chosen] for name, labels in sample.index().items()}
    return Findings(rows, {**arrays, **index})


def view_rows(
    name: str, wanted: list[View], values: Floats, documents: Ints, slices: list[Slice]
) -> list[MetricRow]:
    """Return the mean of every measure at every view; secondary ones on the main slices only.

    Args:
        name: of the rows.
        wanted: the views.
        values: (measures, views, n), not a number where a view does not see a token.
        documents: which one each token is from, (n,).
        slices: which tokens.
    """
    main = [part.labels for part in slices if not part.labels or "static_out" in part.labels]
    rows = []
    for place, view in enumerate(wanted):
        seen = ~np.isnan(values[0, place])
        read = [Slice(part.labels, part.mask & seen) for part in slices]
        for metric, per_token in zip(Divergence._fields, values[:, place], strict=True):
            kept = metric in KEPT and view.site in ("resid_pre", "resid_post")
            rows += mean_rows(
                per_token,
                documents,
                [part for part in read if part.mask.any() and (kept or part.labels in main)],
                name=name,
                metric=metric,
                artifact={"key": metric} if kept and view.condition is None else None,
                **view._asdict(),
            )
    return rows


def curve_rows(
    name: str,
    condition: str | None,
    values: Floats,
    documents: Ints,
    slices: list[Slice],
    seed: int,
) -> list[MetricRow]:
    """Return what a curve over depth comes to, as one number each.

    ``early_kl_bits``: area under KL(final || lens) over the first third of the depth, divided by
    it. ``depth_half_layers`` and ``depth_90_layers``: blocks (interpolated) after which that
    divergence has fallen to a half and to a tenth of what it is at the embedding.
    ``prediction_depth_layers``: blocks after which the likeliest token stays the model's own.

    Args:
        name: of the probe.
        condition: of the curve.
        values: divergences at the depths alone, (measures, depths, n).
        documents: of each token, (n,).
        slices: which tokens.
        seed: draws the bootstrap.
    """
    fields: dict[str, Any] = {"name": name, "condition": condition, "site": "resid_post"}
    kl = values[Divergence._fields.index("kl_bits")]
    early = early_weights(len(kl) - 1) @ kl
    agrees = values[Divergence._fields.index("top1_agreement")] == 1
    settled = prediction_depth(agrees)
    rows = mean_rows(early, documents, slices, metric="early_kl_bits", **fields)
    rows += mean_rows(settled, documents, slices, metric="prediction_depth_layers", **fields)
    for metric, share in (("depth_half_layers", 0.5), ("depth_90_layers", 0.1)):
        for part in slices:
            rng = np.random.default_rng(seed)
            found = fall_bounds(kl[:, part.mask], documents[part.mask], share, rng)
            rows.append(
                MetricRow(
                    metric=metric,
                    value=found.value,
                    ci_low=found.low,
                    ci_high=found.high,
                    split="val",
                    slice=part.labels,
                    n=int(part.mask.sum()),
                    **fields,
                )
            )
    return rows
