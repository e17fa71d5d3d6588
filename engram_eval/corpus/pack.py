"""Documents into one stream of tokens per split, with their bounds and answers beside it."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from engram_eval.arrays import Floats, Ints
from engram_eval.corpus.document import BOUNDARY, Document
from engram_eval.corpus.tokenizer import token_bytes, vocabulary_size
from engram_eval.errors import UserError

BATCH = 512


class Answers(NamedTuple):
    """The answers of a split, one entry each, in the order of the stream.

    Attributes:
        start: first token (position in the split's stream) that overlaps the answer.
        end: one past the last such token.
        absent_bits: see ``document.Answer``.
        perfect_bits: see ``document.Answer``.
        domain: index into the corpus's domains.
    """

    start: Ints
    end: Ints
    absent_bits: Floats
    perfect_bits: Floats
    domain: Ints


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return how tokens are stored: little-endian, 16 bits where they suffice."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def pack(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    domains: Sequence[str],
    folder: Path,
    split: str,
    end_id: int = BOUNDARY,
) -> Iterator[int]:
    """Write ``<split>.bin``, ``<split>.docs.npy`` and ``<split>.answers.npz``.

    Each document is followed by one end-of-text token, ``end_id``.

    Yields:
        How many documents were packed since the last time, for progress; the files are complete
        once the iterator is exhausted.

    Raises:
        UserError: a document whose text the tokens do not stand for, byte for byte.
    """
    sizes = token_bytes(tokenizer)
    index = {name: position for position, name in enumerate(domains)}
    dtype = token_dtype(vocabulary_size(tokenizer))
    rows: list[tuple[int, int, int, int]] = []
    answers: list[tuple[int, int, float, float, int]] = []
    position = 0
    stream = iter(documents)
    with open(folder / f"{split}.bin", "wb") as out:
        while batch := list(islice(stream, BATCH)):
            encodings = tokenizer.encode_batch([d.text for d in batch], add_special_tokens=False)
            for document, encoding in zip(batch, encodings, strict=True):
                domain = index[document.domain]
                out.write(np.array([*encoding.ids, end_id], dtype).tobytes())
                for first, last, answer in _answer_tokens(document, encoding):
                    answers.append((position + first, position + last, *answer[2:], domain))
                end = position + len(encoding.ids) + 1
                size = len(document.text.encode())
                if sizes[encoding.ids].sum() != size:
                    raise UserError(f"{document.name}: the tokenizer loses a part of this text")
                rows.append((position, end, domain, size))
                position = end
            yield len(batch)
    np.save(folder / f"{split}.docs.npy", np.array(rows, np.int64).reshape(-1, 4))
    np.savez(folder / f"{split}.answers.npz", **_columns(answers)._asdict())


def _answer_tokens(document: Document, encoding: Encoding) -> Iterator[tuple[int, int, Any]]:
    """Yield first token, end token (exclusive) and answer for a document's answers."""
    if not document.answers:
        return
    starts, ends = np.array(encoding.offsets).T
    for answer in document.answers:
        first = int(np.searchsorted(ends, answer.start, side="right"))
        last = int(np.searchsorted(starts, answer.end, side="left"))
        yield first, last, answer


def _columns(answers: Sequence[tuple[int, int, float, float, int]]) -> Answers:
    start, end, absent, perfect, domain = zip(*answers, strict=True) if answers else [()] * 5
    return Answers(
        np.array(start, np.int64),
        np.array(end, np.int64),
        np.array(absent, np.float64),
        np.array(perfect, np.float64),
        np.array(domain, np.int64),
    )
