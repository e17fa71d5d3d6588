"""Retrieval: the training documents in passages, ranked by BM25 (Robertson and Zaragoza 2009)."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engram_eval.errors import UserError
from engram_eval.files import write_jsonl

PASSAGE_WORDS, QUERY_WORDS = 48, 32
# Letters, digits and underscores; everything else separates. No stop words: code has none.
WORD = re.compile(r"\w+")


def bm25_library() -> Any:
    """Import bm25s.

    Raises:
        UserError: it is not installed.
    """
    try:
        import bm25s
    except ImportError as error:
        raise UserError("the rag baseline needs: pip install 'engram-eval[baselines]'") from error
    return bm25s


def cut_passages(text: str, words: int = PASSAGE_WORDS) -> Iterator[str]:
    """Cut a document every so many words; the pieces without blanks at their ends."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    bounds = [0, *ends[words - 1 :: words]]
    if not ends:
        return
    if bounds[-1] != ends[-1]:
        bounds.append(ends[-1])
    for start, end in itertools.pairwise(bounds):
        yield text[start:end].strip()


def terms(text: str) -> list[str]:
    """Return the words of a text as BM25 compares them."""
    return WORD.findall(text.lower())


@dataclass(frozen=True, eq=False)
class Passages:
    """An index of passages.

    Attributes:
        texts: the passages.
        index: of bm25s.
    """

    texts: Sequence[str]
    index: Any

    @classmethod
    def build(cls, documents: Iterable[str], folder: Path) -> "Passages":
        """Cut and index documents, equal passages once; what ``folder`` then holds is a cost.

        Raises:
            UserError: no words in the documents, or bm25s is not installed.
        """
        texts = list(dict.fromkeys(p for text in documents for p in cut_passages(text)))
        split = [terms(text) for text in texts]
        if not any(split):
            raise UserError("the training text holds no words to retrieve by")
        index = bm25_library().BM25()
        index.index(split, show_progress=False)
        folder.mkdir(parents=True, exist_ok=True)
        index.save(str(folder / "bm25"))
        write_jsonl(folder / "passages.jsonl", ({"text": text} for text in texts))
        return cls(texts, index)

    def best(self, query: str, k: int) -> list[str]:
        """Return the k best passages for the last ``QUERY_WORDS`` words of a query, best first.

        Passages without any of its words are none; equally good ones come in the text's order.
        """
        asked = [term for term in terms(query)[-QUERY_WORDS:] if term in self.index.vocab_dict]
        if not asked:
            return []
        scores = self.index.get_scores(asked)
        least = np.partition(scores, -k)[-k] if k < len(scores) else 0.0
        good = np.flatnonzero((scores >= least) & (scores > 0))
        order = good[(-scores[good]).argsort(kind="stable")][:k]
        return [self.texts[place] for place in order]
