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
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap, widened
from engram_eval.arrays import Floats, Ints, Mask
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import Batch, batches, check_kinds
from probes.findings import Findings, bucket_names, mean_rows, where
from probes.sample import Sample, Slice
from probes.settling import prediction_depth
from probes.vocabulary import CELLS, kl_bits, pieces, token_losses, unembedder

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

    All are means over places. A stream without length has no ratio to it and no direction: such
    places are left out of ``added_norm_ratio``, ``added_cosine`` and ``change_ratio``, whose ``n``
    says how many are left; ``zero_streams`` counts them, per layer and site, where there are any.
    """
    check_kinds(adapter, sample)
    found = read_depth(adapter, sample, report)
    rows = [
        *_added_rows(sample, found),
        *(_travel_rows(sample, found) if adapter.n_layers > 1 and sample.shape[1] > 1 else ()),
        *_settling_rows(adapter, sample.first(SETTLING_TOKENS), report),
    ]
    return Findings(rows, {})


class Reading(NamedTuple):
    """What blocks add, and what a replaced stream changes, at every place.

    Attributes:
        lengths: of the stream before and behind each block, (2, layers, N, T).
        added: its length relative to the stream, and the cosine of the stream before and after,
            (2, layers, N, T); they mean nothing where a length is 0.
        changes: of the streams, relative to their length, (layers, N, T), as ``added``.
        kl_bits: of the prediction, (N, T).
    """

    lengths: Floats
    added: Floats
    changes: Floats
    kl_bits: Floats


def read_depth(adapter: Adapter, sample: Sample, report: Reporter | None = None) -> Reading:
    """Read a sample, and again with one token's stream replaced in each window."""
    (count, length), layers = sample.shape, adapter.n_layers
    shapes = ((2, layers), (2, layers), (layers,), ())
    found = Reading(*(np.zeros((*shape, count, length)) for shape in shapes))
    places = patched_places(sample)
    taps = [Tap(site, layer) for layer in range(layers) for site in ("resid_pre", "resid_post")]
    for batch in batches(adapter, sample, taps, report=report, title=NAME):
        windows = slice(batch.part.start // length, batch.part.stop // length)
        found.lengths[:, :, windows], found.added[:, :, windows] = _added(batch, layers)
        if layers > 1 and length > 1:
            travelled = _travelled(adapter, batch, torch.from_numpy(places[windows]))
            found.changes[:, windows], found.kl_bits[windows] = travelled
    return found


def _added(batch: Batch, layers: int) -> Floats:
    """Return ``lengths`` and ``added`` of a ``Reading`` for one batch, (2, 2, layers, B, T)."""
    found = []
    for layer in range(layers):
        before, after = (batch.taps[Tap(s, layer)] for s in ("resid_pre", "resid_post"))
        lengths = torch.stack((before.norm(dim=-1), after.norm(dim=-1)))
        ratio = (after - before).norm(dim=-1) / lengths[0]
        added = torch.stack((ratio, F.cosine_similarity(before, after, dim=-1)))
        found.append(torch.stack((lengths, added)))
    return torch.stack(found, dim=2).unflatten(-1, batch.tokens.shape).cpu().double().numpy()


def _added_rows(sample: Sample, found: Reading) -> Iterator[MetricRow]:
    slices, has_length = sample.slices("static_in"), found.lengths != 0
    defined = {"added_norm_ratio": has_length[0], "added_cosine": has_length.all(axis=0)}
    for (metric, wanted), values in zip(defined.items(), found.added, strict=True):
        for layer, value in enumerate(values):
            yield from mean_rows(
                value.reshape(-1),
                sample.inputs.document,
                where(slices, wanted[layer].reshape(-1)),
                name=NAME,
                metric=metric,
                layer=layer,
                site="resid_post",
            )
    for site, lengths in zip(("resid_pre", "resid_post"), has_length, strict=True):
        yield from _zero_rows(site, lengths)


def _zero_rows(site: str, has_length: Mask) -> Iterator[MetricRow]:
    """Count places (layers, N, T) whose stream has no length, where there are any."""
    for layer, seen in enumerate(has_length):
        if not seen.all():
            count = float((~seen).sum())
            yield MetricRow(
                *(NAME, "zero_streams", count), layer=layer, site=site, n=seen.size, split="val"
            )


def patched_places(sample: Sample) -> Ints:
    """Choose the token of each window whose stream is replaced, (N,): in the first quarter."""
    count, length = sample.shape
    rng = np.random.default_rng(sample.seed)
    return rng.integers(0, max(1, length // 4), count)


def _travelled(adapter: Adapter, batch: Batch, at: Tensor) -> tuple[Floats, Floats]:
    """Return changes (layers, B, T) and the prediction's (B, T) if ``at`` (B,) is replaced."""
    taps = [Tap("resid_post", layer) for layer in range(adapter.n_layers)]
    plain = {tap: batch.taps[tap].unflatten(0, batch.tokens.shape) for tap in taps}
    stream = _replaced(plain[taps[PATCHED]], at.to(adapter.device))
    with torch.no_grad(), adapter.record(taps) as found, adapter.start_at(PATCHED + 1, stream):
        adapter.run(batch.tokens)
    # Recorded before the replacement.
    after = {**{tap: widened(found[tap]) for tap in taps}, taps[PATCHED]: stream}
    changes = [(after[t] - plain[t]).norm(dim=-1) / plain[t].norm(dim=-1) for t in taps]
    kl = _change_bits(adapter, *(streams[taps[-1]].flatten(0, 1) for streams in (plain, after)))
    bits = kl.view(batch.tokens.shape).cpu().double().numpy()
    return torch.stack(changes).cpu().double().numpy(), bits


def _replaced(stream: Tensor, at: Tensor) -> Tensor:
    """Give one token of each window (B, T, D) the stream of the one half a window later."""
    index = torch.arange(len(stream))
    result = stream.clone()
    result[index, at] = stream[index, at + stream.shape[1] // 2]
    return result


@torch.no_grad()
def _change_bits(adapter: Adapter, before: Tensor, after: Tensor) -> Tensor:
    """Return KL(before || after) of what two last streams (n, D) predict, in bits, (n,)."""
    unembed = unembedder(adapter)
    old, new = (adapter.normed(stream) for stream in (before, after))
    parts = pieces(len(before), adapter.vocab_size, CELLS, adapter.device)
    return torch.cat([kl_bits(unembed(old[part]), unembed(new[part])) for part in parts])


def _travel_rows(sample: Sample, found: Reading) -> Iterator[MetricRow]:
    offset = np.arange(sample.shape[1]) - patched_places(sample)[:, None]
    bucket = np.digitize(offset.reshape(-1), EDGES) - 1
    parts = [
        Slice({"offset": name}, bucket == number)
        for number, name in enumerate(bucket_names(EDGES))
        if (bucket == number).any()
    ]
    fields: dict[str, Any] = {"name": NAME, "condition": "stream_replaced"}
    documents = sample.inputs.document
    yield from mean_rows(found.kl_bits.reshape(-1), documents, parts, metric="kl_bits", **fields)
    for layer, change in enumerate(found.changes):
        yield from mean_rows(
            change.reshape(-1),
            documents,
            where(parts, (found.lengths[1, layer] != 0).reshape(-1)),
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
    for batch in batches(adapter, sample, taps, report=report, title=NAME):
        streams = [batch.taps[tap] for tap in taps]
        nats[batch.part] = token_losses(adapter, streams[-1], batch.targets)
        settled[batch.part] = _settled(adapter, streams)
    return settled, nats


@torch.no_grad()
def _settled(adapter: Adapter, streams: list[Tensor]) -> Ints:
    """Return the first block from which the lens agrees with the end, (n,)."""
    unembed = unembedder(adapter)
    *earlier, last = (adapter.normed(stream) for stream in streams)
    agrees = torch.ones(len(streams), len(last), dtype=torch.bool, device=last.device)
    for part in pieces(len(last), adapter.vocab_size, CELLS, adapter.device):
        final = unembed(last[part]).argmax(-1, keepdim=True)
        for layer, hidden in enumerate(earlier):
            lens = unembed(hidden[part])
            # Whether it is the largest is known sooner than which one is.
            agrees[layer, part] = lens.gather(-1, final)[:, 0] == lens.amax(-1)
    return prediction_depth(agrees.cpu().numpy())


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
