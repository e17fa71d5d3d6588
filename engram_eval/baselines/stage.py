"""The stage that scores a baseline, alone or around a model, as models are scored."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from engram_eval.adapters.stage import model_sha256
from engram_eval.allocator import keep_freed_memory
from engram_eval.baselines.built import Setting
from engram_eval.baselines.registry import build_baseline
from engram_eval.config import EvalConfig
from engram_eval.corpus.same_tokenizer import same_tokenizer
from engram_eval.corpus.sequences import as_read
from engram_eval.corpus.store import MANIFEST, Corpus, load_corpus
from engram_eval.environment import device
from engram_eval.evaluation.heldout_stage import text_for
from engram_eval.evaluation.result_cache import FOLDER, ResultCache, identity
from engram_eval.evaluation.settings import check_settings
from engram_eval.evaluation.stage import asked_tasks, score
from engram_eval.files import file_sha256
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from engram_eval.stage_config import BaselineStage
from engram_eval.stages import STAGES


def evaluate_baseline(
    inputs: Mapping[str, Path],
    config: BaselineStage,
    seed: int | None,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Score a baseline on the same items and the same held-out text as models.

    Args:
        inputs: as for ``evaluation.stage.evaluate``; with ``train``, the baseline is put around
            that model.
        config: which baseline, and how it is scored.
        seed: of the model's training run, whose text it reads where it may not read all; alone
            it reads that of seed 0.
        out: the folder to fill; what the baseline keeps on disk lies in ``memory``.
        report: where progress goes.
    """
    check_settings(config.evaluate)
    keep_freed_memory()
    loaded = asked_tasks(config.evaluate, inputs)
    corpus = load_corpus(inputs["corpus"])
    model = inputs["train"] / "model" if "train" in inputs else None
    evaluate = _as_scored(config.evaluate, corpus, model)
    read = as_read(corpus, config.read_tokens, config.sequence, seed or 0)
    setting = Setting(read, evaluate, out / "memory", report, model)
    cache = ResultCache(out.parent / FOLDER, _identity(config, setting, seed))
    with build_baseline(config.name, setting) as built:
        lm, cost = built.lm, built.token_bits
        text = text_for(corpus, evaluate, corpus.folder / "tokenizer")
        scored = text if evaluate.heldout else None
        rows = score(lm, cost, loaded, scored, evaluate, out, report, cache)
    return rows + built.rows


def _as_scored(config: EvalConfig, corpus: Corpus, model: Path | None) -> EvalConfig:
    """Leave held-out text out where a model has another tokenizer than the corpus.

    A memory is mixed in token by token, with weights tuned on the corpus's tokens.
    """
    if model is None or same_tokenizer(model, corpus.folder / "tokenizer"):
        return config
    return dataclasses.replace(config, heldout=False)


def _identity(config: BaselineStage, setting: Setting, seed: int | None) -> str:
    """Hash what a baseline's answers depend on: text, model, and how both are scored."""
    manner = {
        name: value
        for name, value in dataclasses.asdict(config.evaluate).items()
        if name in ("batch_size", "seq_len", "heldout", "heldout_sequences")
    }
    return identity(
        baseline=config.name,
        version=STAGES["baseline"].version,
        corpus=file_sha256(setting.corpus.folder / MANIFEST),
        read=(config.read_tokens, config.sequence, seed or 0) if config.read_tokens else None,
        model=model_sha256(setting.model) if setting.model else None,
        manner=manner,
        device=device(),
    )
