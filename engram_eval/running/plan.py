"""What a study will cost, before it runs."""

from collections import Counter
from typing import Any

from engram_eval.config import StudyConfig, arm_training
from engram_eval.environment import default_workers, gpus, products
from engram_eval.running.stage_seconds import other_seconds
from engram_eval.running.study_folder import study_ledger
from engram_eval.study import graph
from engram_eval.training.settings import check_training
from engram_eval.training.steps import checkpoint_steps, n_steps

TRAINING_FLOPS_PER_FORWARD_FLOP = 3
"""The backward pass costs twice the forward pass (arXiv:2001.08361 section 2.1)."""

BYTES_PER_PARAMETER = 4
WORTH_TELLING_MB = 10_000

COLUMNS = {
    "total": "params_total",
    "active": "params_active",
    "P_tot": "params_total_backbone",
    "P_act": "params_active_backbone",
    "table": "params_table",
    "FLOP/token": "flops_per_token",
    "tokens": "tokens",
    "memory MB": "training_memory_mb",
}


RANK_COLUMNS = {
    "MB/process": "memory",
    "MB/step": "backbone_moved",
    "rows MB/step": "table_moved",
}


def plan(study: StudyConfig, measure: bool = True, ranks: int | None = None) -> dict[str, Any]:
    """Return the ledger of a solved study with what training each model takes, and all else.

    Args:
        study: solved; models that are loaded cost nothing, and are in ``loaded`` with their paths.
        measure: take a few training steps here to estimate the time; else it is None.
        ranks: also count what each of so many processes needs, in ``ranks``.

    Raises:
        UserError: settings that no training can have, or processes that cannot share the batch.
    """
    from engram_eval.costs.footprint import training_footprint

    training = {model.name: arm_training(study, model) for model in study.models}
    for train in training.values():
        check_training(train)
    ledger = study_ledger(study)
    by = products()
    for name, row in ledger.items():
        train = training[name]
        row["training_flops"] = (
            TRAINING_FLOPS_PER_FORWARD_FLOP * row["flops_per_token"] * row["tokens"]
        )
        taken = training_footprint(row["architecture"], train, by)
        row["training_memory_mb"] = round(taken.total / 1e6)
        row["weights_mb"] = BYTES_PER_PARAMETER * row["params_total"] / 1e6
        row["checkpoints"] = len(checkpoint_steps(train.checkpoints, n_steps(train)))
        row["training_seconds"] = None
        if measure:
            from engram_eval.bench.rate import seconds_per_token

            seconds = seconds_per_token(row["architecture"], train)
            row["training_seconds"] = seconds * row["tokens"]
        if ranks is not None:
            from engram_eval.costs.ranks import rank_costs

            costs = rank_costs(row["architecture"], train, ranks)
            row["ranks"] = {"world": ranks, **costs._asdict()}
    return {
        "study": study.name,
        "scale": study.scale,
        "tuning": {"runs": study.tune.runs, "fraction": study.tune.fraction},
        "models": ledger,
        "loaded": {
            m.name: {"path": m.path, "seeds": list(m.seeds)} for m in study.models if m.path
        },
        "workers": default_workers(),
        "stages": _stages(study, ledger, measure),
    }


def _stages(study: StudyConfig, ledger: dict[str, Any], measure: bool) -> dict[str, Any]:
    """Return how many stages there are, and of each kind; if asked, what all but trainings take."""
    nodes, rows = graph(study), ledger.values()
    seconds = None
    if measure:
        rates = [row["training_seconds"] / row["tokens"] for row in rows]
        mean = sum(rates) / len(rates) if rates else None
        seconds = other_seconds(nodes, study, mean)
    each = {node.key: node.stage for node in nodes}
    return {"count": len(each), "kinds": dict(Counter(each.values())), "other_seconds": seconds}


def plan_table(planned: dict[str, Any]) -> str:
    """Lay a plan out as text; times and FLOPs are those of one seed."""
    lines = [f"{planned['study']} at scale {planned['scale']}"]
    if planned["models"]:
        lines += [*_model_lines(planned["models"]), *_rank_lines(planned["models"])]
    if planned["loaded"]:
        lines += _loaded_lines(planned)
    return "\n".join([*lines, *_disk_lines(planned["models"]), *_time_lines(planned)])


