"""What quantised rows cost: held-out loss beside the same model's own rows, and the bytes saved."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from engram_eval.adapters.load import load_causal_lm
from engram_eval.analysis.stats import bootstrap_ratios
from engram_eval.arrays import Ints
from engram_eval.bench.products import wait_for
from engram_eval.config import EvalConfig
from engram_eval.corpus.store import MANIFEST, Corpus, load_corpus
from engram_eval.environment import compute_device
from engram_eval.errors import UserError
from engram_eval.evaluation.heldout import Documents, per_document, scored_tokens, token_bits
from engram_eval.model_folder import OWN, model_type
from engram_eval.models.configuration_engram import NGRAM_MEMORIES, EngramConfig
from engram_eval.models.row_format import ROW_FORMATS
from engram_eval.models.table import RowTable
from engram_eval.progress import Reporter
from engram_eval.quiet import no_bars

BATCH = 16
READ, TURNS = 4096, 20
KINDS = ("none", *ROW_FORMATS)


def bench_quantised(
    folder: Path, corpus_folder: Path | None, seconds: float, report: Reporter
) -> list[dict[str, Any]]:
    """Score a trained model with its rows as they are and quantised, on the same held-out text.

    On the GPU where there is one.

    Args:
        folder: a model with a memory.
        corpus_folder: what it is scored on; None for that of the run that it lies in.
        seconds: about how long; it bounds the text that is read.
        report: shows progress.

    Returns:
        Rows with rows (their dtype), table_mb, row_bytes, bits_per_byte, difference (to the first
        row; more bits are worse) with its 95 % interval over documents (ci_low, ci_high),
        max_error_pct (largest difference of a number, of its row's largest), read_ns (to gather a
        token's rows and make them numbers, all memories; the fastest of some turns), documents and
        tokens.

    Raises:
        UserError: no model, none with a memory of hashed rows, rows that are quantised already,
            or no corpus that fits.
    """
    _check_saved(folder)
    corpus, seq_len = _text(folder, corpus_folder)
    plain = _open(folder, "none")
    _check(plain, corpus, folder)
    windows = _windows(plain, corpus, seq_len, seconds)
    tokens = scored_tokens(corpus, "val", seq_len, windows)
    rows: list[dict[str, Any]] = []
    scores: list[Documents] = []
    own = [table.values().detach() for table in _tables(plain)]
    with report.task("bench quantised", len(KINDS)) as task:
        for kind in KINDS:
            model = plain if kind == "none" else _open(folder, kind)
            bits = token_bits(model, tokens, seq_len, BATCH, model.device, corpus.end_id)
            scores.append(per_document(corpus, "val", bits))
            rows.append(_sizes(model) | _loss(scores[0], scores[-1]) | _error(own, model))
            rows[-1] |= {"read_ns": _read_ns(model, tokens)}
            rows[-1] |= {"documents": len(scores[-1].bits), "tokens": len(tokens)}
            task.advance(1, kind)
    return rows


def _text(folder: Path, corpus_folder: Path | None) -> tuple[Corpus, int]:
    """Return the text to score on, and the window that the run scores with."""
    found = [p for p in folder.absolute().parents if (p / "corpus" / MANIFEST).is_file()]
    if corpus_folder is None and not found:
        raise UserError(f"{folder}: lies in no run with a corpus; give one with --corpus DIR")
    corpus = load_corpus(corpus_folder or found[0] / "corpus")
    study = found[0] / "study.json" if found else None
    if study is None or not study.is_file():
        return corpus, EvalConfig.seq_len
    return corpus, int(json.loads(study.read_text(encoding="utf-8"))["evaluate"]["seq_len"])


def _check_saved(folder: Path) -> None:
    if not folder.is_dir():
        return
    if model_type(folder) != OWN:
        raise UserError(f"{folder}: not a model of ours, whose rows could be quantised")
    kept = EngramConfig.from_pretrained(folder).engram_row_quantization
    if kept != "none":
        raise UserError(f"{folder}: its rows are {kept} already; take what it was made from")


def _open(folder: Path, kind: str) -> PreTrainedModel:
    with no_bars():
        model = load_causal_lm(folder, engram_row_quantization=kind)
    return model.to(compute_device()).eval()


def _check(model: PreTrainedModel, corpus: Corpus, folder: Path) -> None:
    config = model.config
    if not config.engram_layers or config.engram_memory not in NGRAM_MEMORIES:
        raise UserError(f"{folder}: has no memory with rows of n-grams")
    if corpus.vocab_size > config.vocab_size:
        raise UserError(
            f"{corpus.folder}: has {corpus.vocab_size} tokens, {folder} knows {config.vocab_size}"
        )


def _windows(model: PreTrainedModel, corpus: Corpus, seq_len: int, seconds: float) -> int:
    """Return how many windows can be scored in the time; at least one batch."""
    tokens = scored_tokens(corpus, "val", seq_len, BATCH)
    token_bits(model, tokens, seq_len, BATCH, model.device, corpus.end_id)
    started = time.perf_counter()
    token_bits(model, tokens, seq_len, BATCH, model.device, corpus.end_id)
    batches = seconds / len(KINDS) / (time.perf_counter() - started)
    return BATCH * max(1, int(batches))


def _tables(model: PreTrainedModel) -> list[RowTable]:
    return [model.model.memory(layer).table for layer in model.config.engram_layers]


def _sizes(model: PreTrainedModel) -> dict[str, Any]:
    weights = [table.weight for table in _tables(model)]
    kept = model.config.engram_row_quantization
    return {
        "rows": str(weights[0].dtype).removeprefix("torch.") if kept == "none" else kept,
        "table_mb": sum(weight.nbytes for weight in weights) / 1e6,
        "row_bytes": weights[0][0].nbytes,
    }


def _loss(plain: Documents, other: Documents) -> dict[str, float | None]:
    """Return bits per byte, and the difference to the plain rows, over documents."""
    found: dict[str, float | None] = {"bits_per_byte": float(other.bits.sum() / other.bytes.sum())}
    if other is plain:
        return found | dict.fromkeys(("difference", "ci_low", "ci_high"))
    told = plain.bytes > 0
    more, weights = (other.bits - plain.bits)[told], plain.bytes[told]
    draws = np.random.default_rng(0)
    (interval,) = bootstrap_ratios(more[:, None], weights[:, None], draws)
    return found | {
        "difference": interval.value,
        "ci_low": interval.low,
        "ci_high": interval.high,
    }


@torch.no_grad()
def _error(own: list[torch.Tensor], model: PreTrainedModel) -> dict[str, float]:
    """Return by how much a number differs at most, in percent of its row's largest."""
    worst = 0.0
    for before, table in zip(own, _tables(model), strict=True):
        peaks = before.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(before.dtype).tiny)
        worst = max(worst, float(((table.values() - before).abs() / peaks).max()))
    return {"max_error_pct": 100 * worst}


@torch.inference_mode()
def _read_ns(model: PreTrainedModel, tokens: Ints) -> float:
    """Return the nanoseconds per token in which the tables are read, without the hash."""
    some = torch.from_numpy(tokens[None, :READ]).to(model.device)
    rows = list(model.model.ngram_rows(some).values())
    times = []
    for _ in range(TURNS):
        wait_for(model.device)
        started = time.perf_counter()
        for table, wanted in zip(_tables(model), rows, strict=True):
            table(wanted)
        wait_for(model.device)
        times.append(time.perf_counter() - started)
    return 1e9 * min(times) / rows[0].shape[1]
