"""Where names stand in the validation text: known exactly, because the generator wrote them.

Names of generated people, and the subjects of the facts (``Burkina Faso``), as far as they span
several tokens. A user's own text has no known names.
"""

import re
from collections.abc import Iterable

import numpy as np

from engram_eval.arrays import Ints, Mask
from engram_eval.config import CorpusConfig
from engram_eval.config_json import from_dict
from engram_eval.corpus.entities import make_people
from engram_eval.corpus.facts import taught_facts
from engram_eval.corpus.store import Corpus


def corpus_config(corpus: Corpus) -> CorpusConfig:
    """Return the configuration that a corpus was built from."""
    return from_dict(CorpusConfig, corpus.manifest["config"])


def is_pocket(corpus: Corpus) -> bool:
    """Tell whether the text is the pocket corpus, of which the generator knows everything."""
    return not corpus_config(corpus).paths


def known_names(corpus: Corpus) -> dict[str, tuple[str, ...]]:
    """Return the names that stand in each domain; none for a user's own text."""
    if not is_pocket(corpus):
        return {}
    config = corpus_config(corpus)
    people = tuple(person.name for person in make_people(config.entities, config.seed))
    subjects = tuple(sorted({fact.subject for fact in taught_facts(config)}))
    names = {"entities": people, "facts": subjects}
    return {domain: found for domain, found in names.items() if found and domain in corpus.domains}


def name_ends(corpus: Corpus) -> Mask:
    """Return which tokens of the validation stream are the last of a name, (T,)."""
    found = np.zeros(len(corpus.tokens("val")), dtype=bool)
    found[name_spans(corpus)[:, 1]] = True
    return found


def name_spans(corpus: Corpus) -> Ints:
    """Return the first and the last token of each name in the validation stream, (S, 2)."""
    stream, docs, tokenizer = corpus.tokens("val"), corpus.docs("val"), corpus.tokenizer()
    found = [np.empty((0, 2), dtype=np.int64)]
    for domain, names in known_names(corpus).items():
        pattern = _pattern(names)
        for start, end, *_ in docs[docs[:, 2] == corpus.domains.index(domain)]:
            tokens = np.asarray(stream[start : end - 1]).astype(np.int64)
            text = tokenizer.decode(tokens.tolist())
            spans = [match.span() for match in pattern.finditer(text)]
            found.append(start + token_spans(text, spans, corpus.token_bytes[tokens]))
    return np.concatenate(found)


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Match any name as a whole; of two that begin alike, the longer one."""
    ranked = sorted(names, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, ranked))})\b")


def token_spans(text: str, spans: Iterable[tuple[int, int]], sizes: Ints) -> Ints:
    """Return first and last token of each span of characters that covers two or more, (S, 2).

    Args:
        text: what the tokens spell.
        spans: first character, and one past the last.
        sizes: bytes of each token, (T,).
    """
    ends = np.cumsum(sizes)
    places = []
    for start, end in spans:
        first_byte, last_byte = len(text[:start].encode()), len(text[:end].encode()) - 1
        first, last = np.searchsorted(ends, [first_byte, last_byte], side="right")
        if first < last:
            places.append((int(first), int(last)))
    return np.array(places, dtype=np.int64).reshape(-1, 2)