def _model_lines(models: dict[str, Any]) -> list[str]:
    wide = max(map(len, ("model", *models)))
    most = {key: max(len(f"{row[key]:,}") for row in models.values()) for key in COLUMNS.values()}
    widths = {key: max(12, digits + 1) for key, digits in most.items()}
    head = f"{'model':{wide}}" + "".join(f"{n:>{widths[key]}}" for n, key in COLUMNS.items())
    lines = [f"{head}   time/seed  seeds"]
    for name, row in models.items():
        counts = "".join(f"{row[key]:{width},}" for key, width in widths.items())
        lines.append(
            f"{name:{wide}}{counts} {_time(row['training_seconds']):>11} {len(row['seeds']):6}"
        )
    return [*lines, "P_tot, P_act: total and active parameters without embedding and head"]


def _loaded_lines(planned: dict[str, Any]) -> list[str]:
    """Name the models that are loaded, and what is done with them."""
    wide = max(map(len, planned["loaded"]))
    lines = [f"{name:{wide}}  {model['path']}" for name, model in planned["loaded"].items()]
    kinds = ", ".join(f"{kind} {count}" for kind, count in planned["stages"]["kinds"].items())
    return [*lines, f"stages: {kinds}"]


def _disk_lines(models: dict[str, Any]) -> list[str]:
    """Say what models take on a disk, where it is more than anyone has to spare."""
    from engram_eval.training.checkpoint import KEPT

    rows = list(models.values())
    weights = sum(row["weights_mb"] * row["checkpoints"] * len(row["seeds"]) for row in rows)
    if weights < WORTH_TELLING_MB:
        return []
    count = sum(row["checkpoints"] * len(row["seeds"]) for row in rows)
    # Weights and both moments.
    point = 3 * max(row["weights_mb"] for row in rows)
    resuming = point * KEPT
    return [
        f"{count} checkpoints take {weights / 1e3:,.0f} GB on disk (train.checkpoints says how "
        f"many); a training that runs up to {resuming / 1e3:,.1f} GB more"
    ]


def _time_lines(planned: dict[str, Any]) -> list[str]:
    """Say how long trainings take, and how long the whole study; nothing that was not measured."""
    count, others = planned["stages"]["count"], planned["stages"]["other_seconds"]
    if others is None:
        return []
    rows = planned["models"].values()
    training = sum(row["training_seconds"] * len(row["seeds"]) for row in rows)
    tuning = planned["tuning"]["runs"] * planned["tuning"]["fraction"]
    tuned = sum(row["training_seconds"] * tuning for row in rows)
    one, many = ("GPU", "GPUs") if gpus() else ("core", "cores")
    extra = f" and tuning {_time(tuned)}" if tuned else ""
    whole, workers = training + tuned + sum(others.values()), planned["workers"]
    lines = [f"training takes about {_time(training)}{extra} on one {one} of this machine"]
    # Measurements wait for each other.
    beside = _time(whole / workers + others.get("offload", 0.0) * (1 - 1 / workers))
    told = f"all {count} stages about {_time(whole)}"
    told += f", side by side on {workers} {many} {beside}" if workers > 1 else ""
    return [*(lines if training else []), f"{told}; what is finished already does not run again"]


def _rank_lines(models: dict[str, Any]) -> list[str]:
    """Lay out what each process needs and receives, where that was counted."""
    counted = {name: row["ranks"] for name, row in models.items() if "ranks" in row}
    if not counted:
        return []
    world = next(iter(counted.values()))["world"]
    wide = max(map(len, counted))
    head = "".join(f"{name:>14}" for name in RANK_COLUMNS)
    lines = [f"each of {world} processes needs, and receives in a step:", f"{'':{wide}}{head}"]
    for name, costs in counted.items():
        cells = "".join(f"{costs[key] / 1e6:14,.1f}" for key in RANK_COLUMNS.values())
        lines.append(f"{name:{wide}}{cells}")
    return lines


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
