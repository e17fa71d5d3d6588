"""Held-out loss: what each validation token costs, per domain and on the answers alone.

Windows are packed as in training: the stream is cut every ``seq_len`` tokens, documents may
share a window, and the first token is predicted from an end of text before it. Every token is
scored once. The end of a document costs bits but stands for no bytes.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from engram_eval.analysis.stats import ratio
from engram_eval.arrays import Floats, Ints
from engram_eval.corpus.store import Corpus
from engram_eval.errors import UserError
from engram_eval.records import MetricRow
from engram_eval.tensor_cores import tensor_cores

LN2 = math.log(2)


class Documents(NamedTuple):
    """Sums over the scored tokens of each document, one entry per document.

    Attributes:
        document: its place in the split's stream.
        domain: index into the corpus's domains.
        tokens, bytes, bits: of the part that was scored.
        answers, answer_bits: the answers that lie in it, and what their tokens cost.
        absent_bits, perfect_bits: analytic entropies of these answers.
    """

    document: Ints
    domain: Ints
    tokens: Floats
    bytes: Floats
    bits: Floats
    answers: Floats
    answer_bits: Floats
    absent_bits: Floats
    perfect_bits: Floats


def scored_tokens(corpus: Corpus, split: str, seq_len: int, max_sequences: int) -> Ints:
    """Return the tokens that are scored, (T,): the stream, or its first ``max_sequences``."""
    stream = corpus.tokens(split)
    end = min(len(stream), seq_len * max_sequences) if max_sequences else len(stream)
    return np.asarray(stream[:end], dtype=np.int64)


@torch.inference_mode()
def token_bits(
    model: nn.Module,
    tokens: Ints,
    seq_len: int,
    batch_size: int,
    device: torch.device | str = "cpu",
    end: int = 0,
) -> Floats:
    """Return what each token costs a causal language model, in bits, (T,).

    A GPU multiplies by its tensor cores.

    Args:
        model: takes ids (B, T) and returns an object with ``logits`` (B, T, V).
        tokens: (T,).
        seq_len: window; no context reaches over its border.
        batch_size: windows per forward pass.
        device: where the model is.
        end: the end of text, which also precedes the first token.
    """
    training = model.training
    model.eval()
    windows = -(-len(tokens) // seq_len)
    padded = np.full(windows * seq_len + 1, end, np.int64)
    padded[1 : len(tokens) + 1] = tokens
    inputs = torch.from_numpy(padded[:-1].reshape(windows, seq_len))
    targets = torch.from_numpy(padded[1:].reshape(windows, seq_len))
    with tensor_cores(device):
        costs = [
            _window_nats(model, x.to(device), y.to(device))
            for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
        ]
    model.train(training)
    return torch.cat(costs).double().numpy().ravel()[: len(tokens)] / LN2


def _window_nats(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return -ln p of each target, (B, T), on the CPU."""
    logits = model(input_ids=inputs).logits.float()
    picked = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return (logits.logsumexp(-1) - picked).cpu()


def per_document(corpus: Corpus, split: str, bits: Floats) -> Documents:
    """Sum token costs over documents.

    Args:
        corpus: where the tokens come from.
        split: which of its streams.
        bits: cost of the stream's first T tokens, (T,).

    Raises:
        UserError: a cost that is not finite.
    """
    check_finite(bits)
    total = len(bits)
    docs = corpus.docs(split)
    docs = docs[docs[:, 0] < total]
    starts, ends = docs[:, 0], np.minimum(docs[:, 1], total)
    sizes = corpus.token_bytes[np.asarray(corpus.tokens(split)[:total])]
    answers = corpus.answers(split)
    inside = np.flatnonzero(answers.end <= total)
    owner = np.searchsorted(starts, answers.start[inside], side="right") - 1
    costs = span_sums(bits, answers.start[inside], answers.end[inside])

    def count(weights: npt.NDArray[Any] | None = None) -> Floats:
        return np.bincount(owner, weights, minlength=len(docs)).astype(np.float64)

    return Documents(
        document=np.arange(len(docs)),
        domain=docs[:, 2],
        tokens=(ends - starts).astype(np.float64),
        bytes=span_sums(sizes.astype(np.float64), starts, ends),
        bits=span_sums(bits, starts, ends),
        answers=count(),
        answer_bits=count(costs),
        absent_bits=count(answers.absent_bits[inside]),
        perfect_bits=count(answers.perfect_bits[inside]),
    )


def check_finite(bits: Floats) -> None:
    """Refuse costs that are not finite."""
    total, lost = len(bits), np.count_nonzero(~np.isfinite(bits))
    if lost:
        raise UserError(f"held-out text: the loss of {lost} of {total} tokens is not finite")


def span_sums(values: Floats, starts: Ints, ends: Ints) -> Floats:
    """Return the sum of ``values[start:end]`` for each span."""
    running = np.concatenate([[0.0], np.cumsum(values)])
    return running[ends] - running[starts]


def heldout_rows(
    model: nn.Module,
    corpus: Corpus,
    seq_len: int,
    max_sequences: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> list[MetricRow]:
    """Score a causal language model on the validation text.

    Args:
        model: takes ids (B, T) and returns an object with ``logits`` (B, T, V).
        corpus: its ``val`` split is scored.
        seq_len: window in tokens.
        max_sequences: most windows, from the beginning; 0 means all.
        batch_size: windows per forward pass.
        device: where the model is.

    Raises:
        UserError: a loss that is not finite.
    """
    tokens = scored_tokens(corpus, "val", seq_len, max_sequences)
    bits = token_bits(model, tokens, seq_len, batch_size, device, corpus.end_id)
    return document_rows(per_document(corpus, "val", bits), corpus)


def document_rows(documents: Documents, corpus: Corpus) -> list[MetricRow]:
    """Turn document sums into rows: over all text (no label), then per domain.

    ``bits_per_byte`` and ``loss_nats`` (per token); where there are answers, ``bits_per_answer``
    beside ``entropy_absent_bits`` (its baseline) and ``entropy_perfect_bits``. Standard errors
    take documents as the independent units; ``n`` counts these, or the answers.
    """
    rows = _rows(documents, {})
    for index in np.unique(documents.domain):
        chosen = documents.domain == index
        part = Documents(*(array[chosen] for array in documents))
        rows += _rows(part, {"domain": corpus.domains[index]})
    return rows


def _rows(part: Documents, labels: Mapping[str, str]) -> list[MetricRow]:
    common: dict[str, Any] = {"split": "val", "slice": dict(labels)}
    rows, size = [], len(part.bits)
    if part.bytes.sum():
        value, stderr = ratio(part.bits, part.bytes)
        rows.append(MetricRow("heldout", "bits_per_byte", value, stderr=stderr, n=size, **common))
    value, stderr = ratio(part.bits * LN2, part.tokens)
    rows.append(MetricRow("heldout", "loss_nats", value, stderr=stderr, n=size, **common))
    return rows + (_answer_rows(part, common) if part.answers.any() else [])


def _answer_rows(part: Documents, common: Mapping[str, Any]) -> list[MetricRow]:
    n = int(part.answers.sum())
    absent, perfect = part.absent_bits.sum() / n, part.perfect_bits.sum() / n
    cost = ratio(part.answer_bits, part.answers)
    return [
        MetricRow(
            "heldout",
            "bits_per_answer",
            cost.value,
            stderr=cost.stderr,
            baseline=float(absent),
            n=n,
            **common,
        ),
        MetricRow("heldout", "entropy_absent_bits", float(absent), n=n, **common),
        MetricRow("heldout", "entropy_perfect_bits", float(perfect), n=n, **common),
    ]
