"""What training text and generator know about tokens that are read: n-gram counts, ends of names.

A *name* is a person's of the pocket corpus, or the subject of a fact, where it has several words.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engram_eval.config import CorpusConfig, ProbeConfig, from_dict
from engram_eval.corpus.entities import make_people
from engram_eval.corpus.facts import taught_facts
from engram_eval.corpus.store import Corpus
from probes.sample import Ints, Mask, Sample, draw_sample

TEXT_TOKENS = 131_072


class Patterns(NamedTuple):
    """A sample with what is known about the n-gram that ends at each input, each (n,).

    Attributes:
        bigram_count, trigram_count: occurrences in the training text.
        name_end: whether a name of several words has just ended; all False without such names.
    """

    sample: Sample
    bigram_count: Ints
    trigram_count: Ints
    name_end: Mask


class Text(NamedTuple):
    """A long piece of training text: tokens (T,), whose documents end with token 0."""

    tokens: Ints


def draw_patterns(corpus: Corpus, options: ProbeConfig | None = None) -> Patterns:
    """Draw the sample that ``draw_sample`` draws, and look its n-grams and names up."""
    sample = draw_sample(corpus, options)
    model, stream = corpus.ngrams(), np.asarray(corpus.tokens("val")).astype(np.int64)
    places = sample.inputs.position
    two, three = (model.ngram_frequency(stream, order)[places] for order in (2, 3))
    return Patterns(sample, two, three, name_ends(corpus, stream)[places])


def draw_text(corpus: Corpus, options: ProbeConfig | None = None) -> Text:
    """Return the beginning of the training text; its documents are in random order."""
    return Text(np.asarray(corpus.tokens("train")[:TEXT_TOKENS]).astype(np.int64))


def corpus_config(corpus: Corpus) -> CorpusConfig:
    """Return the configuration that a corpus was built from."""
    return from_dict(CorpusConfig, corpus.manifest["config"])


def known_names(config: CorpusConfig) -> list[str]:
    """Return the names of several words that the pocket corpus tells of; none for other text."""
    if config.paths:
        return []
    names = {person.name for person in make_people(config.entities, config.seed)}
    names |= {fact.subject for fact in taught_facts(config)}
    return sorted(name for name in names if " " in name)


def name_ends(corpus: Corpus, stream: Ints) -> Mask:
    """Return which tokens of a stream (T,) end a known name, (T,).

    A token that reaches beyond the name's last letter does not count.
    """
    pieces = token_pieces(corpus)
    sizes = np.array([len(pieces[token]) for token in stream])
    text = b"".join(pieces[token] for token in stream)
    found = find_ends(text, known_names(corpus_config(corpus)))
    return np.isin(np.cumsum(sizes), found) & (sizes > 0)


def token_pieces(corpus: Corpus) -> list[bytes]:
    """Return the bytes that each token id stands for; none for the end of text."""
    tokenizer = corpus.tokenizer()
    spelt = tokenizer.convert_ids_to_tokens(list(range(corpus.vocab_size)))
    letters = _byte_of_letter()
    return [
        b"" if index == 0 else bytes(letters[letter] for letter in token)
        for index, token in enumerate(spelt)
    ]


def find_ends(text: bytes, names: Sequence[str]) -> Ints:
    """Return where in ``text`` names end, in bytes; only where no letter goes on."""
    if not names:
        return np.zeros(0, np.int64)
    longest_first = sorted(names, key=len, reverse=True)
    pattern = b"|".join(re.escape(name.encode()) for name in longest_first)
    matches = re.finditer(rb"\b(?:" + pattern + rb")\b", text)
    return np.array([match.end() for match in matches], dtype=np.int64)


def _byte_of_letter() -> dict[str, int]:
    """Return the byte behind each letter of a byte-level vocabulary (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in shown}
    hidden = [byte for byte in range(256) if byte not in shown]
    return table | {chr(256 + number): byte for number, byte in enumerate(hidden)}
