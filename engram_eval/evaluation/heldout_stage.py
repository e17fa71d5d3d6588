"""The evaluation stage where held-out text is all that is scored: it needs no lm-eval."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engram_eval.adapters.load import load_model
from engram_eval.allocator import keep_freed_memory
from engram_eval.arrays import Floats, Ints
from engram_eval.config import EvalConfig
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.environment import compute_device
from engram_eval.evaluation.heldout import Documents, token_bits
from engram_eval.evaluation.heldout_text import HeldoutText, heldout_text
from engram_eval.evaluation.settings import check_settings
from engram_eval.files import write_jsonl
from engram_eval.parallel.launched import launched
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow


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
        from engram_eval.evaluation import stage

        return stage.evaluate(inputs, config, seed, out, report)
    check_settings(config)
    if not config.heldout:
        return []
    keep_freed_memory()
    model = load_model(inputs["train"] / "model").to(compute_device())
    text = text_for(load_corpus(inputs["corpus"]), config, inputs["train"] / "model")

    def cost(tokens: Ints) -> Floats:
        batch = windows(config)
        return token_bits(model, tokens, config.seq_len, batch, model.device, text.end_id)

    return heldout(cost, text, out, report)


def text_for(corpus: Corpus, config: EvalConfig, model: Path) -> HeldoutText:
    """Return the held-out text in a model's tokens; see ``heldout_text``."""
    return heldout_text(corpus, config.seq_len, config.heldout_sequences, model)


def windows(config: EvalConfig) -> int:
    """Return windows per pass: as many tokens as a batch of requests of moderate length has."""
    return max(1, config.batch_size // 4)


def heldout(
    cost: Callable[[Ints], Floats],
    text: HeldoutText,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Score held-out text and write ``heldout.jsonl``, the sums of each document.

    Args:
        cost: gives the bits of each token, (T,) -> (T,).
        text: what is scored.
        out: the stage's folder.
        report: shows progress.
    """
    with report.task("held-out text", 1) as bar:
        documents = text.documents(cost(text.tokens))
        bar.advance()
    write_jsonl(out / "heldout.jsonl", _document_lines(documents, text.corpus))
    return text.rows(documents)


def _document_lines(documents: Documents, corpus: Corpus) -> Iterator[dict[str, Any]]:
    """Yield each document's sums, for comparisons between models."""
    for entry in zip(*(array.tolist() for array in documents), strict=True):
        values = dict(zip(Documents._fields, entry, strict=True))
        yield {**values, "domain": corpus.domains[values["domain"]]}
