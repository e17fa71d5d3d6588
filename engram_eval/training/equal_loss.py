"""The saved checkpoint of a model whose validation loss is nearest to another model's last one.

A better model looks different in every lens because it is better. What two models differ in at
equal loss is not that. Checkpoints are few, so the loss that was met is recorded beside the one
that was wanted, and how near they are is for the reader to judge.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from engram_eval.errors import UserError
from engram_eval.files import read_jsonl, write_json
from engram_eval.progress import Reporter
from engram_eval.records import EQUAL_LOSS_FACTS, MetricRow
from engram_eval.stage_config import EqualLossStage


class Nearest(NamedTuple):
    """A checkpoint: its step, its loss in nats per token, and whether training went no further."""

    step: int
    loss_nats: float
    last: bool


def equal_loss(
    inputs: Mapping[str, Path],
    config: EqualLossStage,
    seed: int | None,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Choose a checkpoint of ``inputs["train"]`` by the last loss of ``inputs["reference"]``.

    Writes ``model``, a link to its weights, and ``equal_loss.json``. The row is the loss that was
    met, with the one that was wanted as its baseline.
    """
    wanted = losses(inputs["reference"])
    goal = wanted[max(wanted)]
    found = nearest(losses(inputs["train"]), goal)
    source = inputs["train"] / "checkpoints" / f"{found.step:06d}"
    link = out / "model"
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(source, out))
    write_json(out / EQUAL_LOSS_FACTS, found._asdict())
    return [
        MetricRow(
            "equal_loss",
            "loss_nats",
            found.loss_nats,
            split="val",
            step=found.step,
            baseline=goal,
            other={},
        )
    ]


def losses(train: Path) -> dict[int, float]:
    """Return the validation loss in nats per token at each saved step of a training.

    Raises:
        UserError: none was recorded.
    """
    path = train / "validation.jsonl"
    rows = read_jsonl(path) if path.exists() else ()
    found = {
        row["step"]: row["value"]
        for row in rows
        if row["metric"] == "loss_nats" and not row["slice"] and row["condition"] is None
    }
    if not found:
        raise UserError(f"{train}: no validation loss was recorded at its checkpoints")
    return found


def nearest(losses: Mapping[int, float], goal: float) -> Nearest:
    """Return the step whose loss is nearest to a goal; of two equally near, the later one."""
    step = min(losses, key=lambda step: (abs(losses[step] - goal), -step))
    return Nearest(step, losses[step], step == max(losses))
