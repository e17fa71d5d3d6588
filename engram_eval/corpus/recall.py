"""In-context lookups: what can only be answered from the text just read.

Two kinds. A *lookup* lists key-value pairs and then asks for many of them (multi-query
associative recall, arXiv:2312.04927). A *repeat* tells a random fragment several times, so that
copying from the earlier one (induction, arXiv:2209.11895) predicts the later ones. Keys, values
and fragments are drawn afresh for every document: the weights can store nothing of them.

Entropies are analytic. Values and words are drawn independently and uniformly, so who knows the
format but cannot look back pays ``log2`` of their number for each; who can pays nothing.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from engram_eval.config import CorpusConfig
from engram_eval.corpus.budget import budget, stream
from engram_eval.corpus.document import Answer, Document
from engram_eval.corpus.lines import Line, Split, document

# Few, common and short words: each is soon a token of its own and often seen, which is what lets
# small models find the trick within some 100,000 tokens.
_KEYS = "ant bat bee cat cow dog eel elk fox hen owl pig ram rat seal wolf"
_VALUES = "bag bed bell book box car cup door hat key lamp map nail pen ring tin"
KEYS, VALUES = tuple(_KEYS.split()), tuple(_VALUES.split())
PAIRS = (2, 3, 4, 6, 8, 12)
LENGTHS = (3, 5, 6, 8, 12)

# Most fragments have one length: what lies a fixed distance back can be copied by position
# alone, which models learn first and build on.
EASY_LENGTH, EASY_SHARE = 4, 0.6

# Words that a repeat tells, and queries that a lookup asks, about and at least.
REPEAT_WORDS, MIN_QUERIES = 48, 20


class Lookup(NamedTuple):
    """Pairs and the order in which they are asked for; a query is an index into the pairs."""

    keys: tuple[str, ...]
    values: tuple[str, ...]
    queries: tuple[int, ...]


class Repeat(NamedTuple):
    """A fragment of words that is told ``copies`` times."""

    words: tuple[str, ...]
    copies: int


def make_lookup(rng: np.random.Generator, n_pairs: int) -> Lookup:
    """Draw pairs (keys distinct, values independent); all are asked for, equally often.

    The order is shuffled anew in each round of queries.
    """
    keys = rng.choice(len(KEYS), n_pairs, replace=False)
    values = rng.integers(len(VALUES), size=n_pairs)
    rounds = max(2, math.ceil(MIN_QUERIES / n_pairs))
    queries = np.concatenate([rng.permutation(n_pairs) for _ in range(rounds)])
    return Lookup(
        tuple(KEYS[k] for k in keys), tuple(VALUES[v] for v in values), tuple(map(int, queries))
    )


def make_repeat(rng: np.random.Generator, length: int, copies: int) -> Repeat:
    """Draw a fragment of independent words."""
    return Repeat(tuple(VALUES[v] for v in rng.integers(len(VALUES), size=length)), copies)


def render_lookup(lookup: Lookup, n_queries: int | None = None) -> Line:
    """Write ``Pairs: fox tin, cat ink. Asked: cat ink, fox tin.``; the answers are the values.

    Args:
        lookup: what is told and asked.
        n_queries: how many queries are written; all, if None.
    """
    pairs = ", ".join(f"{k} {v}" for k, v in zip(lookup.keys, lookup.values, strict=True))
    text, answers = f"Pairs: {pairs}. Asked:", []
    for number, query in enumerate(lookup.queries[:n_queries]):
        text += ("," if number else "") + f" {lookup.keys[query]} "
        end = len(text) + len(lookup.values[query])
        answers.append(Answer(len(text), end, math.log2(len(VALUES)), 0.0))
        text += lookup.values[query]
    return Line(text + ".", tuple(answers))


def render_repeat(repeat: Repeat) -> Line:
    """Write ``Say: a b c; a b c; a b c.``; the answers are a later copy's words but its first."""
    fragment = " ".join(repeat.words)
    text, answers = f"Say: {fragment}", []
    for _ in range(repeat.copies - 1):
        text += "; "
        position = len(text)
        for number, word in enumerate(repeat.words):
            if number:
                span = (position, position + len(word))
                answers.append(Answer(*span, math.log2(len(VALUES)), 0.0))
            position += len(word) + 1
        text += fragment
    return Line(text + ".", tuple(answers))


def random_line(rng: np.random.Generator) -> Line:
    """Draw a lookup or a repeat of any size, with equal chances."""
    if rng.random() < 0.5:
        return render_lookup(make_lookup(rng, int(rng.choice(PAIRS))))
    easy = rng.random() < EASY_SHARE
    length = EASY_LENGTH if easy else int(rng.choice(LENGTHS))
    return render_repeat(make_repeat(rng, length, max(2, REPEAT_WORDS // (length + 1))))


def recall_documents(config: CorpusConfig) -> Iterator[Document]:
    """Yield one lookup or repeat per document until each split's bytes are spent."""
    sizes = budget(config, "recall")
    yield from _documents(config.seed, "train", sizes.train)
    yield from _documents(config.seed, "val", sizes.val)


def _documents(seed: int, split: Split, size: int) -> Iterator[Document]:
    """Draw from a stream of the split's own: more training text moves no validation document."""
    rng = stream(seed, "recall", ("train", "val").index(split))
    number = 0
    while size > 0:
        made = document([random_line(rng)], "\n", "recall", f"recall/{split}/{number}", split)
        yield made
        size -= len(made.text)
        number += 1
