"""The training stage: from a corpus and an architecture to a Hugging Face folder and its curves."""

import functools
import itertools
import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engram_eval.allocator import keep_freed_memory
from engram_eval.config import TrainConfig
from engram_eval.config_json import key_dict
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.costs.ledger import architecture_config, ledger_of
from engram_eval.environment import compute_device
from engram_eval.errors import UserError
from engram_eval.evaluation.heldout import heldout_rows
from engram_eval.files import content_hash, file_sha256, read_jsonl
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.register import register
from engram_eval.parallel.folders import delete_parts, resume_folders
from engram_eval.parallel.launched import launched
from engram_eval.parallel.ranks import Ranks, joined
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow, row_from_dict, row_to_dict
from engram_eval.stage_config import TrainStage
from engram_eval.stages import resolve
from engram_eval.threads import threads
from engram_eval.training.checkpoint import delete_resume_points
from engram_eval.training.data import Batches
from engram_eval.training.folder import write_model_folder
from engram_eval.training.loop import Run, TrainingError, train_model
from engram_eval.training.settings import check_training
from engram_eval.training.steps import checkpoint_steps, n_steps
from engram_eval.training.watch import (
    GATE_QUANTILES,
    peak_gpu_memory_mb,
    peak_memory_mb,
    reset_peak_memory,
)

EVAL_BATCH = 16
PARALLEL = "engram_eval.parallel.loop:train_in_parallel"
"""Imported where it is needed: torch's part for many processes takes a second to load."""
WATCHED = (
    *("grad_norm_backbone", "grad_norm_table", "collision_rate", "gate_mean", *GATE_QUANTILES),
    *("router_load_max", "router_load_entropy_bits", "router_entropy_bits"),
)
"""Numbers of ``train.jsonl`` that the record holds, averaged."""


