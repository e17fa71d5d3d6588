"""Items of the in-context tasks: what is answered from the text just read.

Most contexts are drawn afresh, from the words and in the form of the corpus's lookups;
``context_reuse`` takes prose that the corpus holds back.

Dials: ``LIMIT`` items a task; ``PAIRS`` and ``LENGTHS``, how much there is to look through;
``WINDOW`` words of prose before a choice; ``PER_DOCUMENT``, most items from one text.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from engram_eval.config import CorpusConfig
from engram_eval.corpus.recall import (
    KEYS,
    make_lookup,
    make_repeat,
    render_lookup,
    render_repeat,
)
from engram_eval.corpus.stdlib import stdlib_documents
from engram_eval.evaluation.choices import Draft, at_word_end, finish, near_length, task_rng

LIMIT = 200
PAIRS = (4, 6, 8, 12)
LENGTHS = (5, 6, 8, 12)
WINDOW = 40
PER_DOCUMENT = 8
# A word that more texts than this share have says little about any of them.
COMMON = 0.25
# Each draws unfair contexts too (repeated values); they are dropped.
DRAFTS = 3 * LIMIT


def items(config: CorpusConfig) -> dict[str, list[dict[str, Any]]]:
    """Return the items of each task for a corpus."""
    makers = {
        "context_recall": _recall,
        "context_copy": _copy,
        "context_presence": _presence,
    }
    made = {}
    for task, maker in makers.items():
        rng = task_rng(config.seed, task)
        made[task] = finish(task, list(maker(rng)), rng, LIMIT)
    rng = task_rng(config.seed, "context_reuse")
    made["context_reuse"] = finish("context_reuse", _reuse(config, rng), rng, LIMIT)
    return made


def _pick(rng: np.random.Generator, words: tuple[str, ...] | list[str], n: int) -> tuple[str, ...]:
    return tuple(f" {word}" for word in rng.choice(sorted(set(words)), n, replace=False))


def _recall(rng: np.random.Generator) -> Iterator[Draft]:
    """Ask for the value of a key; wrong choices are values of keys not asked for so far."""
    for number in range(DRAFTS):
        n_pairs = PAIRS[number % len(PAIRS)]
        lookup = make_lookup(rng, n_pairs)
        asked = int(rng.integers(min(4, n_pairs - 3)))
        line = render_lookup(lookup, asked + 1)
        query = line.text[: line.answers[-1].start].rstrip()
        gold = lookup.values[lookup.queries[asked]]
        others = _told_as_often(query, gold, lookup.values)
        # A value that stands behind two keys would not tell which of them was found.
        if len(others) >= 3 and lookup.values.count(gold) == 1:
            yield Draft(query, f" {gold}", _pick(rng, others, 3), {"pairs": str(n_pairs)})


def _copy(rng: np.random.Generator) -> Iterator[Draft]:
    """Ask for the next word of a fragment told before; wrong choices are its later words."""
    for number in range(DRAFTS):
        length = LENGTHS[number % len(LENGTHS)]
        repeat = make_repeat(rng, length, 2)
        position = int(rng.integers(1, length - 3))
        gold, seen = repeat.words[position], repeat.words[position - 1]
        line = render_repeat(repeat)
        query = line.text[: line.answers[position - 1].start].rstrip()
        others = [word for word in _told_as_often(query, gold, repeat.words) if word != seen]
        # The word before must lead to one place only.
        if len(others) >= 3 and repeat.words[:-1].count(seen) == 1:
            yield Draft(query, f" {gold}", _pick(rng, others, 3), {"length": str(length)})


def _told_as_often(text: str, gold: str, words: tuple[str, ...]) -> list[str]:
    """Return the other words that a text tells as often as the gold one.

    What has been told again is not asked for again: were it among the choices, the right one would
    be that which was told least often, whatever was asked.
    """
    told = Counter(re.findall(r"[a-z]+", text))
    return [word for word in set(words) if word != gold and told[word] == told[gold]]


def _presence(rng: np.random.Generator) -> Iterator[Draft]:
    """Ask which key occurred: what is asked for first is one of the keys told."""
    for number in range(DRAFTS):
        n_pairs = PAIRS[number % len(PAIRS)]
        lookup = make_lookup(rng, n_pairs)
        line = render_lookup(lookup, 1)
        query = line.text[: line.text.index(" Asked:") + len(" Asked:")]
        gold = lookup.keys[int(rng.integers(n_pairs))]
        absent = [key for key in KEYS if key not in lookup.keys]
        yield Draft(query, f" {gold}", _pick(rng, absent, 3), {"pairs": str(n_pairs)})


class Reuse(NamedTuple):
    """A word of a text that stood in the window before it, too."""

    document: int
    word: str
    text: str
    window: frozenset[str]


def _reuse(config: CorpusConfig, rng: np.random.Generator) -> list[Draft]:
    """Ask which word comes back; wrong choices come back elsewhere, but did not occur here."""
    documents = stdlib_documents(config.val_fraction, splits=("val",))
    texts = [document.text for document in documents if document.domain == "docs"]
    found = [entry for index, text in enumerate(texts) for entry in _reuses(index, text)]
    spread = Counter(word for _, word in {(entry.document, entry.word) for entry in found})
    found = [entry for entry in found if spread[entry.word] <= COMMON * len(texts)]
    taken: Counter[int] = Counter()
    drafts = []
    for entry in (found[index] for index in rng.permutation(len(found))):
        taken[entry.document] += 1
        if taken[entry.document] <= PER_DOCUMENT:
            drafts += _reuse_draft(entry, found, rng)
    return drafts


def _reuse_draft(entry: Reuse, found: list[Reuse], rng: np.random.Generator) -> list[Draft]:
    """Draft the question about one reused word; none if there are no wrong choices."""
    pool = [r.word for r in found if r.document != entry.document and r.word not in entry.window]
    wrong = near_length(entry.word, pool, rng)
    if not wrong:
        return []
    query, (gold, *rest) = at_word_end(entry.text, [entry.word, *wrong])
    lately = entry.word in _words(entry.text)[-WINDOW // 4 :]
    labels = {"last_use": "near" if lately else "far"}
    return [Draft(query, gold, tuple(rest), labels, f"document {entry.document}")]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]{5,}", text)


def _reuses(index: int, text: str) -> Iterator[Reuse]:
    """Yield the plain words of a text that stood among the ``WINDOW`` words before."""
    words = list(re.finditer(r"\S+", text))
    for position, match in enumerate(words):
        plain = re.fullmatch(r"([a-z]{5,})[.,;:]?", match.group())
        if plain is None or position < WINDOW // 2:
            continue
        before = text[words[max(0, position - WINDOW)].start() : match.start()]
        window = frozenset(_words(before))
        if plain.group(1) in window:
            yield Reuse(index, plain.group(1), before, window)
