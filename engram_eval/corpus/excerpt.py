"""Part of a corpus: as much training text as somebody else has read."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_eval.corpus.ngrams import NGramModel
from engram_eval.corpus.pack import Answers
from engram_eval.corpus.store import Corpus


@dataclass(frozen=True)
class Excerpt(Corpus):
    """A corpus of which some training documents are left out; other splits are whole.

    Attributes:
        kept: numbers of the training documents that are left, ascending.
    """

    kept: NDArray[np.int64]

    def tokens(self, split: str) -> NDArray[np.integer]:  # type: ignore[override]
        """Return a split's token stream, (T,); every document ends with token 0."""
        tokens = super().tokens(split)
        if split != "train":
            return tokens
        return np.concatenate([tokens[start:end] for start, end in self._bounds()])

    def docs(self, split: str) -> NDArray[np.int64]:
        """Return start, end, domain and bytes of a split's documents, see ``Corpus.docs``."""
        docs = super().docs(split)
        if split != "train":
            return docs
        kept = docs[self.kept].copy()
        ends = np.cumsum(kept[:, 1] - kept[:, 0])
        kept[:, 0], kept[:, 1] = np.concatenate([[0], ends[:-1]]), ends
        return kept

    def answers(self, split: str) -> Answers:
        """Return the answers of a split that is whole.

        Raises:
            ValueError: for training text, whose answers have other places now.
        """
        if split == "train":
            raise ValueError("an excerpt does not know the answers of its training text")
        return super().answers(split)

    def ngrams(self) -> NGramModel:
        """Count the n-grams of the training tokens that are left."""
        order = super().ngrams().max_order
        return NGramModel.count(self.tokens("train"), self.vocab_size, order)

    def _bounds(self) -> list[list[int]]:
        bounds: list[list[int]] = super().docs("train")[self.kept, :2].tolist()
        return bounds


def excerpt(corpus: Corpus, tokens: int, seed: int = 0) -> Corpus:
    """Return a corpus with about as many training tokens: whole documents, drawn at random.

    Args:
        corpus: the whole.
        tokens: at least so many, by less than a document more; 0, or as many as there are: all.
        seed: draws the documents.
    """
    docs = corpus.docs("train")
    sizes = docs[:, 1] - docs[:, 0]
    if tokens == 0 or tokens >= sizes.sum():
        return corpus
    order = np.random.default_rng([seed, len(docs)]).permutation(len(docs))
    enough = int(np.searchsorted(np.cumsum(sizes[order]), tokens)) + 1
    fields = {f.name: getattr(corpus, f.name) for f in dataclasses.fields(Corpus)}
    return Excerpt(**fields, kept=np.sort(order[:enough]))
