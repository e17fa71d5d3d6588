"""Training text that is changed after it was built: sentences gone, passages new."""

import re
from collections.abc import Collection, Sequence

import numpy as np

from engram_eval.arrays import Ints
from engram_eval.corpus.retold import Retold, retell
from engram_eval.corpus.store import Corpus

SENTENCE_END = re.compile(r"(?<=\.) ")


def revise(
    corpus: Corpus, domain: str, added: Sequence[str], removed: Collection[str] = ()
) -> Retold:
    """Return a corpus whose training text tells something else in one domain.

    Args:
        corpus: what there was; nothing is written.
        domain: whose documents are changed; sentences end with a full stop there.
        added: documents, which come last.
        removed: sentences that are taken out of documents; one of nothing else goes as a whole.
    """
    number = corpus.domains.index(domain)
    stream = np.asarray(corpus.tokens("train"), np.int64)
    docs = corpus.docs("train")
    parts = [stream[start:end] for start, end, *_ in docs]
    facts = [(int(kind), int(size)) for _, _, kind, size in docs]
    if removed:
        _remove(corpus, parts, facts, number, removed)
    for text, tokens in zip(added, _encode(corpus, added), strict=True):
        parts.append(tokens)
        facts.append((number, len(text.encode())))
    left = [place for place, part in enumerate(parts) if len(part)]
    return retell(corpus, [parts[place] for place in left], [facts[place] for place in left])


def _remove(
    corpus: Corpus,
    parts: list[Ints],
    facts: list[tuple[int, int]],
    number: int,
    removed: Collection[str],
) -> None:
    """Take sentences out of the documents of a domain; what becomes empty has no tokens."""
    places = [place for place, (kind, _) in enumerate(facts) if kind == number]
    texts = corpus.tokenizer().batch_decode([parts[place][:-1] for place in places])
    changed: dict[int, str] = {}
    for place, text in zip(places, texts, strict=True):
        sentences = SENTENCE_END.split(text)
        kept = [sentence for sentence in sentences if sentence not in removed]
        if len(kept) < len(sentences):
            changed[place] = " ".join(kept)
    for (place, text), tokens in zip(
        changed.items(), _encode(corpus, list(changed.values())), strict=True
    ):
        parts[place] = tokens if text else tokens[:0]
        facts[place] = (number, len(text.encode()))


def _encode(corpus: Corpus, texts: Sequence[str]) -> list[Ints]:
    """Return the tokens of documents, each with the end of text behind it."""
    if not texts:
        return []
    encoded = corpus.tokenizer()(list(texts), add_special_tokens=False)["input_ids"]
    return [np.array([*ids, corpus.end_id], np.int64) for ids in encoded]
