"""Texts of one's own as a sample, for every probe that takes one, without a study.

In three lines::

    adapter = open_model("runs/quick/models/engram/seed0")
    sample = sample_of(["The capital of France is Paris."], adapter.tokenizer)
    rows = logit_lens(adapter, sample).rows
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engram_eval.adapters.tokens import open_tokenizer
from engram_eval.arrays import Floats, Ints
from engram_eval.corpus.longest_match import longest_match
from engram_eval.corpus.ngrams import NGramModel
from engram_eval.corpus.same_tokenizer import opened_identity, tokenizer_identity
from engram_eval.corpus.store import NGRAM_ORDERS
from engram_eval.corpus.texts import Texts, records
from engram_eval.errors import UserError
from probes.sample import STATIC_ORDER, Sample, spelt


class Stream(NamedTuple):
    """Texts one after another, as (n,) tokens; document and domain of each, and all domains."""

    token: Ints
    document: Ints
    domain: Ints
    domains: tuple[str, ...]


def sample_of(
    texts: Texts,
    tokenizer: Any,
    train: Iterable[str] | None = None,
    seq_len: int = 256,
    seed: int = 0,
) -> Sample:
    """Cut texts into windows for the probes.

    They follow one upon another in windows of equal length, as documents do in training: what the
    tokenizer puts around a text, and an end of text behind it. At the end fewer tokens are left
    out than there are windows.

    Args:
        texts: documents; in a mapping, by domain.
        tokenizer: one of transformers, or the folder of one: the model's (``adapter.tokenizer``).
        train: what the model has been trained on, or text like it, by which predictable tokens
            are told from others. None: those slices are absent, as is what is measured against
            unigram frequencies (``retained``).
        seq_len: most inputs of a window; no more than the model takes.
        seed: draws splits and control tasks.

    Raises:
        UserError: no texts, a tokenizer without an end of text, or an impossible window.
    """
    named = isinstance(tokenizer, str | Path)
    opened = open_tokenizer(str(tokenizer)) if named else tokenizer
    end = opened.eos_token_id
    if end is None or seq_len < 1:
        wrong = f"seq_len {seq_len}: must be positive" if end is not None else "no end of text"
        raise UserError(f"sample_of: {wrong}")
    stream = _stream(texts, opened, end)
    if len(stream.token) < 2:
        raise UserError("sample_of: the texts have less than two tokens")
    count = math.ceil((len(stream.token) - 1) / seq_len)
    length = (len(stream.token) - 1) // count
    place = np.arange(count)[:, None] * length + np.arange(length + 1)
    bits = _bits(stream.token, train, opened, end)
    here = named and Path(tokenizer).is_dir()
    return Sample(
        token=stream.token[place],
        position=place,
        document=stream.document[place],
        domain=stream.domain[place],
        surprisal_bits=bits[0][place],
        longest_bits=bits[1][place],
        unigram_bits=bits[2][place],
        name_end=np.zeros(place.shape, dtype=bool),
        domains=stream.domains,
        texts=spelt(opened),
        seed=seed,
        end_id=end,
        tokenizer=tokenizer_identity(Path(tokenizer)) if here else opened_identity(opened),
    )


def _stream(texts: Texts, tokenizer: Any, end: int) -> Stream:
    found = list(records("texts", texts))
    domains = tuple(dict.fromkeys(one["domain"] for one in found))
    documents = _encoded([one["text"] for one in found], tokenizer, end)
    sizes = [len(ids) for ids in documents]
    domain = np.array([domains.index(one["domain"]) for one in found])
    return Stream(
        np.concatenate(documents),
        np.repeat(np.arange(len(found)), sizes),
        np.repeat(domain, sizes),
        domains,
    )


def _encoded(texts: list[str], tokenizer: Any, end: int) -> list[Ints]:
    """Return the ids of each text, its end included; the first also begins behind an end."""
    documents: list[list[int]] = [list(ids) for ids in tokenizer(texts)["input_ids"]]
    documents = [ids if ids[-1:] == [end] else [*ids, end] for ids in documents]
    begin = tokenizer.bos_token_id
    if begin is None or documents[0][0] != begin:
        documents[0].insert(0, end)
    return [np.array(ids, dtype=np.int64) for ids in documents]


def _bits(
    stream: Ints, train: Iterable[str] | None, tokenizer: Any, end: int
) -> tuple[Floats, Floats, Floats]:
    """Return what each token costs at order 3, after the longest match, and at order 1, (n,).

    Nothing where nothing is known of the training: then no two tokens differ.
    """
    if train is None:
        none = np.zeros(len(stream))
        return none, none, none
    given = [one["text"] for one in records("train", train)]
    seen = np.concatenate(_encoded(given, tokenizer, end))
    # Some tokenizers leave ids out.
    size = max(len(tokenizer), int(seen.max()) + 1, int(stream.max()) + 1)
    model = NGramModel.count(seen, size, NGRAM_ORDERS, end)
    matched = longest_match(model, seen, stream).surprisal_bits
    return model.surprisal_bits(stream, STATIC_ORDER), matched, model.surprisal_bits(stream, 1)
