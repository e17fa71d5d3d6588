"""The evaluation stage where held-out text is all that is scored: it needs no lm-eval."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engram_eval.allocator import keep_freed_memory
from engram_eval.api import load_model
from engram_eval.config import EvalConfig
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.environment import compute_device
from engram_eval.evaluation.heldout import (
    Documents,
    document_rows,
    per_document,
    scored_tokens,
    token_bits,
)
from engram_eval.evaluation.settings import check_settings
from engram_eval.parallel.launched import launched
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow, write_jsonl
from engram_eval.stages import resolve

Floats = npt.NDArray[np.float64]
WITH_TASKS = "engram_eval.evaluation.stage:evaluate"


def evaluate(
    inputs: Mapping[str, Path],
    config: EvalConfig,
    seed: int | None,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Score a trained model: held-out text here, tasks by ``stage.evaluate``.

    See ``stage.evaluate`` for arguments and errors.
    """
    if config.tasks or launched():
        rows: list[MetricRow] = resolve(WITH_TASKS)(inputs, config, seed, out, report)
        return rows
    check_settings(config)
    if not config.heldout:
        return []
    keep_freed_memory()
    model = load_model(inputs["train"] / "model").to(compute_device())
    corpus = load_corpus(inputs["corpus"])

    def cost(tokens: npt.NDArray[np.int64]) -> Floats:
        batch = windows(config)
        return token_bits(model, tokens, config.seq_len, batch, model.device, corpus.end_id)

    return heldout(cost, corpus, config, out, report)


def windows(config: EvalConfig) -> int:
    """Return windows per pass: as many tokens as a batch of requests of moderate length has."""
    return max(1, config.batch_size // 4)


def heldout(
    cost: Callable[[npt.NDArray[np.int64]], Floats],
    corpus: Corpus,
    config: EvalConfig,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Score held-out text and write ``heldout.jsonl``, the sums of each document.

    Args:
        cost: gives the bits of each token, (T,) -> (T,).
        corpus: whose ``val`` split is scored.
        config: how much of it, in which windows.
        out: the stage's folder.
        report: shows progress.
    """
    with report.task("held-out text", 1) as bar:
        tokens = scored_tokens(corpus, "val", config.seq_len, config.heldout_sequences)
        documents = per_document(corpus, "val", cost(tokens))
        bar.advance()
    write_jsonl(out / "heldout.jsonl", _document_lines(documents, corpus))
    return document_rows(documents, corpus)


def _document_lines(documents: Documents, corpus: Corpus) -> Iterator[dict[str, Any]]:
    """Yield each document's sums, for comparisons between models."""
    for entry in zip(*(array.tolist() for array in documents), strict=True):
        values = dict(zip(Documents._fields, entry, strict=True))
        yield {**values, "domain": corpus.domains[values["domain"]]}
