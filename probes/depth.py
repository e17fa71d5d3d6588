"""How a model uses its depth: what layers add, how far early changes travel, when it has decided.

1. *What a block adds*: length relative to the stream it enters, and the cosine of the stream
   before and after (Gromov et al. 2024, arXiv:2403.17887, prune by the latter). The loss when a
   block is skipped is ``knockout``'s ``layer_skipped``.
2. *How far an early change travels*: in each window one token's stream is replaced, after the first
   block, by that of a token half a window later; the relative change of the stream, by layer and
   by tokens later, and of the prediction, in bits.
3. *When predictions settle*: the first block from which the LogitLens names the token that the
   model ends with, for hard and easy tokens (thirds of the model's own loss; static thirds).

In three lines::

    adapter = open_model("runs/quick/models/engram/seed0")
    sample = draw_sample(load_corpus("runs/quick/corpus"))
    rows = depth(adapter, sample).rows
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import batches
from probes.findings import Findings, mean_rows
from probes.sample import Floats, Ints, Sample, Slice

NAME = "depth"
PATCHED = 0
# First offset of each bucket; the last one is open.
EDGES = (0, 1, 2, 4, 8, 16, 32)
SETTLING_TOKENS = 4096


def depth(adapter: Adapter, sample: Sample, report: Reporter | None = None) -> Findings:
    """Measure the use of depth.

    Rows: per layer ``added_norm_ratio`` and ``added_cosine`` by domain and static third (site
    ``resid_post``); ``change_ratio`` per layer and ``kl_bits`` of the prediction by ``slice``
    offset (condition ``stream_replaced``); ``settled_layer`` by ``slice`` difficulty and static
    third. Standard errors are over documents.
    """
    rows = [
        *_added_rows(adapter, sample, report),
        *_travel_rows(adapter, sample, report),
        *_settling_rows(adapter, sample.first(SETTLING_TOKENS), report),
    ]
    return Findings(rows, {})


def _added_rows(adapter: Adapter, sample: Sample, report: Reporter | None) -> Iterator[MetricRow]:
    layers = range(adapter.n_layers)
    size = sample.inputs.token.size
    found = {
        metric: np.empty((adapter.n_layers, size))
        for metric in ("added_norm_ratio", "added_cosine")
    }
    taps = [Tap(site, layer) for layer in layers for site in ("resid_pre", "resid_post")]
    for batch in batches(adapter, sample, taps, report=report, title=NAME):
        for layer in layers:
            before, after = (batch.taps[Tap(s, layer)] for s in ("resid_pre", "resid_post"))
            ratio = (after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-30)
            found["added_norm_ratio"][layer, batch.part] = ratio.cpu().numpy()
            cosine = F.cosine_similarity(before, after, dim=-1)
            found["added_cosine"][layer, batch.part] = cosine.cpu().numpy()
    for metric, values in found.items():
        for layer in layers:
            yield from mean_rows(
                values[layer],
                sample.inputs.document,
                sample.slices("static_in"),
                name=NAME,
                metric=metric,
                layer=layer,
                site="resid_post",
            )


def patched_places(sample: Sample) -> Ints:
    """Choose the token of each window whose stream is replaced, (N,): in the first quarter."""
    count, length = sample.shape
    rng = np.random.default_rng(sample.seed)
    return rng.integers(0, max(1, length // 4), count)


def _travel_rows(adapter: Adapter, sample: Sample, report: Reporter | None) -> Iterator[MetricRow]:
    count, length = sample.shape
    if adapter.n_layers == 1 or length < 2:
        return
    places = patched_places(sample)
    offset = np.arange(length)[None, :] - places[:, None]
    changes = np.empty((adapter.n_layers, count, length))
    kl = np.empty((count, length))
    taps = [Tap("resid_post", layer) for layer in range(adapter.n_layers)]
    for batch in batches(adapter, sample, taps, logits=True, report=report, title=NAME):
        assert batch.logits is not None
        windows = slice(batch.part.start // length, batch.part.stop // length)
        at = torch.from_numpy(places[windows])
        plain = {tap: batch.taps[tap].unflatten(0, batch.tokens.shape) for tap in taps}
        with torch.no_grad(), adapter.record(taps) as found:
            logits = _replace_and_run(adapter, batch.tokens, plain[taps[PATCHED]], at)
        kl[windows] = _kl_bits(batch.logits.view_as(logits), logits)
        for tap in taps:
            change = (found[tap] - plain[tap]).norm(dim=-1) / plain[tap].norm(dim=-1)
            if tap.layer == PATCHED:
                # Recorded before the replacement.
                change = _replaced(plain[tap], at).sub(plain[tap]).norm(dim=-1)
                change = change / plain[tap].norm(dim=-1)
            changes[tap.layer, windows] = change.cpu().numpy()
    yield from _offset_rows(sample, offset, changes, kl)


def _replaced(stream: Tensor, at: Tensor) -> Tensor:
    """Give one token of each window (B, T, D) the stream of the one half a window later."""
    index = torch.arange(len(stream))
    result = stream.clone()
    result[index, at] = stream[index, at + stream.shape[1] // 2]
    return result


def _replace_and_run(adapter: Adapter, tokens: Tensor, stream: Tensor, at: Tensor) -> Tensor:
    with adapter.start_at(PATCHED + 1, _replaced(stream, at.to(stream.device))):
        return adapter.logits(tokens)


def _kl_bits(before: Tensor, after: Tensor) -> Floats:
    """Return KL(before || after) of logits (B, T, V), in bits, (B, T)."""
    old, new = before.log_softmax(-1), after.log_softmax(-1)
    bits: Tensor = (old.exp() * (old - new)).sum(-1) / np.log(2)
    return bits.cpu().double().numpy()


def _offset_rows(sample: Sample, offset: Ints, changes: Floats, kl: Floats) -> Iterator[MetricRow]:
    bucket = np.digitize(offset.reshape(-1), EDGES) - 1
    names = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in pairwise(EDGES)]
    parts = [
        Slice({"offset": name}, bucket == number)
        for number, name in enumerate([*names, f"{EDGES[-1]}+"])
        if (bucket == number).any()
    ]
    fields: dict[str, Any] = {"name": NAME, "condition": "stream_replaced"}
    documents = sample.inputs.document
    yield from mean_rows(kl.reshape(-1), documents, parts, metric="kl_bits", **fields)
    for layer, change in enumerate(changes):
        yield from mean_rows(
            change.reshape(-1),
            documents,
            parts,
            metric="change_ratio",
            layer=layer,
            site="resid_post",
            **fields,
        )


def settled_layers(
    adapter: Adapter, sample: Sample, report: Reporter | None = None
) -> tuple[Floats, Floats]:
    """Return when each prediction is final, and what it costs.

    Returns:
        The first block from which the lens keeps naming the model's likeliest token, (n,), and the
        loss of the true one in nats, (n,).
    """
    size = sample.inputs.token.size
    settled, nats = np.empty(size), np.empty(size)
    taps = [Tap("resid_post", layer) for layer in range(adapter.n_layers)]
    for batch in batches(adapter, sample, taps, logits=True, report=report, title=NAME):
        assert batch.logits is not None
        final = batch.logits.argmax(-1)
        loss = F.cross_entropy(batch.logits, batch.targets, reduction="none")
        nats[batch.part] = loss.cpu().numpy()
        settled[batch.part] = _settled(adapter, [batch.taps[t] for t in taps], final).cpu().numpy()
    return settled, nats


@torch.no_grad()
def _settled(adapter: Adapter, streams: list[Tensor], final: Tensor) -> Tensor:
    """Walk back from the last block for as long as the lens agrees with the end."""
    first = torch.full_like(final, len(streams) - 1)
    agreed = torch.ones_like(final, dtype=torch.bool)
    for layer in range(len(streams) - 2, -1, -1):
        agreed &= adapter.unembed(streams[layer]).argmax(-1) == final
        first = torch.where(agreed, layer, first)
    return first


def _settling_rows(
    adapter: Adapter, sample: Sample, report: Reporter | None
) -> Iterator[MetricRow]:
    settled, nats = settled_layers(adapter, sample, report)
    easy, hard = np.quantile(nats, [1 / 3, 2 / 3])
    slices = [
        *sample.slices("static_out"),
        Slice({"difficulty": "easy"}, nats <= easy),
        Slice({"difficulty": "hard"}, nats >= hard),
    ]
    yield from mean_rows(
        settled,
        sample.targets.document,
        slices,
        name=NAME,
        metric="settled_layer",
        site="resid_post",
        baseline=float(adapter.n_layers - 1),
    )
