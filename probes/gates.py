"""When does a memory's gate open? By n-gram frequency, by predictability, at the ends of names.

arXiv:2601.07372 Fig. 7 shows gates that open where a static pattern ends. Shown here is the
mean over all tokens of a kind, and AUROC: how well the gate alone tells the last token of a name
from the other tokens. Beside it stands what frequency alone tells (``baseline``): a gate that only
follows the n-gram's count knows nothing about names.

In three lines::

    adapter, corpus = open_model("runs/quick/models/engram/seed0"), load_corpus("runs/quick/corpus")
    patterns = count_patterns(corpus, draw_sample(corpus))
    rows = gates(adapter, patterns).rows
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.arrays import Floats, Ints, Mask
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import batches, check_kinds
from probes.findings import Findings, mean_rows
from probes.patterns import Patterns
from probes.sample import Slice

NAME = "gates"
SITE = "memory_gate"
INDEX = "memory_index"
EDGES = (0, 1, 2, 8, 64)
LABELS = ("0", "1", "2-7", "8-63", "64+")


def auroc(score: Floats, positive: Mask) -> float | None:
    """Return P(score of a positive > score of a negative), ties half; None without one of them.

    Equals the Mann-Whitney U statistic over the number of pairs; both arguments are (n,).
    """
    count = int(positive.sum())
    others = positive.size - count
    if not count or not others:
        return None
    ranks = float(rankdata(score)[positive].sum())
    return (ranks - count * (count + 1) / 2) / (count * others)


def count_slices(counts: Ints, label: str) -> list[Slice]:
    """Split tokens by how often their n-gram was seen in training, (n,)."""
    place = np.digitize(counts, EDGES) - 1
    parts = [Slice({label: name}, place == number) for number, name in enumerate(LABELS)]
    return [part for part in parts if part.mask.any()]


def name_slices(patterns: Patterns) -> list[Slice]:
    """Return where a name of several tokens begins, where it ends, and what is in none."""
    parts = {
        "first": patterns.name_first,
        "last": patterns.sample.inputs.name_end,
        "outside": ~patterns.in_name,
    }
    return [Slice({"name": name}, mask) for name, mask in parts.items() if mask.any()]


class Reading(NamedTuple):
    """What one memory layer did at each input.

    Attributes:
        gate: the mean over streams, (n,).
        numbers: of the rows that were read, (n, heads); no columns where it has none.
    """

    gate: Floats
    numbers: npt.NDArray[np.int32]


def read_gates(
    adapter: Adapter, patterns: Patterns, report: Reporter | None = None
) -> dict[int, Reading]:
    """Return gates and row numbers of each memory layer that has gates."""
    layers = [layer for layer in adapter.memory_layers if Tap(SITE, layer) in adapter.places]
    taps = [
        tap
        for layer in layers
        for tap in (Tap(SITE, layer), Tap(INDEX, layer))
        if tap in adapter.places
    ]
    parts: dict[Tap, list[npt.NDArray[Any]]] = {tap: [] for tap in taps}
    if not taps:
        return {}
    for batch in batches(adapter, patterns.sample, taps, report=report, title=NAME):
        for tap in taps:
            parts[tap].append(batch.taps[tap].cpu().numpy())
    nothing = [np.empty((patterns.sample.inputs.token.size, 0))]
    return {
        layer: Reading(
            np.concatenate(parts[Tap(SITE, layer)]).astype(np.float64).mean(-1),
            np.concatenate(parts.get(Tap(INDEX, layer), nothing)).astype(np.int32),
        )
        for layer in layers
    }


def gates(adapter: Adapter, patterns: Patterns, report: Reporter | None = None) -> Findings:
    """Read the gates of a model; no rows for a memory without gates, or none at all.

    Rows: ``gate_mean`` per domain, per third of ``static_in``, at the ends of names, per place in a
    name (``first``, ``last``; ``outside`` of all), and per count of the bigram and of the trigram
    that ends there; ``auroc`` of the gate for the ends of names,
    with the trigram count's as ``baseline``. Standard errors are over documents. Arrays, (n, ...):
    ``gate<layer>``, the numbers of the rows read as ``index<layer>``, and which token it was.
    """
    sample, rows = patterns.sample, []
    check_kinds(adapter, sample)
    arrays: dict[str, npt.NDArray[Any]] = {}
    slices = [
        *sample.slices("static_in"),
        *name_slices(patterns),
        *count_slices(patterns.bigram_count, "bigram_count"),
        *count_slices(patterns.trigram_count, "trigram_count"),
    ]
    for layer, (gate, index) in read_gates(adapter, patterns, report).items():
        key = f"gate{layer}"
        fields = {"name": NAME, "layer": layer, "site": SITE, "artifact": {"key": key}}
        documents = sample.inputs.document
        rows += mean_rows(gate, documents, slices, metric="gate_mean", **fields)
        rows += _auroc_row(gate, patterns, layer)
        arrays[key] = gate.astype(np.float32)
        arrays[f"index{layer}"] = index
    place: dict[str, npt.NDArray[Any]] = {
        name: getattr(sample.inputs, name) for name in ("document", "position", "token")
    }
    place |= {"bigram_count": patterns.bigram_count, "trigram_count": patterns.trigram_count}
    return Findings(rows, {**arrays, **place} if arrays else {})


def _auroc_row(gate: Floats, patterns: Patterns, layer: int) -> list[MetricRow]:
    ends = patterns.sample.inputs.name_end
    value = auroc(gate, ends)
    if value is None:
        return []
    return [
        MetricRow(
            NAME,
            "auroc",
            value,
            layer=layer,
            site=SITE,
            slice={"static_in": "name_end"},
            n=int(ends.sum()),
            split="val",
            baseline=auroc(patterns.trigram_count.astype(np.float64), ends),
        )
    ]
