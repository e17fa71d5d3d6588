"""The tuning stage: short runs of one arm at several rates, the best of which its training takes.

Every arm of a study gets the same number of runs, of the same length, on the same text in the same
order. First comes a grid: of the backbone's rate and the table's, or, where no table is trained (or
its rate is what the arm is about), the experts'; an arm that has neither spends as many runs on
rates of its backbone, over the same range. Further runs follow what was found: of the token
embedding's rate, which every arm has, then beyond the grid where the best lies at its edge, else
closer to the best.
"""

import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from engram_eval.config import OF_PARTS, TrainConfig, TuneConfig
from engram_eval.costs.ledger import architecture_config
from engram_eval.files import read_jsonl, write_json
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow, row_from_dict
from engram_eval.stage_config import TrainStage, TuneStage
from engram_eval.training.loop import TrainingError
from engram_eval.training.stage import train

FILE = "best.json"
BACKBONE = "lr"
EMBEDDING, TABLE, EXPERTS = OF_PARTS


def tune(
    inputs: Mapping[str, Path],
    config: TuneStage,
    seed: int | None,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Train one arm shortly at each of its rates and write the best to ``best.json``.

    A run that comes to no finite loss has lost; its row has no value.

    Args:
        inputs: ``corpus``.
        config: the arm, how it will be trained, and what is tried.
        seed: not used: all arms are tuned with the seed of ``config.tune``, which is none of a
            study's usual ones.
        out: the folder to fill.
        report: where progress goes.

    Returns:
        ``loss_nats`` on validation text of every run, its rates as labels.

    Raises:
        TrainingError: no run came to a finite loss.
    """
    settings, losses = candidates(config), list[float]()
    count = len(settings) + config.tune.further
    for number in range(count):
        if number == len(settings):
            settings.append(following(settings, losses, config))
        labels = _labels(settings[number], config)
        report.say(f"tuning run {number + 1} of {count}: {labels}")
        losses.append(_loss(inputs, config, settings[number], out / f"run{number}", report))
    if not math.isfinite(min(losses)):
        raise TrainingError(f"none of {count} tuning runs came to a finite loss")
    best = settings[min(range(count), key=losses.__getitem__)]
    rates = {dial: getattr(best, dial) for dial in (BACKBONE, *OF_PARTS)}
    kept = [loss if math.isfinite(loss) else None for loss in losses]
    write_json(out / FILE, {**rates, "losses_nats": kept})
    return [
        MetricRow("tune", "loss_nats", loss, split="val", slice=_labels(candidate, config))
        for candidate, loss in zip(settings, kept, strict=True)
    ]


def candidates(config: TuneStage) -> list[TrainConfig]:
    """Return the settings of the tuning runs of an arm's grid."""
    base, dials = config.train, config.tune
    short = dataclasses.replace(
        base, tokens=max(1, round(base.tokens * dials.fraction)), checkpoints=(1.0,)
    )
    second = second_dial(config)
    if second is None:
        return [dataclasses.replace(short, lr=base.lr * rate) for rate in _finer(dials)]
    return [
        _moved(_moved(short, BACKBONE, rate), second, factor)
        for rate in dials.lr_factors
        for factor in _factors(dials, second)
    ]


def second_dial(config: TuneStage) -> str | None:
    """Return which rate of an arm is tuned beside its backbone's, if any."""
    architecture = architecture_config(config.architecture)
    trained = architecture.engram_layers and not architecture.engram_frozen_table
    if trained and TABLE not in config.held:
        return TABLE
    routed = architecture.n_routed_experts and EXPERTS not in config.held
    return EXPERTS if routed and config.tune.expert_factors else None


def following(
    tried: Sequence[TrainConfig], losses: Sequence[float], config: TuneStage
) -> TrainConfig:
    """Return what is tried next: one stride beyond what was tried, where the best is its edge.

    The token embedding's rate comes first, then the backbone's; a best that lies inside is closed
    in on, half-way (of the logarithm) to the better of the neighbouring rates.
    """
    place = min(range(len(tried)), key=losses.__getitem__)
    best = tried[place]
    for dial in _dials(config):
        values, at = [getattr(each, dial) for each in tried], getattr(best, dial)
        stride = _stride(config.tune, dial)
        if stride > 1 and at in (min(values), max(values)):
            return _moved(best, dial, stride if at == max(values) else 1 / stride)
    return dataclasses.replace(best, lr=math.sqrt(best.lr * _better_neighbour(tried, losses, best)))


def _better_neighbour(
    tried: Sequence[TrainConfig], losses: Sequence[float], best: TrainConfig
) -> float:
    """Return of the next lower and the next higher rate the one that came to the lower loss."""
    reached: dict[float, float] = {}
    for each, loss in zip(tried, losses, strict=True):
        reached[each.lr] = min(loss, reached.get(each.lr, math.inf))
    below = [rate for rate in reached if rate < best.lr]
    above = [rate for rate in reached if rate > best.lr]
    beside = [*([max(below)] if below else []), *([min(above)] if above else [])]
    return min(beside, key=reached.__getitem__, default=best.lr)


def _dials(config: TuneStage) -> list[str]:
    """Return the rates that are followed beyond what was tried, the first one first."""
    second = second_dial(config)
    embedding = [] if EMBEDDING in config.held else [EMBEDDING]
    return [*embedding, BACKBONE, *([second] if second else [])]


def _factors(dials: TuneConfig, dial: str) -> tuple[float, ...]:
    return {
        BACKBONE: dials.lr_factors,
        TABLE: dials.table_factors,
        EXPERTS: dials.expert_factors,
    }[dial]


def _stride(dials: TuneConfig, dial: str) -> float:
    """Return the widest step between neighbouring factors; 1 if there is one alone."""
    if dial == EMBEDDING:
        return dials.embedding_stride
    ordered = sorted(_factors(dials, dial))
    return max((b / a for a, b in itertools.pairwise(ordered)), default=1.0)


def _moved(settings: TrainConfig, dial: str, factor: float) -> TrainConfig:
    rate = {dial: getattr(settings, dial) * factor}
    return dataclasses.replace(settings, **rate)


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
        write_json(kept, _trained_loss(inputs, config, settings, out, report))
        for folder in ("model", "checkpoints"):
            shutil.rmtree(out / folder, ignore_errors=True)
    loss = json.loads(kept.read_text())
    return math.inf if loss is None else float(loss)


def _trained_loss(
    inputs: Mapping[str, Path],
    config: TuneStage,
    settings: TrainConfig,
    out: Path,
    report: Reporter,
) -> float | None:
    try:
        train(inputs, TrainStage(config.architecture, settings), config.tune.seed, out, report)
    except TrainingError as error:
        report.say(f"this rate is out: {error}")
        return None
    rows = [row_from_dict(row) for row in read_jsonl(out / "validation.jsonl")]
    (loss,) = [row.value for row in rows if row.metric == "loss_nats" and not row.slice]
    return loss


def _labels(settings: TrainConfig, config: TuneStage) -> dict[str, str]:
    dials = [BACKBONE, EXPERTS if second_dial(config) == EXPERTS else TABLE]
    if config.tune.embedding_stride > 1:
        dials.append(EMBEDDING)
    return {dial: f"{getattr(settings, dial):.4g}" for dial in dials}
