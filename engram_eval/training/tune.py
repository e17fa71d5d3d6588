"""The tuning stage: short runs of one arm at several rates, the best of which its training takes.

Every arm of a study gets the same number of runs, of the same length, on the same text in the same
order. An arm with a table spends them on a grid of backbone rate and table rate; one without on as
many backbone rates over the same range.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from engram_eval.config import TrainConfig, TuneConfig
from engram_eval.ledger import architecture_config
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow, read_jsonl, row_from_dict, write_json
from engram_eval.stage_config import TrainStage, TuneStage
from engram_eval.training.stage import train

FILE = "best.json"


def tune(
    inputs: Mapping[str, Path],
    config: TuneStage,
    seed: int | None,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Train one arm shortly at each of its rates and write the best to ``best.json``.

    Args:
        inputs: ``corpus``.
        config: the arm, how it will be trained, and what is tried.
        seed: not used: all arms are tuned with the seed of ``config.tune``, which is none of a
            study's usual ones.
        out: the folder to fill.
        report: where progress goes.

    Returns:
        ``loss_nats`` on validation text of every run, its rates as labels.
    """
    settings = candidates(config)
    losses = []
    for number, candidate in enumerate(settings):
        report.say(f"tuning run {number + 1} of {len(settings)}: {_labels(candidate)}")
        losses.append(_loss(inputs, config, candidate, out / f"run{number}", report))
    best = settings[min(range(len(settings)), key=losses.__getitem__)]
    rates = {"lr": best.lr, "table_lr_multiplier": best.table_lr_multiplier}
    write_json(out / FILE, {**rates, "losses_nats": losses})
    return [
        MetricRow("tune", "loss_nats", loss, split="val", slice=_labels(candidate))
        for candidate, loss in zip(settings, losses, strict=True)
    ]


def candidates(config: TuneStage) -> list[TrainConfig]:
    """Return the settings of every tuning run of an arm."""
    base, dials = config.train, config.tune
    short = dataclasses.replace(
        base, tokens=max(1, round(base.tokens * dials.fraction)), checkpoints=(1.0,)
    )
    if architecture_config(config.architecture).engram_layers:
        return [
            dataclasses.replace(
                short, lr=base.lr * rate, table_lr_multiplier=base.table_lr_multiplier * table
            )
            for rate in dials.lr_factors
            for table in dials.table_factors
        ]
    return [dataclasses.replace(short, lr=base.lr * rate) for rate in _finer(dials)]


def _finer(dials: TuneConfig) -> list[float]:
    """Return as many backbone factors as a grid has points, evenly spaced on a log scale."""
    count = len(dials.lr_factors) * len(dials.table_factors)
    low, high = math.log(min(dials.lr_factors)), math.log(max(dials.lr_factors))
    return [math.exp(low + (high - low) * i / max(1, count - 1)) for i in range(count)]


def _loss(
    inputs: Mapping[str, Path],
    config: TuneStage,
    settings: TrainConfig,
    out: Path,
    report: Reporter,
) -> float:
    """Train once unless that is done already; return the validation loss, and keep no weights."""
    kept = out / "loss.json"
    if not kept.exists():
        out.mkdir(parents=True, exist_ok=True)
        train(inputs, TrainStage(config.architecture, settings), config.tune.seed, out, report)
        rows = [row_from_dict(row) for row in read_jsonl(out / "validation.jsonl")]
        (loss,) = [r.value for r in rows if r.metric == "loss_nats" and not r.slice]
        for folder in ("model", "checkpoints"):
            shutil.rmtree(out / folder)
        write_json(kept, loss)
    return float(json.loads(kept.read_text()))


def _labels(settings: TrainConfig) -> dict[str, str]:
    return {
        "lr": f"{settings.lr:.4g}",
        "table_lr_multiplier": f"{settings.table_lr_multiplier:.4g}",
    }
