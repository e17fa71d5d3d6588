"""A corpus whose training text was changed after it was built: sentences gone, passages new."""

import dataclasses
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_eval.corpus.ngrams import BOUNDARY, NGramModel
from engram_eval.corpus.pack import Answers
from engram_eval.corpus.store import NGRAM_ORDERS, Corpus

SENTENCE_END = re.compile(r"(?<=\.) ")


@dataclass(frozen=True)
class Revised(Corpus):
    """A corpus with another training text; other splits are as they were.

    Attributes:
        train_tokens: (T,).
        train_docs: as ``Corpus.docs`` returns them.
    """

    train_tokens: NDArray[np.int64]
    train_docs: NDArray[np.int64]

    def tokens(self, split: str) -> NDArray[np.integer]:  # type: ignore[override]
        """Return a split's token stream, (T,); every document ends with token 0."""
        return self.train_tokens if split == "train" else super().tokens(split)

    def docs(self, split: str) -> NDArray[np.int64]:
        """Return start, end, domain and bytes of a split's documents, see ``Corpus.docs``."""
        return self.train_docs if split == "train" else super().docs(split)

    def answers(self, split: str) -> Answers:
        """Return the answers of a split that is as it was.

        Raises:
            ValueError: for training text, whose answers have other places now.
        """
        if split == "train":
            raise ValueError("a revised corpus does not know the answers of its training text")
        return super().answers(split)

    def ngrams(self) -> NGramModel:
        """Count the n-grams of the training tokens that there are now."""
        return NGramModel.count(self.train_tokens, self.vocab_size, NGRAM_ORDERS)


def revise(
    corpus: Corpus, domain: str, added: Sequence[str], removed: Collection[str] = ()
) -> Revised:
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
    ends = np.cumsum([len(parts[place]) for place in left])
    table = np.array(
        [
            (end - len(parts[place]), end, *facts[place])
            for place, end in zip(left, ends.tolist(), strict=True)
        ],
        np.int64,
    )
    fields = {f.name: getattr(corpus, f.name) for f in dataclasses.fields(Corpus)}
    tokens = np.concatenate([parts[place] for place in left])
    return Revised(**fields, train_tokens=tokens, train_docs=table)


def _remove(
    corpus: Corpus,
    parts: list[NDArray[np.int64]],
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


def _encode(corpus: Corpus, texts: Sequence[str]) -> list[NDArray[np.int64]]:
    """Return the tokens of documents, each with the end of text behind it."""
    if not texts:
        return []
    encoded = corpus.tokenizer()(list(texts), add_special_tokens=False)["input_ids"]
    return [np.array([*ids, BOUNDARY], np.int64) for ids in encoded]
