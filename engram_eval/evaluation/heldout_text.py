"""Held-out text in the tokens of the model that is scored: the corpus's, or its own.

A model with another tokenizer reads the same documents, each behind its own end of text (and the
beginning of text that its tokenizer puts before every text), in windows of as many tokens. Bytes
are those of the text, so that bits per byte can be compared; ends of documents cost bits in either.
What is counted per token, or on the tokens of an answer, cannot be compared and is left out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tokenizers import Tokenizer

from engram_eval.arrays import Floats, Ints
from engram_eval.corpus.given_tokenizer import SAMPLE
from engram_eval.corpus.same_tokenizer import same_tokenizer
from engram_eval.corpus.store import Corpus
from engram_eval.corpus.tokenizer_file import opened
from engram_eval.errors import UserError
from engram_eval.evaluation.heldout import (
    Documents,
    check_finite,
    document_rows,
    per_document,
    scored_tokens,
    span_sums,
)
from engram_eval.records import MetricRow

SPLIT = "val"


class HeldoutText(Protocol):
    """What is scored.

    Attributes:
        corpus: whose documents these are.
        tokens: (T,).
        end_id: the token that precedes the first one.
    """

    @property
    def corpus(self) -> Corpus: ...  # noqa: D102

    @property
    def tokens(self) -> Ints: ...  # noqa: D102

    @property
    def end_id(self) -> int: ...  # noqa: D102

    def documents(self, bits: Floats) -> Documents:
        """Sum the costs of the tokens, (T,), over documents."""

    def rows(self, documents: Documents) -> list[MetricRow]:
        """Turn document sums into metric rows."""


class CorpusText(NamedTuple):
    """Held-out text in the corpus's tokens."""

    corpus: Corpus
    tokens: Ints

    @property
    def end_id(self) -> int:
        """See ``HeldoutText``."""
        return self.corpus.end_id

    def documents(self, bits: Floats) -> Documents:
        """See ``HeldoutText``."""
        return per_document(self.corpus, SPLIT, bits)

    def rows(self, documents: Documents) -> list[MetricRow]:
        """See ``HeldoutText``."""
        return document_rows(documents, self.corpus)


class RereadText(NamedTuple):
    """The same documents in another tokenizer's tokens.

    Attributes:
        corpus: whose documents they are.
        tokens: (T,).
        end_id: its end of text.
        starts, ends: of each document's scored tokens, (D,).
        sizes: bytes of each document's text, (D,).
        domain: index into the corpus's domains, (D,).
    """

    corpus: Corpus
    tokens: Ints
    end_id: int
    starts: Ints
    ends: Ints
    sizes: Ints
    domain: Ints

    def documents(self, bits: Floats) -> Documents:
        """See ``HeldoutText``; no answers are scored."""
        check_finite(bits)
        none = np.zeros(len(self.starts))
        return Documents(
            document=np.arange(len(self.starts)),
            domain=self.domain,
            tokens=(self.ends - self.starts).astype(np.float64),
            bytes=self.sizes.astype(np.float64),
            bits=span_sums(bits, self.starts, self.ends),
            answers=none,
            answer_bits=none,
            absent_bits=none,
            perfect_bits=none,
        )

    def rows(self, documents: Documents) -> list[MetricRow]:
        """See ``HeldoutText``: without what is counted per token."""
        rows = document_rows(documents, self.corpus)
        return [row for row in rows if row.metric == "bits_per_byte"]


def heldout_text(corpus: Corpus, seq_len: int, max_sequences: int, model: Path) -> HeldoutText:
    """Return the held-out text for a model.

    Args:
        corpus: its ``val`` split is scored.
        seq_len: window in tokens.
        max_sequences: most windows of the corpus's tokens, from the beginning; 0 means all. The
            text of these is what every model reads.
        model: folder with a tokenizer.

    Raises:
        UserError: the model's tokenizer loses text, or has no end of text.
    """
    tokens = scored_tokens(corpus, SPLIT, seq_len, max_sequences)
    if same_tokenizer(model, corpus.folder / "tokenizer"):
        return CorpusText(corpus, tokens)
    return reread(corpus, len(tokens), opened(model), model)


def reread(corpus: Corpus, count: int, tokenizer: Any, model: Path) -> RereadText:
    """Read the first ``count`` held-out tokens' text with another tokenizer; see the module."""
    if tokenizer.eos_token_id is None or not tokenizer.is_fast:
        lacks = "end of text" if tokenizer.is_fast else "fast version"
        raise UserError(
            f"{model}: its tokenizer has no {lacks}, so it cannot read held-out text; "
            "--set evaluate.heldout=false"
        )
    texts, whole, docs = _texts(corpus, count)
    # A copy: special tokens that a text spells out are text.
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    plain.encode_special_tokens = True
    _check_nothing_is_lost(plain, model)
    encoded = plain.encode_batch(texts, add_special_tokens=False)
    end, first = int(tokenizer.eos_token_id), _put_before(tokenizer)
    pieces = [
        [*first, *one.ids, *([end] if complete else [])]
        for one, complete in zip(encoded, whole, strict=True)
    ]
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = ends - [len(piece) - len(first) for piece in pieces]
    sizes = np.array([len(text.encode()) for text in texts])
    tokens = np.concatenate([np.array(piece, np.int64) for piece in pieces])
    return RereadText(corpus, tokens, end, starts, ends, sizes, docs[:, 2])


def _texts(corpus: Corpus, count: int) -> tuple[list[str], list[bool], Ints]:
    """Return the texts of the first tokens, which of them are whole documents, and their rows."""
    docs, stream = corpus.docs(SPLIT), corpus.tokens(SPLIT)
    docs = docs[docs[:, 0] < count]
    whole = (docs[:, 1] <= count).tolist()
    parts = [
        stream[start : end - 1 if complete else count].tolist()
        for (start, end, *_), complete in zip(docs, whole, strict=True)
    ]
    texts = corpus.tokenizer().batch_decode(parts)
    # A window may end within a character.
    return [text.rstrip("\ufffd") for text in texts], whole, docs


def _put_before(tokenizer: Any) -> Sequence[int]:
    """Return the beginning of text that a tokenizer puts before every text, if it does."""
    begun: list[int] = tokenizer("a")["input_ids"]
    begins = tokenizer.bos_token_id is not None and begun[:1] == [tokenizer.bos_token_id]
    return begun[:1] if begins else []


def _check_nothing_is_lost(tokenizer: Tokenizer, model: Path) -> None:
    ids = tokenizer.encode(SAMPLE, add_special_tokens=False).ids
    if tokenizer.decode(ids, skip_special_tokens=False) != SAMPLE:
        raise UserError(
            f"{model}: its tokenizer does not give back the text that it reads, so bits per byte "
            "cannot be compared; --set evaluate.heldout=false"
        )
