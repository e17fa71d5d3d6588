"""The text that memories are built from, in the tokens of whoever uses them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from engram_eval.arrays import Ints
from engram_eval.corpus.document import BOUNDARY
from engram_eval.corpus.store import Corpus
from engram_eval.errors import UserError
from engram_eval.progress import Reporter

BATCH = 512


class Vocabulary(NamedTuple):
    """How tokens are numbered.

    Attributes:
        size: V; the logits of the model.
        end: the tokenizer's end of text.
    """

    size: int
    end: int

    def inner(self, tokens: Ints) -> Ints:
        """Exchange the end of text and 0, which is what counting takes for it; its own inverse."""
        if self.end == BOUNDARY:
            return np.asarray(tokens, np.int64)
        swapped = np.array(tokens, np.int64)
        swapped[tokens == self.end], swapped[tokens == BOUNDARY] = BOUNDARY, self.end
        return swapped


@dataclass(frozen=True)
class TrainingText:
    """A corpus in the tokens of a tokenizer.

    Attributes:
        train, val: streams as ``vocabulary`` numbers them, each document ended by 0, (T,).
        vocabulary: of the tokens.
        tokenizer: makes them.
        corpus: where the text comes from.
        own: whether these are the corpus's own tokens.
    """

    train: Ints
    val: Ints
    vocabulary: Vocabulary
    tokenizer: Any
    corpus: Corpus
    own: bool


def own_text(corpus: Corpus) -> TrainingText:
    """Return a corpus in its own tokens."""
    vocabulary = Vocabulary(corpus.vocab_size, corpus.end_id)
    train, val = (vocabulary.inner(np.asarray(corpus.tokens(s))) for s in ("train", "val"))
    return TrainingText(train, val, vocabulary, corpus.tokenizer(), corpus, True)


def text_for(corpus: Corpus, tokenizer: Any, vocab_size: int, report: Reporter) -> TrainingText:
    """Return a corpus in the tokens of a model's tokenizer, its own if they are the same.

    Args:
        corpus: the text.
        tokenizer: of the model.
        vocab_size: numbers of the model's logits, which may be more than the tokenizer has.
        report: where progress goes.

    Raises:
        UserError: the tokenizer has no end of text.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("memories beside a model need a tokenizer with an end of text")
    vocabulary = Vocabulary(vocab_size, tokenizer.eos_token_id)
    own = corpus.tokenizer()
    same = own.get_vocab() == tokenizer.get_vocab() and (
        own.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    )
    if same:
        found = own_text(corpus)
        return TrainingText(found.train, found.val, vocabulary, tokenizer, corpus, True)
    train, val = (
        _encode(corpus, split, tokenizer, vocabulary, report) for split in ("train", "val")
    )
    return TrainingText(train, val, vocabulary, tokenizer, corpus, False)


def documents(corpus: Corpus, split: str) -> Iterator[str]:
    """Yield the texts of a split's documents."""
    tokenizer, tokens = corpus.tokenizer(), corpus.tokens(split)
    bounds = corpus.docs(split)[:, :2].tolist()
    for first in range(0, len(bounds), BATCH):
        part = bounds[first : first + BATCH]
        yield from tokenizer.batch_decode([tokens[start : end - 1] for start, end in part])


def _encode(
    corpus: Corpus, split: str, tokenizer: Any, vocabulary: Vocabulary, report: Reporter
) -> Ints:
    texts = list(documents(corpus, split))
    pieces: list[Ints] = []
    with report.task(f"tokens of the {split} text", len(texts)) as task:
        for first in range(0, len(texts), BATCH):
            batch = texts[first : first + BATCH]
            for ids in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
                # Text that spells out the end of text must not end a document.
                kept = [token for token in ids if token != vocabulary.end]
                pieces.append(np.array([*kept, vocabulary.end], np.int64))
            task.advance(len(batch))
    return vocabulary.inner(np.concatenate(pieces))
