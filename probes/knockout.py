"""Knock-outs: how much worse does the model predict when a part of it adds nothing?

The memory is silenced, averaged, or given the rows of other n-grams; as controls of equal place or
equal size, attention, feed-forward or a whole block is left out, or as many parameters of experts
are removed (arXiv:2601.07372 Fig. 6 has the memory alone). It measures how much the rest has come
to *depend* on a part at inference, not where knowledge lies: a model trained without the part may
do as well.

In three lines::

    adapter = open_model("runs/quick/models/engram/seed0")
    sample = draw_sample(load_corpus("runs/quick/corpus"))
    rows = knockout(adapter, sample).rows
"""

import math

import numpy as np
import torch

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.arrays import Floats
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import batches, check_kinds
from probes.cuts import Knockout, Means, cut_parameters, knockouts, memory_means, run_cut
from probes.findings import Findings, mean_rows, ratio_rows, where
from probes.sample import Sample
from probes.vocabulary import token_losses

NAME = "knockout"
# Parts of single blocks are many: each is cut on every second batch of the text.
OF_BLOCKS = ("attn_zeroed", "mlp_zeroed", "layer_skipped")
STRIDE = 2


def losses(
    adapter: Adapter,
    sample: Sample,
    cuts: list[Knockout],
    report: Reporter | None = None,
    stride: int = 1,
) -> Floats:
    """Return the loss of each target in nats, (1 + cuts, n): intact, then with each part cut.

    A cut leaves what comes before it as it was, so that the blocks before it are run once.

    Args:
        adapter: the model.
        sample: what it reads.
        cuts: the parts.
        report: where progress goes.
        stride: parts of single blocks are cut on the first of so many batches; NaN elsewhere.
    """
    count, length = sample.shape
    values = np.full((1 + len(cuts), count * length), np.nan)
    end = Tap("resid_post", adapter.n_layers - 1)
    taps = [*(Tap("resid_pre", layer) for layer in range(adapter.n_layers)), end]
    wanted = {cut.condition for cut in cuts}
    means = memory_means(adapter, sample) if "memory_mean" in wanted else Means({})
    for turn, batch in enumerate(batches(adapter, sample, taps, report=report, title=NAME)):
        values[0, batch.part] = token_losses(adapter, batch.taps[end], batch.targets)
        for number, cut in enumerate(cuts, start=1):
            if turn % stride and cut.condition in OF_BLOCKS:
                continue
            with torch.no_grad():
                stream = run_cut(adapter, cut, batch, means, sample.seed).flatten(0, 1)
            values[number, batch.part] = token_losses(adapter, stream, batch.targets)
    return values


def knockout(adapter: Adapter, sample: Sample, report: Reporter | None = None) -> Findings:
    """Knock out each part and compare the loss, per domain and per static third.

    Rows: ``loss_nats`` of the intact model; per knock-out ``loss_increase_nats`` and ``retained``:
    the share of what the model gains over unigram frequencies that is left. It is 1 where nothing
    is lost, 0 where frequencies do as well, negative below; None where the intact model gains
    nothing. ``params_removed`` where a memory and experts of its size are compared. Standard
    errors are over documents. Parts of single blocks are cut on half of the text (see ``n``); the
    array ``loss_nats`` is NaN where a part was not cut.
    """
    check_kinds(adapter, sample)
    cuts = knockouts(adapter)
    table = losses(adapter, sample, cuts, report, STRIDE)
    intact = table[0]
    documents, slices = sample.targets.document, sample.slices("static_out")
    gain = sample.targets.unigram_bits * math.log(2) - intact
    rows: list[MetricRow] = mean_rows(
        intact, documents, slices, name=NAME, metric="loss_nats", artifact={"key": "loss_nats"}
    )
    for cut, loss in zip(cuts, table[1:], strict=True):
        increase, seen = loss - intact, ~np.isnan(loss)
        parts = where(slices, seen)
        fields = {
            "name": NAME,
            "condition": cut.condition,
            "site": cut.site,
            "layer": cut.layer,
            "artifact": {"key": "loss_nats"},
        }
        rows += mean_rows(increase, documents, parts, metric="loss_increase_nats", **fields)
        rows += ratio_rows(
            gain - increase, gain, documents, parts, metric="retained", baseline=0.0, **fields
        )
        rows += _size_row(adapter, cut, sample.seed)
    return Findings(rows, {"loss_nats": table.astype(np.float32), **sample.index()})


def _size_row(adapter: Adapter, cut: Knockout, seed: int) -> list[MetricRow]:
    size = cut_parameters(adapter, cut, seed)
    if size is None:
        return []
    return [
        MetricRow(
            NAME,
            "params_removed",
            float(size),
            condition=cut.condition,
            site=cut.site,
            layer=cut.layer,
            split="val",
        )
    ]
