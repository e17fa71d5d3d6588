"""The last numbers of a training run, read from its logs by others while it goes on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engram_eval.config import TrainConfig
from engram_eval.training.steps import n_steps

TAIL_BYTES = 65_536


def read_progress(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the last line of ``train.jsonl`` with its speed and the steps in all.

    Args:
        folder: of a training stage; others have no such log.
        config: the stage's configuration as plain data.

    Returns:
        None where no step has been written.
    """
    last, timing = (_last_line(folder / name) for name in ("train.jsonl", "timing.jsonl"))
    if last is None or "train" not in config:
        return None
    # No more than these: the folder may be of another version.
    sizes = {name: config["train"][name] for name in ("tokens", "seq_len", "batch_size")}
    steps = n_steps(TrainConfig(**sizes))
    return {**last, "tokens_per_s": (timing or {}).get("tokens_per_s"), "steps": steps}


def _last_line(path: Path) -> dict[str, Any] | None:
    """Return the last whole line of a log; the one after it may be half written."""
    if not path.exists():
        return None
    with open(path, "rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES))
        lines = log.read().split(b"\n")[:-1]
    found: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return found
