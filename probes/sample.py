"""Which validation tokens the probes look at, and what is known about each of them.

A window holds T + 1 tokens of the packed validation stream: T inputs, and T targets one place
further. "Static" is measured on text alone, by an n-gram model of the training text:

- ``static_in`` of an input x_t: how predictable x_t was from its predecessors, hence how firmly
  the pattern that has just ended is known;
- ``static_out`` of the same place: how predictable the *next* token is.

Predecessors are two (order 3, what a memory of 2- and 3-grams reads), or, in the slices that end
with ``_longest``, as many as the training text has together (``corpus.longest_match``). Both are
cut into thirds at equal unigram frequency (``matching``): ``high`` is the most static third, with
the lowest surprisal, ``low`` the least static one. ``name_end`` are the last tokens of names that
the corpus's generator knows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_eval.arrays import Floats, Ints, Mask
from engram_eval.config import ProbeConfig
from engram_eval.corpus.longest_match import longest_match
from engram_eval.corpus.same_tokenizer import Identity, tokenizer_identity
from engram_eval.corpus.store import Corpus
from engram_eval.errors import UserError
from probes.exercises import Exercise
from probes.generated_exercises import generated_exercises
from probes.matching import matched_thirds
from probes.names import name_ends
from probes.ngram_exercise import ngram_exercise
from probes.token_tasks import code_exercises

STATIC_ORDER = 3


class Labels(NamedTuple):
    """What is known about n tokens, each of shape (n,).

    Attributes:
        token: ids.
        position: index in the validation stream.
        document, domain: indices.
        surprisal_bits: at order 3, by the n-gram model of the training text.
        longest_bits: after the longest history that the training text contains.
        unigram_bits: at order 1: what knowing nothing but frequencies costs.
        name_end: whether a name of several tokens ends here.
    """

    token: Ints
    position: Ints
    document: Ints
    domain: Ints
    surprisal_bits: Floats
    longest_bits: Floats
    unigram_bits: Floats
    name_end: Mask


class Slice(NamedTuple):
    """A part of the tokens: its labels in a metric row, and which tokens belong to it."""

    labels: Mapping[str, str]
    mask: Mask


@dataclass(frozen=True)
class Sample:
    """Windows of validation text; every array but ``texts`` has shape (N, T + 1).

    Attributes:
        domains: names of the domains by index.
        texts: what each token id spells; shape (V,).
        exercises: what linear probes are asked, beside what the windows alone give.
        seed: drew the windows; draws splits and control tasks.
        end_id: the token that ends documents.
        tokenizer: by what the one is recognised whose tokens these are; None where it is not known.
    """

    token: Ints
    position: Ints
    document: Ints
    domain: Ints
    surprisal_bits: Floats
    longest_bits: Floats
    unigram_bits: Floats
    name_end: Mask
    domains: tuple[str, ...]
    texts: tuple[str, ...]
    seed: int
    exercises: tuple[Exercise, ...] = ()
    end_id: int = 0
    tokenizer: Identity | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, T): windows and inputs per window."""
        return self.token.shape[0], self.token.shape[1] - 1

    def windows(self, chosen: Mask) -> "Sample":
        """Return a sample of some windows, ``chosen`` (N,)."""
        parts = {name: getattr(self, name)[chosen] for name in Labels._fields}
        return replace(self, **parts)

    def first(self, tokens: int) -> "Sample":
        """Return the first windows, about so many tokens and at least one window."""
        return self.windows(np.arange(len(self.token)) < max(1, tokens // self.shape[1]))

    @property
    def inputs(self) -> Labels:
        """Labels of the tokens that are read, flat: (N * T,)."""
        return self._labels(slice(None, -1))

    @property
    def targets(self) -> Labels:
        """Labels of the tokens that are predicted, flat: (N * T,)."""
        return self._labels(slice(1, None))

    def _labels(self, part: slice) -> Labels:
        return Labels(*(getattr(self, name)[:, part].reshape(-1) for name in Labels._fields))

    def index(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the arrays that tell which target a column of an artifact is about, (n,)."""
        targets = self.targets
        names = ("document", "domain", "position", "token")
        return {name: getattr(targets, name) for name in names}

    def slices(self, side: str, domains: bool = True) -> list[Slice]:
        """Return all tokens, each domain, static and not static at equal frequency, name ends.

        Args:
            side: ``static_out`` labels places by the token that is predicted, ``static_in`` by
                the one that is read.
            domains: whether to include the domains.
        """
        labels = self.targets if side == "static_out" else self.inputs
        found = [Slice({}, np.ones(labels.token.size, dtype=bool))]
        for index, name in enumerate(self.domains if domains else ()):
            found.append(Slice({"domain": name}, labels.domain == index))
        measures = {side: labels.surprisal_bits, f"{side}_longest": labels.longest_bits}
        for label, bits in measures.items():
            thirds = matched_thirds(bits, labels.unigram_bits)
            found += [Slice({label: "high"}, thirds.high), Slice({label: "low"}, thirds.low)]
        found.append(Slice({side: "name_end"}, labels.name_end))
        return [part for part in found if part.mask.any()]


def draw_sample(corpus: Corpus, options: ProbeConfig | None = None) -> Sample:
    """Choose whole windows of the validation text at random, without overlap.

    Args:
        corpus: a built corpus.
        options: number of tokens, window length and seed; all of the text where it is shorter.

    Raises:
        UserError: the validation text is shorter than two tokens.
    """
    options = options or ProbeConfig()
    stream = corpus.tokens("val")
    length = min(options.seq_len, len(stream) - 1)
    if length < 1:
        raise UserError(f"{corpus.folder}: {len(stream)} validation tokens, at least 2 are needed")
    starts = np.arange(0, len(stream) - length, length)
    count = min(len(starts), max(1, options.tokens // length))
    rng = np.random.default_rng(options.seed)
    chosen = np.sort(rng.choice(starts, size=count, replace=False))
    return _read(corpus, chosen, length, options.seed)


def _read(corpus: Corpus, starts: Ints, length: int, seed: int) -> Sample:
    stream, docs, model = np.asarray(corpus.tokens("val")), corpus.docs("val"), corpus.ngrams()
    position = starts[:, None] + np.arange(length + 1)
    document = np.searchsorted(docs[:, 0], position, side="right") - 1
    longest = longest_match(model, corpus.tokens("train"), stream)
    rng = np.random.default_rng(seed)
    exercises = [
        *code_exercises(corpus, position, document, rng),
        *generated_exercises(corpus, rng),
        *filter(None, [ngram_exercise(corpus, rng)]),
    ]
    return Sample(
        token=stream[position].astype(np.int64),
        position=position,
        document=document,
        domain=docs[document, 2],
        surprisal_bits=model.surprisal_bits(stream, STATIC_ORDER)[position],
        longest_bits=longest.surprisal_bits[position],
        unigram_bits=model.surprisal_bits(stream, 1)[position],
        name_end=name_ends(corpus)[position],
        domains=tuple(corpus.domains),
        texts=token_texts(corpus),
        seed=seed,
        exercises=tuple(exercises),
        end_id=corpus.end_id,
        tokenizer=tokenizer_identity(corpus.folder / "tokenizer"),
    )


def token_texts(corpus: Corpus) -> tuple[str, ...]:
    """Return what each token id spells; an incomplete UTF-8 sequence gives U+FFFD."""
    return spelt(corpus.tokenizer())


def spelt(tokenizer: Any) -> tuple[str, ...]:
    """Return what each token id of a tokenizer of transformers spells, (V,)."""
    return tuple(tokenizer.batch_decode([[token] for token in range(len(tokenizer))]))
