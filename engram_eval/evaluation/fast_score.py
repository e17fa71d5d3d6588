"""Log-likelihoods of continuations: each context is read once, its continuations behind it."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from engram_eval.evaluation.batching import Budget, Size, cut_batches
from engram_eval.evaluation.cached_model import CachedModel, StemBatch
from engram_eval.evaluation.prefix_tree import Stem, Tokens, make_stem, split_clusters

# Numbers of logits that are reduced at a time: few enough to stay in a processor's cache.
BLOCK = 2**20
# Least tokens saved, as a share of those that are fed anyway.
WORTH_SHARING = 0.25


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
        rows: npt.NDArray[np.int64],
        tokens: npt.NDArray[np.int64],
        requests: npt.NDArray[np.int64],
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
            contexts.append(_join(context, part, len(contexts)))
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


def _join(context: Tokens, continuations: dict[int, Tokens], key: int) -> Context:
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
        for batch in model.stems(prefix, cluster, budget):
            found = [contexts[stem.key] for stem in batch.stems]
            tally.add(batch.logits.flatten(0, 1), list(_stem_reads(batch, found)))
            _score_branches(model, batch, found, budget, tally)
            done(sum(context.requests for context in found))
    return tally


def _stem_reads(batch: StemBatch, contexts: Sequence[Context]) -> Iterable[Read]:
    """Yield the reads on stems with their positions in the batch's flat logits."""
    kept = batch.logits.shape[1]
    for row, context in enumerate(contexts):
        offset = (row + 1) * kept - len(context.stem.tokens)
        for position, token, request in context.reads:
            yield position + offset, token, request


def _score_branches(
    model: CachedModel,
    batch: StemBatch,
    contexts: Sequence[Context],
    budget: Budget,
    tally: Tally,
) -> None:
    """Read all branches of a batch of stems."""
    branches = sorted(
        ((row, tokens) for row, stem in enumerate(batch.stems) for tokens in stem.branches),
        key=lambda branch: -len(branch[1]),
    )
    columns = batch.past.columns
    sizes = [Size(len(tokens), columns + len(tokens), len(tokens)) for _, tokens in branches]
    for part in cut_batches(branches, sizes, budget):
        rows, tokens = zip(*part, strict=True)
        past = batch.past.select(torch.tensor(rows, device=model.device))
        logits = model.extend(past, tokens)
        reads = [
            (position + number * logits.shape[1], token, request)
            for number, (row, branch) in enumerate(part)
            for position, token, request in contexts[row].branch_reads[branch]
        ]
        tally.add(logits.flatten(0, 1), reads)