def train(
    inputs: Mapping[str, Path],
    config: TrainStage,
    seed: int | None,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Train one model, going on from a resume point if there is one.

    Writes ``model/``, ``checkpoints/<step>/``, ``train.jsonl`` (reproducible), ``timing.jsonl``
    and ``validation.jsonl`` (the validation rows so far).

    Started by ``torchrun``, the processes share the run; the rows are those of the first.

    Args:
        inputs: ``corpus``, a corpus folder; ``tune`` with the rates to take, if they were tuned.
        config: architecture and training settings.
        seed: draws the initial weights and the order of the text.
        out: the stage's own folder.
        report: shows progress.

    Raises:
        UserError: an impossible setting, or a damaged resume point.
        TrainingError: a loss or gradient that is not finite, in training or in validation.
        KeyboardInterrupt, SystemExit: asked to end by a signal; the same call goes on later.
    """
    if seed is None:
        raise UserError("training needs a seed")
    if "tune" in inputs:
        config = replace(config, train=tuned(config.train, inputs["tune"]))
    settings = config.train
    check_training(settings)
    corpus, steps = load_corpus(inputs["corpus"]), n_steps(settings)
    shape = settings.seq_len, settings.batch_size, seed
    batches = Batches(corpus.tokens("train"), *shape, docs=corpus.docs("train"))
    keep_freed_memory()
    reset_peak_memory()
    with threads(settings.threads):
        model = build_model(config.architecture, seed, corpus).to(compute_device())
        keep_at = checkpoint_steps(settings.checkpoints, steps)
        name = _run_name(config, seed, inputs["corpus"])
        fixed = (batches, settings, steps, frozenset(keep_at))
        with parallel_ranks(out) as ranks:
            kept = model if ranks is None else build_model(config.architecture, seed, corpus)
            keep = functools.partial(_keep, kept, corpus, config, seed, out)
            run = Run(model, *fixed, keep, out, name, corpus.domains)
            if ranks is None:
                train_model(run, report)
            else:
                resolve(PARALLEL)(run, kept, ranks, report)
                if not ranks.first:
                    return []
    rows = _rows(out, config, keep_at, batches.epochs(steps))
    delete_resume_points(out)
    delete_parts(out)
    return rows


@contextmanager
def parallel_ranks(out: Path) -> Iterator[Ranks | None]:
    """Join the other processes; None for a process that has always been alone with this run."""
    if launched() or resume_folders(out):
        with joined() as ranks:
            yield ranks
    else:
        yield None


def tuned(settings: TrainConfig, folder: Path) -> TrainConfig:
    """Return the settings with the rates that the tuning stage found best."""
    best = json.loads((folder / "best.json").read_text())
    return replace(settings, **{key: best[key] for key in best if key != "losses_nats"})


def build_model(architecture: Mapping[str, Any], seed: int, corpus: Corpus) -> EngramForCausalLM:
    """Build a model with weights drawn from ``seed``; the global generator is left as it was.

    Raises:
        UserError: an impossible architecture, or a vocabulary smaller than the corpus's.
    """
    register()
    config = architecture_config(architecture)
    if config.vocab_size < corpus.vocab_size:
        raise UserError(
            f"architecture: vocab_size={config.vocab_size}, but the corpus's tokenizer has "
            f"{corpus.vocab_size} tokens"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EngramForCausalLM(config)
    model.set_tokenizer(corpus.tokenizer())
    if config.engram_index == "exact":
        model.set_ngrams(torch.from_numpy(corpus.tokens("train").astype(np.int64)))
    return model


def _run_name(config: TrainStage, seed: int, corpus: Path) -> str:
    """Return a hash over all that the numbers of this run depend on."""
    manifest = file_sha256(corpus / "manifest.json")
    return content_hash({"config": key_dict(config), "seed": seed, "corpus": manifest})


def _keep(
    model: EngramForCausalLM, corpus: Corpus, config: TrainStage, seed: int, out: Path, step: int
) -> list[dict[str, Any]]:
    """Write a checkpoint and return its validation rows."""
    settings = config.train
    tokens = step * settings.seq_len * settings.batch_size
    place = out / "checkpoints" / f"{step:06d}"
    last = step == n_steps(settings)
    facts = {"step": step, "seed": seed, "peak learning rate": settings.lr}
    write_model_folder(out / "model" if last else place, model, corpus.tokenizer(), tokens, facts)
    if last:
        place.parent.mkdir(exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to("../model")
    try:
        rows = heldout_rows(
            model, corpus, settings.seq_len, settings.val_sequences, EVAL_BATCH, model.device
        )
    except UserError as error:
        raise TrainingError(f"after step {step}: {error}") from error
    return [row_to_dict(replace(row, name="train", step=step)) for row in rows]


def _rows(out: Path, config: TrainStage, keep_at: Sequence[int], epochs: float) -> list[MetricRow]:
    """Return the run's metric rows, from its logs."""
    log = list(read_jsonl(out / "train.jsonl"))
    rows = [row_from_dict(row) for row in read_jsonl(out / "validation.jsonl")]
    for start, end in itertools.pairwise([0, *keep_at]):
        rows += _training_losses(log[start:end], end)
    counts = ledger_of(config.architecture, config.train.seq_len)
    totals = {
        "tokens": log[-1]["tokens"],
        "epochs": epochs,
        "tokens_seen_per_parameter": log[-1]["tokens"] / counts.params_total,
        "params_total": counts.params_total,
        "params_active": counts.params_active,
        "params_table": counts.params_table,
        "flops_per_token": counts.flops_per_token,
        "skipped_batches": sum(line["loss_nats"] is None for line in log),
        **_last_interval(log, keep_at),
        **_speed(out, log[-1]["tokens"]),
    }
    return rows + [MetricRow("train", name, value) for name, value in totals.items()]


def _training_losses(lines: Sequence[Mapping[str, Any]], step: int) -> Iterator[MetricRow]:
    """Yield the mean training loss of some steps, and that of each domain in them."""
    row = functools.partial(MetricRow, "train", "loss_nats", split="train", step=step)
    taken = [line for line in lines if line["loss_nats"] is not None]
    if taken:
        yield row(statistics.fmean(line["loss_nats"] for line in taken), n=len(taken))
    nats: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for line in taken:
        for domain, numbers in line["domains"].items():
            nats[domain] += numbers["loss_nats"] * numbers["tokens"]
            tokens[domain] += numbers["tokens"]
    for domain, count in sorted(tokens.items()):
        yield row(nats[domain] / count, slice={"domain": domain}, n=count)


def _last_interval(log: Sequence[Mapping[str, Any]], keep_at: Sequence[int]) -> dict[str, float]:
    """Return what was watched, averaged since the last but one checkpoint; rows read so far."""
    since = log[keep_at[-2] if len(keep_at) > 1 else 0 :]
    recent = [line for line in since if line["loss_nats"] is not None]
    if not recent:
        return {}
    means = {
        name: statistics.fmean(line[name] for line in recent)
        for name in WATCHED
        if name in recent[-1]
    }
    touched = {name: recent[-1][name] for name in ("rows_touched",) if name in recent[-1]}
    return means | touched


def _speed(out: Path, tokens: int) -> dict[str, float]:
    took = [line["seconds"] for line in read_jsonl(out / "timing.jsonl")]
    # The first step compiles, and finds no memory that was used before.
    usual = took[1:] or took
    speed = tokens * len(usual) / len(took) / sum(usual)
    peaks = {"peak_memory_mb": peak_memory_mb(), "peak_gpu_memory_mb": peak_gpu_memory_mb()}
    return {"tokens_per_s": speed} | {name: peak for name, peak in peaks.items() if peak}
