"""Questions about the sample's own tokens: their neighbours, and code.

- ``previous_token_kind``: which kind of token stood before? The local context must have reached the
  place that is read before any static pattern can be recognised.
- ``next_token_kind``: which kind comes next? It is what recognising a pattern is good for.
- ``code_token_kind``, ``bracket_depth``: what Python's ``tokenize`` says of the token that was
  read, and how many brackets are open after it (0, 1, 2, more), where the outermost is in view.
"""

from collections.abc import Sequence

import numpy as np

from engram_eval.arrays import Ints, Mask
from engram_eval.corpus.store import Corpus
from probes.code_labels import OTHER, code_labels
from probes.exercises import Exercise, make_exercise

KINDS = ("special", "space", "number", "word_start", "word_inside", "symbol")
CODE = "code"


def token_exercises(
    token: Ints, document: Ints, texts: Sequence[str], rng: np.random.Generator
) -> list[Exercise]:
    """Make the exercises that need no more than the windows.

    Args:
        token: ids, (N, T + 1); the first T are read.
        document: of each token, (N, T + 1).
        texts: what each id spells.
        rng: draws controls, examples and splits.
    """
    kinds = kinds_of(texts)
    inside = usable(document)
    place = np.flatnonzero(inside)
    read, group = token[:, :-1].reshape(-1)[place], document[:, :-1].reshape(-1)[place]
    before, after = (_neighbour(token, offset)[place] for offset in (-1, 1))
    made = [
        make_exercise("previous_token_kind", place, kinds[before], before, group, rng),
        make_exercise("next_token_kind", place, kinds[after], read, group, rng),
    ]
    return [exercise for exercise in made if exercise is not None]


def code_exercises(
    corpus: Corpus, position: Ints, document: Ints, rng: np.random.Generator
) -> list[Exercise]:
    """Make the exercises about code; none where the corpus has no domain of that name.

    Args:
        corpus: whose validation documents the windows are from.
        position: in the validation stream, (N, T + 1).
        document: of each token, (N, T + 1).
        rng: draws controls, examples and splits.
    """
    if CODE not in corpus.domains:
        return []
    stream, docs, tokenizer = corpus.tokens("val"), corpus.docs("val"), corpus.tokenizer()
    kind, depth, opened = (np.full(len(stream), OTHER, dtype=np.int64) for _ in range(3))
    code = corpus.domains.index(CODE)
    for start, end in docs[np.unique(document)][:, :2]:
        if docs[np.searchsorted(docs[:, 0], start), 2] == code:
            ids = np.asarray(stream[start : end - 1]).astype(np.int64)
            found = code_labels(tokenizer.decode(ids.tolist()), corpus.token_bytes[ids])
            kind[start : end - 1], depth[start : end - 1] = found.kind, found.depth
            opened[start : end - 1] = found.opened + start
    read = position[:, :-1]
    group = document[:, :-1].reshape(-1)
    types = np.asarray(stream)[read].reshape(-1).astype(np.int64)
    in_view = ((depth[read] >= 0) & (opened[read] >= read[:, :1])).reshape(-1)
    tasks = (
        ("code_token_kind", kind[read].reshape(-1), kind[read].reshape(-1) != OTHER),
        ("bracket_depth", depth[read].reshape(-1), in_view),
    )
    made = [_masked(name, label, mask, types, group, rng) for name, label, mask in tasks]
    return [exercise for exercise in made if exercise is not None]


def _masked(
    name: str, label: Ints, mask: Mask, kind: Ints, group: Ints, rng: np.random.Generator
) -> Exercise | None:
    place = np.flatnonzero(mask)
    return make_exercise(name, place, label[place], kind[place], group[place], rng)


def token_kind(text: str) -> int:
    """Return the index in ``KINDS`` of what a token spells; a letter may follow one space."""
    if text == "" or (text.startswith("<|") and text.endswith("|>")):
        return 0
    if text.isspace():
        return 1
    if text.strip().isdigit():
        return 2
    bare = text.removeprefix(" ")
    if bare[0].isalpha():
        return 3 if bare != text else 4
    return 5


def usable(document: Ints) -> Mask:
    """Return which inputs have both neighbours in their window and in their document, (N * T,)."""
    same = document[:, 1:] == document[:, :-1]
    before = np.zeros_like(same)
    before[:, 1:] = same[:, :-1]
    return (before & same).reshape(-1)


def kinds_of(texts: Sequence[str]) -> Ints:
    """Return the kind of every token id, (V,)."""
    return np.array([token_kind(text) for text in texts], dtype=np.int64)


def _neighbour(token: Ints, offset: int) -> Ints:
    """Return the token ids ``offset`` places from each input, (N * T,); edges repeat their own."""
    length = token.shape[1] - 1
    columns = np.clip(np.arange(length) + offset, 0, length)
    return token[:, columns].reshape(-1)
