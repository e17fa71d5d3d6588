"""How a table is used: rows in use, collisions, Zipf's exponent, norms, rank, and cache curves.

All of it follows from training text and the table. It is asked of every memory of which the
adapter says where its rows are and what they stand for (``tables``, ``reads``): our own,
Qwen4-Exp's n-grams, Gemma 3n's rows of single tokens, and that of a module of one's own. Where the
adapter cannot tell which rows a text reads, the model is run up to its last memory.
Collisions of rows drawn at random stand beside the measured ones as ``baseline``.

arXiv:2601.07372 argues from Zipf's law that a small cache would do and measures none: here are the
hit rates, with what a cache that knew the future's hottest rows would reach.

In three lines::

    adapter, corpus = open_model("runs/quick/models/engram/seed0"), load_corpus("runs/quick/corpus")
    text = training_text(corpus)
    rows = memory_usage(adapter, text).rows
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr

from engram_eval.adapters.base import Adapter, widened
from engram_eval.adapters.check import check_rows
from engram_eval.arrays import Floats, Ints
from engram_eval.errors import UserError
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.cache_curves import hottest_hits, lfu_hits, lru_hits
from probes.capture import check_kinds
from probes.findings import Findings
from probes.ngram_rows import RowMemory, ngram_ids, row_memories, rows_of_text
from probes.patterns import Text

NAME = "memory_usage"
SITE = "memory_rows"
CACHE_TOKENS = 8_192
CACHE_SHARES = (0.003, 0.01, 0.03, 0.1, 0.3)
POLICIES = {"lru": lru_hits, "lfu": lfu_hits, "hottest": hottest_hits}


class Head(NamedTuple):
    """One head's reads of a text.

    Attributes:
        order: length of its n-grams.
        size: rows that it has.
        rows: read by each token, counted from its own first row, (T,).
        ngrams: which n-gram each token completes, (T,), numbered from 0.
    """

    order: int
    size: int
    rows: Ints
    ngrams: Ints


def zipf_exponent(counts: Ints) -> float | None:
    """Return the exponent s of p(rank) ~ rank^-s that makes ranked counts likeliest.

    Args:
        counts: of the events that were seen, (n,); None for fewer than two.
    """
    ranked = np.sort(counts[counts > 0])[::-1].astype(np.float64)
    if len(ranked) < 2:
        return None
    logs = np.log(np.arange(1, len(ranked) + 1))
    mean = float((ranked * logs).sum() / ranked.sum())

    def cost(exponent: float) -> float:
        return exponent * mean + float(np.log(np.exp(-exponent * logs).sum()))

    return float(minimize_scalar(cost, bounds=(0.0, 5.0), method="bounded").x)


def effective_rank(vectors: torch.Tensor) -> float:
    """Return exp(entropy of the normalised singular values) of (n, d) (Roy & Vetterli 2007)."""
    singular = torch.linalg.svdvals(vectors.double())
    share = singular / singular.sum()
    share = share[share > 0]
    return float(torch.exp(-(share * share.log()).sum()))


def crowding(rows: Ints, ngrams: Ints) -> Floats:
    """Return for each read which share of its row's reads come from other n-grams, (T,).

    0: the n-gram has the row to itself; near 1: the row is shaped by others.
    """
    return 1 - np.bincount(ngrams)[ngrams] / np.bincount(rows)[rows]


def chance_crowding(heads: list[Head]) -> list[Floats]:
    """Return ``crowding``, (T,), of each head if its n-grams had drawn their rows at random."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(head.size, size=int(head.ngrams.max()) + 1) for head in heads]
    return [crowding(draw[h.ngrams], h.ngrams) for draw, h in zip(draws, heads, strict=True)]


def heads_of(
    adapter: Adapter, memory: RowMemory, tokens: torch.Tensor, rows: torch.Tensor
) -> list[Head]:
    """Read a text (T,) with every head of a memory, which reads its ``rows`` (T, heads)."""
    check_rows(rows, memory.reads, memory.layer)
    read = rows.cpu().numpy()
    starts = np.cumsum([0, *memory.head_rows[:-1]])
    ids = {
        order: ngram_ids(adapter, memory, tokens[None], order).cpu().numpy()
        for order in set(memory.orders)
    }
    return [
        Head(order, size, read[:, number] - starts[number], ids[order])
        for number, (order, size) in enumerate(zip(memory.orders, memory.head_rows, strict=True))
    ]


