"""Which beginnings token sequences share, so that each is computed once.

Three levels: a prefix (few-shot examples) before several stems (contexts), a stem before several
branches (options). Prefixes are found per cluster, so that requests of different tasks in one call
do not hide what each task's requests have in common.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

Tokens = tuple[int, ...]

# A cluster costs forward passes of its own; worth it if it saves this many tokens.
CLUSTER_COST = 512


class Stem(NamedTuple):
    """What is computed once before its branches.

    Attributes:
        tokens: the longest common beginning of the sequences.
        branches: what each of the other sequences has behind it; sorted, distinct, never empty.
        fresh: tokens at the end of the stem whose logits are wanted, so that they cannot be part
            of a prefix; at least 1.
        key: the caller's name for it.
    """

    tokens: Tokens
    branches: tuple[Tokens, ...]
    fresh: int
    key: int

    @property
    def beginning(self) -> Tokens:
        """What may become part of a prefix."""
        return self.tokens[: len(self.tokens) - self.fresh]


class Cluster(NamedTuple):
    """Stems ``first`` to ``last`` (exclusive) of a sorted list share ``depth`` tokens."""

    depth: int
    first: int
    last: int


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading tokens are equal."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size
    differ = np.fromiter(map(int.__ne__, a[:size], b[:size]), bool, size)
    return int(differ.argmax())


def make_stem(sequences: Iterable[Tokens], fresh_from: int, key: int) -> Stem:
    """Join the sequences of one context.

    Args:
        sequences: at least one.
        fresh_from: first position whose logits are wanted; every sequence reaches it.
        key: the caller's name for the stem.
    """
    ordered = sorted(set(sequences))
    depth = common_length(ordered[0], ordered[-1])
    branches = tuple(tokens[depth:] for tokens in ordered if len(tokens) > depth)
    return Stem(ordered[0][:depth], branches, depth - fresh_from, key)


@dataclass
class _Node:
    """An open node of the prefix tree: what the best clusters among its closed children save."""

    depth: int
    first: int
    saved: int = 0
    clusters: list[Cluster] = field(default_factory=list)

    def close(self, last: int, cost: int) -> "_Node":
        """Choose between one cluster of everything below and the children's clusters."""
        saved = self.depth * (last - self.first - 1) - cost
        if saved > self.saved:
            self.saved, self.clusters = saved, [Cluster(self.depth, self.first, last)]
        return self

    def adopt(self, child: "_Node") -> None:
        self.saved += child.saved
        self.clusters += child.clusters


def find_clusters(beginnings: Sequence[Tokens], cost: int = CLUSTER_COST) -> list[Cluster]:
    """Choose disjoint nodes of the prefix tree that save the most tokens, each less ``cost``.

    The nodes of the prefix tree are the intervals of a sorted list whose neighbours share at
    least so many tokens; they are visited bottom-up with a stack (Abouelhoda, Kurtz & Ohlebusch
    2004, J. Discrete Algorithms 2, algorithm 4.4).

    Args:
        beginnings: sorted; what may become part of a prefix.
        cost: of each cluster, in tokens.

    Returns:
        In order. Each holds all sequences with its beginning, or is not there.
    """
    if not beginnings:
        return []
    shared = [common_length(a, b) for a, b in itertools.pairwise(beginnings)]
    stack = [_Node(0, 0)]
    for last, depth in enumerate([*shared, 0], start=1):
        node = _Node(depth, last - 1)
        while stack[-1].depth > depth:
            closed = stack.pop().close(last, cost)
            if stack[-1].depth < depth:
                node.first = closed.first
                node.adopt(closed)
            else:
                stack[-1].adopt(closed)
        if stack[-1].depth < depth:
            stack.append(node)
    return stack[0].clusters


def split_clusters(stems: Sequence[Stem], cost: int = CLUSTER_COST) -> list[tuple[int, list[Stem]]]:
    """Return (tokens of the shared prefix, stems) for each cluster and, first, for the rest.

    The result does not depend on the order of ``stems``.
    """
    rest = sorted(stems, key=lambda stem: (stem.beginning, stem))
    found: list[tuple[int, list[Stem]]] = []
    while clusters := find_clusters([stem.beginning for stem in rest], cost):
        found += [(c.depth, rest[c.first : c.last]) for c in clusters]
        taken = {place for c in clusters for place in range(c.first, c.last)}
        # What deep clusters leave over may share something shorter.
        rest = [stem for place, stem in enumerate(rest) if place not in taken]
    return [(0, rest), *found] if rest else found
