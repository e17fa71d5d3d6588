"""The stage that tells a trained model changed facts in one way, and asks before and after."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from engram_eval.allocator import keep_freed_memory
from engram_eval.corpus.excerpt import excerpt
from engram_eval.corpus.same_tokenizer import same_tokenizer
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.errors import UserError
from engram_eval.evaluation.heldout import scored_tokens
from engram_eval.evaluation.settings import check_settings
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow, read_record
from engram_eval.stage_config import UpdateStage
from engram_eval.stages import resolve
from engram_eval.training.stage import tuned
from engram_eval.updates.changes import draw_changes
from engram_eval.updates.registry import find_way, other_tokens
from engram_eval.updates.told import Told


def update(
    inputs: Mapping[str, Path],
    config: UpdateStage,
    seed: int | None,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Tell a model what has changed.

    Args:
        inputs: ``corpus``, the text that was read, and ``train`` with the folder ``model``; without
            it, a memory stands alone. ``tune``, if the model's rates were tuned.
        config: which way, and how.
        seed: of the training run, which draws what changes.
        out: the folder to fill.
        report: where progress goes.

    Returns:
        Rows named ``update``: those of ``told.measure`` before (condition ``before_update``) and
        after, ``update_seconds`` and ``update_bytes`` (of an index: to build it anew), and of ways
        that choose a rate ``update_rate``.

    Raises:
        UserError: an unknown way, one that the model does not allow, an impossible setting, text of
            too few generated people, or a model that reads other tokens than the text's.
    """
    if seed is None:
        raise UserError("what changes is drawn by a seed")
    check_settings(config.evaluate)
    keep_freed_memory()
    corpus = load_corpus(inputs["corpus"])
    if "train" in inputs:
        _check_tokens(inputs["train"], corpus, config.way)
    settings = tuned(config.train, inputs["tune"]) if "tune" in inputs else config.train
    told = Told(
        model=inputs["train"] / "model" if "train" in inputs else None,
        corpus=excerpt(corpus, config.train.tokens),
        changes=draw_changes(corpus, config.options, seed),
        options=config.options,
        train=settings,
        # Memories beside a model are tuned on held-out text, scored or not.
        evaluate=dataclasses.replace(config.evaluate, heldout=True),
        val=scored_tokens(
            corpus, "val", config.evaluate.seq_len, config.evaluate.heldout_sequences
        ),
        folder=out,
        seed=seed,
        report=report,
    )
    rows: list[MetricRow] = resolve(find_way(config.way).function)(told)
    return rows


def _check_tokens(train: Path, corpus: Corpus, way: str) -> None:
    """Refuse a model from elsewhere, to which the text's tokens would mean other words."""
    if not same_tokenizer(train / "model", corpus.folder / "tokenizer"):
        record = read_record(train)
        given = None if record is None else record.config.get("path")
        raise other_tokens(way, str(given or train / "model"))
