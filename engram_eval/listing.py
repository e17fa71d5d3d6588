"""What there is, and what a run's folder holds and lacks."""

import json
from pathlib import Path
from typing import Any

from engram_eval.errors import UserError
from engram_eval.stages import resolve

LISTS: dict[str, str] = {
    "studies": "engram_eval.studies.registry:STUDIES",
    "scales": "engram_eval.scales:SCALES",
    "tasks": "engram_eval.evaluation.table:task_table",
    "probes": "probes.registry:PROBES",
    "variants": "engram_eval.variants:VARIANTS",
    "baselines": "engram_eval.baselines.registry:BASELINES",
    "claims": "engram_eval.claims.registry:CLAIMS",
}


def listing(what: str) -> dict[str, str]:
    """Return name -> one line about it for a kind of thing; ``what`` is a key of ``LISTS``."""
    registry: Any = resolve(LISTS[what])
    entries = registry() if callable(registry) else registry
    return {name: _about(entry) for name, entry in entries.items()}


def _about(entry: Any) -> str:
    if hasattr(entry, "train"):
        return (
            f"d_model {entry.backbone['hidden_size']}, {entry.backbone['num_hidden_layers']} "
            f"layers, {entry.train.tokens:,} training tokens"
        )
    return str(getattr(entry, "about", entry))


def status(folder: Path) -> list[dict[str, Any]]:
    """Return the stages of a study's folder.

    Raises:
        UserError: the folder is not a study's.
    """
    path = folder / "stages.json"
    if not path.exists():
        raise UserError(f"{folder}: no stages.json here; expected a study's folder, as runs/quick")
    try:
        stages: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from error
    return stages


def status_table(stages: list[dict[str, Any]]) -> str:
    """Lay the stages out as text, one a line."""
    lines = []
    for stage in stages:
        seconds = "" if stage["seconds"] is None else f"{stage['seconds']:8.1f} s"
        lines.append(
            f"{stage['status']:8} {seconds:>10}  {stage['label']}"
            + (f": {stage['error']}" if stage["error"] else "")
        )
    return "\n".join(lines)
