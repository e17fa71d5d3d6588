"""A corpus whose training text is another one than was built."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_eval.arrays import Ints
from engram_eval.corpus.ngrams import NGramModel
from engram_eval.corpus.pack import Answers
from engram_eval.corpus.store import NGRAM_ORDERS, Corpus


@dataclass(frozen=True)
class Retold(Corpus):
    """A corpus with another training text; other splits are as they were.

    Attributes:
        train_tokens: (T,).
        train_docs: as ``Corpus.docs`` returns them.
    """

    train_tokens: NDArray[np.integer]
    train_docs: Ints

    def tokens(self, split: str) -> NDArray[np.integer]:  # type: ignore[override]
        """Return a split's token stream, (T,); every document ends with ``end_id``."""
        return self.train_tokens if split == "train" else super().tokens(split)

    def docs(self, split: str) -> Ints:
        """Return start, end, domain and bytes of a split's documents, see ``Corpus.docs``."""
        return self.train_docs if split == "train" else super().docs(split)

    def answers(self, split: str) -> Answers:
        """Return the answers of a split that is as it was.

        Raises:
            ValueError: for training text, whose answers have other places now.
        """
        if split == "train":
            raise ValueError("a changed training text does not know the answers in it")
        return super().answers(split)

    def ngrams(self) -> NGramModel:
        """Count the n-grams of the training tokens that there are now."""
        return NGramModel.count(self.train_tokens, self.vocab_size, NGRAM_ORDERS, self.end_id)


def retell(corpus: Corpus, documents: Sequence[NDArray[np.integer]], facts: ArrayLike) -> Retold:
    """Return a corpus with these training documents instead of its own.

    Args:
        corpus: what there was; nothing is written.
        documents: tokens of each, the end of text included; one at least.
        facts: domain and UTF-8 bytes of each, (documents, 2).
    """
    sizes = np.array([len(document) for document in documents])
    ends = np.cumsum(sizes)
    docs = np.column_stack((ends - sizes, ends, np.asarray(facts, np.int64)))
    fields = {f.name: getattr(corpus, f.name) for f in dataclasses.fields(Corpus)}
    return Retold(**fields, train_tokens=np.concatenate(documents), train_docs=docs)
