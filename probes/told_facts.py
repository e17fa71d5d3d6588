"""Sentences about generated people, each up to the value that it tells: what may have been stored.

Every fact in a wording that training told, in the one that it never told (but where another one
says the same from the name on, ``corpus.entities.told_alike``), and, as a control, facts
about people who do not exist: names made of the words of others, with values drawn at random. Each
stands alone after an end of text, so that nothing before it gives the value away.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from engram_eval.arrays import Floats, Ints, Mask
from engram_eval.config import CorpusConfig
from engram_eval.corpus.entities import (
    ATTRIBUTES,
    Person,
    entropy,
    held_out_template,
    make_people,
    render,
    told_alike,
    total_bits,
)
from engram_eval.corpus.lines import Line
from engram_eval.corpus.same_tokenizer import Identity, tokenizer_identity
from engram_eval.corpus.store import Corpus
from probes.names import corpus_config, is_pocket
from probes.sample import Sample

MOST_PEOPLE = 512
"""People who are asked about, spread over the ranks; more would hardly narrow the error."""

TRAINED, HELD_OUT, STRANGERS = "trained", "held_out", "strangers"
TRIES = 20


class Told(NamedTuple):
    """Q sentences, and what all facts of all people come to.

    Attributes:
        tokens: (Q, T), padded on the right with ends of text.
        first: first token of the value, (Q,).
        end: one past its last token, (Q,).
        bits: of the value for who does not know the person, (Q,).
        person: index, (Q,).
        wording: ``trained``, ``held_out`` or ``strangers``, (Q,).
        bucket: how often the person was told of (``Person.bucket``), (Q,).
        facts: of all people, asked about or not.
        facts_bits: what these facts come to.
        tokenizer: by what the one is recognised whose tokens these are; None where it is not known.
    """

    tokens: Ints
    first: Ints
    end: Ints
    bits: Floats
    person: Ints
    wording: tuple[str, ...]
    bucket: tuple[str, ...]
    facts: int
    facts_bits: float
    tokenizer: Identity | None = None

    def where(self, wording: str, bucket: str | None = None) -> Mask:
        """Return which sentences are of a wording, and of people told of so often, (Q,)."""
        chosen = np.array(self.wording, dtype=str) == wording
        return chosen if bucket is None else chosen & (np.array(self.bucket, dtype=str) == bucket)


class _Asked(NamedTuple):
    person: int
    wording: str
    bucket: str
    bits: float
    line: Line


def tell_facts(corpus: Corpus, sample: Sample) -> Told:
    """Write the sentences about the people of the pocket corpus; none for other text.

    Args:
        corpus: whose people, and whose tokenizer.
        sample: its seed draws wordings and strangers.
    """
    config = corpus_config(corpus)
    people = make_people(config.entities, config.seed) if is_pocket(corpus) else ()
    tokenizer = tokenizer_identity(corpus.folder / "tokenizer")
    if not people:
        none = np.zeros(0, dtype=np.int64)
        empty = none.reshape(0, 1), none, none, none.astype(float), none
        return Told(*empty, (), (), 0, 0.0, tokenizer)
    rng = np.random.default_rng(sample.seed)
    places = np.unique(np.linspace(0, len(people) - 1, MOST_PEOPLE).round().astype(int))
    chosen = [people[place] for place in places]
    asked = [*_known(chosen, config, rng), *_unknown(chosen, people, config, rng)]
    facts = len(people) * len(ATTRIBUTES)
    return _encode(asked, corpus, facts, total_bits(people))._replace(tokenizer=tokenizer)


def _known(
    people: Sequence[Person], config: CorpusConfig, rng: np.random.Generator
) -> Iterator[_Asked]:
    for number, person in enumerate(people):
        for index in range(len(ATTRIBUTES)):
            yield _asked(number, person, index, TRAINED, config, rng)
            attribute, count = ATTRIBUTES[index], config.entities.n_paraphrases
            template = held_out_template(person, attribute, count, config.seed)
            # What training told in the same words from the name on is in no other wording.
            if not told_alike(attribute, template, count):
                yield _asked(number, person, index, HELD_OUT, config, rng)


def _unknown(
    people: Sequence[Person],
    everybody: Sequence[Person],
    config: CorpusConfig,
    rng: np.random.Generator,
) -> Iterator[_Asked]:
    """Ask about people who do not exist; none where the words make no other name."""
    names = {person.name for person in everybody}
    words = [person.name.split() for person in people]
    for number in range(len(people)):
        for _ in range(TRIES):
            parts = (words[i][place] for place, i in enumerate(rng.integers(len(words), size=3)))
            name = " ".join(parts)
            if name not in names:
                values = tuple(str(rng.choice(a.values)) for a in ATTRIBUTES)
                stranger = Person(name, 0, 0, values)
                for index in range(len(ATTRIBUTES)):
                    yield _asked(number, stranger, index, STRANGERS, config, rng)
                break


def _asked(
    number: int,
    person: Person,
    index: int,
    wording: str,
    config: CorpusConfig,
    rng: np.random.Generator,
) -> _Asked:
    """Choose the words: the one wording that training leaves out, or any of the others."""
    attribute, count = ATTRIBUTES[index], config.entities.n_paraphrases
    template = held_out_template(person, attribute, count, config.seed)
    if wording != HELD_OUT:
        template = (template + int(rng.integers(1, count))) % count
    line = render(person, index, template)
    return _Asked(number, wording, person.bucket, entropy(attribute), line)


def _encode(asked: Sequence[_Asked], corpus: Corpus, facts: int, facts_bits: float) -> Told:
    texts = [one.line.text[: one.line.answers[0].end] for one in asked]
    encoded = corpus.tokenizer()(texts, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[list[int]] = encoded["input_ids"]
    end = np.array([1 + len(each) for each in ids])
    tokens = np.full((len(ids), int(end.max())), corpus.end_id, dtype=np.int64)
    first = np.zeros_like(end)
    for row, (each, offsets, one) in enumerate(
        zip(ids, encoded["offset_mapping"], asked, strict=True)
    ):
        tokens[row, 1 : end[row]] = each
        # As ``corpus.pack``: from the first token that reaches into the value.
        stops = [stop for _, stop in offsets]
        first[row] = 1 + int(np.searchsorted(stops, one.line.answers[0].start, side="right"))
    return Told(
        tokens,
        first,
        end,
        np.array([one.bits for one in asked]),
        np.array([one.person for one in asked]),
        tuple(one.wording for one in asked),
        tuple(one.bucket for one in asked),
        facts,
        facts_bits,
    )
