"""What a study will cost, before it runs."""

from typing import Any

from engram_eval.config import StudyConfig, arm_training
from engram_eval.stages import resolve
from engram_eval.study_folder import study_ledger

TRAINING_FLOPS_PER_FORWARD_FLOP = 3
"""The backward pass costs twice the forward pass (arXiv:2001.08361 section 2.1)."""

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


def plan(study: StudyConfig, measure: bool = True, ranks: int = 0) -> dict[str, Any]:
    """Return the ledger of a solved study with what training each model takes.

    Args:
        study: solved; models that are loaded cost nothing and are left out.
        measure: take a few training steps here to estimate the time; else it is None.
        ranks: also count what each of so many processes needs, in ``ranks``; 0 leaves it out.

    Raises:
        UserError: processes that cannot share the batch.
    """
    ledger = study_ledger(study)
    footprint = resolve("engram_eval.footprint:training_footprint")
    training = {model.name: arm_training(study, model) for model in study.models}
    for name, row in ledger.items():
        train = training[name]
        row["training_flops"] = (
            TRAINING_FLOPS_PER_FORWARD_FLOP * row["flops_per_token"] * row["tokens"]
        )
        row["training_memory_mb"] = round(footprint(row["architecture"], train).total / 1e6)
        row["training_seconds"] = None
        if measure:
            rate = resolve("engram_eval.bench.rate:seconds_per_token")
            row["training_seconds"] = rate(row["architecture"], train) * row["tokens"]
        if ranks:
            costs = resolve("engram_eval.rank_costs:rank_costs")
            found = costs(row["architecture"], train, ranks)
            row["ranks"] = {"world": ranks, **found._asdict()}
    tuning = {"runs": study.tune.runs, "fraction": study.tune.fraction}
    return {"study": study.name, "scale": study.scale, "tuning": tuning, "models": ledger}


def plan_table(planned: dict[str, Any]) -> str:
    """Lay a plan out as text; times and FLOPs are those of one seed."""
    wide = max(map(len, ("model", *planned["models"])))
    head = f"{'model':{wide}}" + "".join(f"{name:>12}" for name in COLUMNS)
    lines = [f"{planned['study']} at scale {planned['scale']}", f"{head}   time/seed  seeds"]
    for name, row in planned["models"].items():
        counts = "".join(f"{row[key]:12,}" for key in COLUMNS.values())
        lines.append(
            f"{name:{wide}}{counts} {_time(row['training_seconds']):>11} {len(row['seeds']):6}"
        )
    lines.append("P_tot, P_act: total and active parameters without embedding and head")
    rows = list(planned["models"].values())
    lines += _rank_lines(planned["models"])
    if rows and None not in [row["training_seconds"] for row in rows]:
        training = sum(row["training_seconds"] * len(row["seeds"]) for row in rows)
        tuning = planned["tuning"]["runs"] * planned["tuning"]["fraction"]
        tuned = sum(row["training_seconds"] * tuning for row in rows)
        extra = f" and tuning {_time(tuned)}" if tuned else ""
        lines.append(f"training takes about {_time(training)}{extra} on one core of this machine")
    return "\n".join(lines)


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