def memory_usage(adapter: Adapter, text: Text, report: Reporter | None = None) -> Findings:
    """Measure each table's use by a text; no rows without a memory that looks tokens up.

    Where every token of the text reads the row of its own number (per-layer embeddings) nothing can
    collide, and ``crowding`` is left out. Norms are those of the rows as the table has them. Layers
    that share a table are measured by what each of them reads.

    Rows, per memory layer, site ``memory_rows``, with ``slice`` order: ``rows_touched``,
    ``crowding`` of each head, the mean over reads of ``crowding``, and (condition
    ``all_heads``) the same in each n-gram's least crowded head, ``zipf_exponent`` of reads per row
    (baseline: of the n-grams themselves), ``row_norm`` of rows in use and (condition
    ``untouched``) of the others, ``norm_count_correlation``; over all orders ``effective_rank`` of
    what tokens read and ``cache_hit_rate`` by policy and size.

    Raises:
        UserError: no opened model, no text, one in other tokens than the model's, or rows that
            are not where the adapter says.
    """
    check_kinds(adapter, text, Text, "a text (training_text)")
    memories = row_memories(adapter)
    if not memories:
        return Findings([], {})
    highest = int(text.tokens.max())
    if highest >= adapter.vocab_size:
        raise UserError(
            f"the text has token id {highest}, the model {adapter.vocab_size} tokens: "
            "they do not share a tokenizer"
        )
    tokens = torch.from_numpy(text.tokens).to(adapter.device)
    read = rows_of_text(adapter, tokens)
    rows: list[MetricRow] = []
    with (report or Reporter(quiet=True)).task(NAME, len(memories)) as progress:
        for memory in memories:
            heads = heads_of(adapter, memory, tokens, read[memory.layer])
            rows += [*_order_rows(memory, heads, text.tokens), *_shared_rows(memory, heads)]
            progress.advance()
    return Findings(rows, {})


def _row(layer: int, metric: str, value: float | None, **fields: Any) -> MetricRow:
    return MetricRow(NAME, metric, value, layer=layer, site=SITE, split="train", **fields)


def _order_rows(memory: RowMemory, heads: list[Head], tokens: Ints) -> Iterator[MetricRow]:
    """Measure the heads of each order together, and each head's collisions, if it can have any."""
    starts = np.cumsum([0, *memory.head_rows[:-1]])
    norms = widened(memory.table.detach()).norm(dim=1).cpu().numpy()
    for order in sorted(set(memory.orders)):
        own = [number for number, head in enumerate(heads) if head.order == order]
        group = [heads[number] for number in own]
        label = {"order": str(order)}
        counts = np.concatenate([np.bincount(h.rows, minlength=h.size) for h in group])
        size = np.concatenate([norms[starts[n] : starts[n] + heads[n].size] for n in own])
        yield from _count_rows(memory.layer, label, counts, size, group[0])
        if not all(np.array_equal(head.rows, tokens) for head in group):
            yield from _collision_rows(memory.layer, label, group)


def _collision_rows(layer: int, label: dict[str, str], heads: list[Head]) -> Iterator[MetricRow]:
    found = [crowding(head.rows, head.ngrams) for head in heads]
    chance = chance_crowding(heads)
    least = np.min(found, axis=0), np.min(chance, axis=0)
    cases = [*zip(found, chance, strict=True), least]
    for number, (share, expected) in enumerate(cases):
        together = number == len(heads)
        yield _row(
            layer,
            "crowding",
            float(share.mean()),
            slice=label if together else {**label, "head": str(number)},
            condition="all_heads" if together else None,
            n=len(share),
            baseline=float(expected.mean()),
        )


def _count_rows(
    layer: int, label: dict[str, str], counts: Ints, norms: Floats, head: Head
) -> Iterator[MetricRow]:
    used, ngrams = counts > 0, np.bincount(head.ngrams)
    yield _row(layer, "rows_touched", float(used.mean()), slice=label, n=len(counts))
    yield _row(
        layer,
        "zipf_exponent",
        zipf_exponent(counts),
        slice=label,
        n=int(used.sum()),
        baseline=zipf_exponent(ngrams),
    )
    yield _row(layer, "row_norm", _mean(norms[used]), slice=label, n=int(used.sum()))
    yield _row(
        layer,
        "row_norm",
        _mean(norms[~used]),
        slice=label,
        condition="untouched",
        n=int((~used).sum()),
    )
    yield _row(
        layer, "norm_count_correlation", _spearman(norms, counts), slice=label, n=len(counts)
    )


def _shared_rows(memory: RowMemory, heads: list[Head]) -> Iterator[MetricRow]:
    """Measure what concerns all heads together."""
    starts = np.cumsum([0, *memory.head_rows[:-1]])
    read = np.stack([head.rows + start for head, start in zip(heads, starts, strict=True)], axis=1)
    read = read[:CACHE_TOKENS]
    vectors = widened(memory.table.detach().cpu()[torch.from_numpy(read)].flatten(1))
    yield _row(
        memory.layer,
        "effective_rank",
        effective_rank(vectors),
        n=len(vectors),
        baseline=float(vectors.shape[1]),
    )
    total = sum(memory.head_rows)
    sizes = np.maximum(1, np.round(np.array(CACHE_SHARES) * total).astype(np.int64))
    for policy, rates in POLICIES.items():
        hits = rates(read.reshape(-1), sizes)
        for share, hit in zip(CACHE_SHARES, hits, strict=True):
            yield _row(
                memory.layer,
                "cache_hit_rate",
                float(hit),
                condition=policy,
                slice={"cached_share": str(share)},
                n=read.size,
                baseline=share,
            )


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None


def _spearman(first: Floats, second: Ints) -> float | None:
    """Return Spearman's rho; None where one of the two does not vary."""
    if first.size < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)
