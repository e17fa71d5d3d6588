"""Log-likelihoods of continuations: each context is read once, its continuations behind it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from engram_eval.arrays import Ints
from engram_eval.evaluation.batching import Budget, Size, cut_batches
from engram_eval.evaluation.cached_model import CachedModel, Past, StemBatch, join
from engram_eval.evaluation.prefix_tree import Stem, Tokens, make_stem, split_clusters

# Numbers of logits that are reduced at a time: few enough to stay in a processor's cache.
BLOCK = 2**20
# Least tokens saved, as a share of those that are fed anyway.
WORTH_SHARING = 0.25
# Stems that wait for their branches to be read: share of the columns that caches may have in all,
# and how many times as long the longest may be as the shortest.
KEPT = 0.25
SPREAD = 1.6


class Request(NamedTuple):
    """What is asked for: the log-likelihood of ``continuation`` after ``context``."""

    context: Tokens
    continuation: Tokens


# One token whose log-likelihood is wanted: (position whose logits predict it, in the stem or in the
# branch; the token; index of its request). Plain tuples, because there are very many.
Read = tuple[int, int, int]


class Context(NamedTuple):
    """All requests with one context.

    Attributes:
        stem: what is fed; its ``key`` is the context's index.
        reads: on the stem.
        branch_reads: on each branch.
        requests: how many there are.
    """

    stem: Stem
    reads: list[Read]
    branch_reads: dict[Tokens, list[Read]]
    requests: int


class Tally:
    """Sums over the tokens of each request.

    Attributes:
        nats: log-likelihoods so far, (R,) float64.
        greedy: whether each token so far was the likeliest, (R,).
    """

    def __init__(self, requests: int, dtype: torch.dtype) -> None:
        self.nats, self.greedy = np.zeros(requests), np.ones(requests, bool)
        self.dtype = dtype

    def add(self, logits: torch.Tensor, reads: Sequence[Read]) -> None:
        """Count tokens, given the logits (N, V) that the reads' positions point into."""
        if not reads:
            return
        positions, tokens, requests = np.array(reads, np.int64).T
        used, place = np.unique(positions, return_inverse=True)
        wanted = torch.from_numpy(used).to(logits.device)
        order = np.argsort(place, kind="stable")
        step = max(1, BLOCK // logits.shape[1])
        for start in range(0, len(used), step):
            first, last = np.searchsorted(place[order], [start, start + step])
            part = order[first:last]
            block = logits[wanted[start : start + step]].to(self.dtype)
            self._add_block(block, place[part] - start, tokens[part], requests[part])

    def _add_block(
        self,
        logits: torch.Tensor,
        rows: Ints,
        tokens: Ints,
        requests: Ints,
    ) -> None:
        top, best = logits.max(dim=-1)
        norm = top + logits.sub(top[:, None]).exp_().sum(dim=-1).log()
        row, token = (torch.from_numpy(part).to(logits.device) for part in (rows, tokens))
        nats = (logits[row, token] - norm[row]).double().cpu().numpy()
        np.add.at(self.nats, requests, nats)
        np.logical_and.at(self.greedy, requests, (best[row] == token).cpu().numpy())


def join_contexts(requests: Sequence[Request]) -> list[Context]:
    """Join the requests of each context; equal tokens are fed once."""
    groups: dict[Tokens, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.context, []).append(index)
    contexts: list[Context] = []
    for context, members in groups.items():
        for part in _parts(context, {index: requests[index].continuation for index in members}):
            contexts.append(_join_context(context, part, len(contexts)))
    return contexts


def _parts(context: Tokens, continuations: dict[int, Tokens]) -> list[dict[int, Tokens]]:
    """Split a context's requests by what they feed, unless sharing the context saves enough.

    A context as short as the single token before a document is not worth a pass of its own.
    """
    parts: dict[Tokens, dict[int, Tokens]] = {}
    for index, tokens in continuations.items():
        parts.setdefault(tokens[:-1], {})[index] = tokens
    saved = len(context) * (len(parts) - 1)
    if saved > WORTH_SHARING * sum(map(len, parts)):
        return [continuations]
    return list(parts.values())


def _join_context(context: Tokens, continuations: dict[int, Tokens], key: int) -> Context:
    start = len(context) - 1
    fed = {index: context + tokens[:-1] for index, tokens in continuations.items()}
    stem = make_stem(fed.values(), start, key)
    depth = len(stem.tokens)
    joined = Context(stem, [], {branch: [] for branch in stem.branches}, len(continuations))
    for index, tokens in continuations.items():
        for position, token in enumerate(tokens, start):
            if position < depth:
                joined.reads.append((position, token, index))
            else:
                reads = joined.branch_reads[fed[index][depth:]]
                reads.append((position - depth, token, index))
    return joined


@torch.inference_mode()
def score(
    model: CachedModel,
    requests: Sequence[Request],
    dtype: torch.dtype,
    budget: Budget,
    cluster_cost: int,
    done: Callable[[int], None],
) -> Tally:
    """Return the log-likelihood of each request, in nats, and whether it is greedy.

    The batches depend on the set of requests, not on their order.

    Args:
        model: what is asked.
        requests: none of their texts is empty, and all fit into the model.
        dtype: logits are converted to it before they are normalised.
        budget: of one forward pass.
        cluster_cost: see ``find_clusters``.
        done: told how many requests are finished.
    """
    contexts = join_contexts(requests)
    tally = Tally(len(requests), dtype)
    stems = [context.stem for context in contexts]
    for prefix, cluster in split_clusters(stems, cluster_cost):
        waiting: list[StemBatch] = []
        for batch in model.stems(prefix, cluster, budget):
            tally.add(batch.logits.flatten(0, 1), list(_stem_reads(batch, contexts)))
            if waiting and not _fits(batch, waiting, budget):
                done(_score_branches(model, waiting, contexts, budget, tally))
                waiting = []
            waiting.append(batch._replace(logits=batch.logits[:0]))
        done(_score_branches(model, waiting, contexts, budget, tally))
    return tally


def _fits(batch: StemBatch, waiting: Sequence[StemBatch], budget: Budget) -> bool:
    """Tell whether the branches of a batch may be read together with those of others.

    All stems are kept until then, and shorter ones are padded to the longest.
    """
    kept = sum(len(other.stems) * other.past.columns for other in (*waiting, batch))
    return kept <= KEPT * budget.columns and waiting[0].past.columns <= SPREAD * batch.past.columns


def _stem_reads(batch: StemBatch, contexts: Sequence[Context]) -> Iterable[Read]:
    """Yield the reads on stems with their positions in the batch's flat logits."""
    kept = batch.logits.shape[1]
    for row, stem in enumerate(batch.stems):
        context = contexts[stem.key]
        offset = (row + 1) * kept - len(context.stem.tokens)
        for position, token, request in context.reads:
            yield position + offset, token, request


class Branch(NamedTuple):
    """What is read behind row ``row`` of batch ``batch`` of stems."""

    tokens: Tokens
    batch: int
    row: int


def _score_branches(
    model: CachedModel,
    batches: Sequence[StemBatch],
    contexts: Sequence[Context],
    budget: Budget,
    tally: Tally,
) -> int:
    """Read all branches behind some batches of stems; return how many requests that ends."""
    branches = sorted(
        (
            Branch(tokens, number, row)
            for number, batch in enumerate(batches)
            for row, stem in enumerate(batch.stems)
            for tokens in stem.branches
        ),
        key=lambda branch: (-len(branch.tokens), branch.batch, branch.row),
    )
    columns = [batches[branch.batch].past.columns for branch in branches]
    sizes = [
        Size(len(branch.tokens), before + len(branch.tokens), len(branch.tokens))
        for branch, before in zip(branches, columns, strict=True)
    ]
    # A token here costs about twice as much as one of a stem: all have logits, rows are copied.
    dearer = replace(budget, pass_cost=budget.pass_cost // 2)
    for part in cut_batches(branches, sizes, dearer):
        # Rows of one batch of stems are copied together.
        ordered = sorted(part, key=lambda branch: branch.batch)
        logits = model.extend(_join(batches, ordered), [branch.tokens for branch in ordered])
        reads = [
            (position + number * logits.shape[1], token, request)
            for number, branch in enumerate(ordered)
            for position, token, request in _context(contexts, batches, branch).branch_reads[
                branch.tokens
            ]
        ]
        tally.add(logits.flatten(0, 1), reads)
    return sum(contexts[stem.key].requests for batch in batches for stem in batch.stems)


def _context(contexts: Sequence[Context], batches: Sequence[StemBatch], branch: Branch) -> Context:
    return contexts[batches[branch.batch].stems[branch.row].key]


def _join(batches: Sequence[StemBatch], branches: Sequence[Branch]) -> Past:
    """Copy what comes before branches, which are in the order of their batches."""
    used = list(dict.fromkeys(branch.batch for branch in branches))
    rows = [torch.tensor([b.row for b in branches if b.batch == number]) for number in used]
    pasts = [batches[number].past for number in used]
    device = pasts[0].lengths.device
    room = max(len(branch.tokens) for branch in branches)
    return join(pasts, [part.to(device) for part in rows], room)
