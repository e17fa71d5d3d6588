"""What does a larger table buy, on top of everything else?"""

from collections.abc import Mapping
from typing import Any

from engram_eval.config import ModelSpec, StudyConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import THREE_SEEDS, study_of_losses
from engram_eval.variants import bigram, engram, over_encoding

QUESTION = "How does the loss fall as the table grows, and does it fall faster than its relatives'?"

ROWS: Mapping[str, float] = {
    "0.1x": 0.1,
    "0.3x": 0.3,
    "1x": 1.0,
    "3x": 3.0,
    "10x": 10.0,
    "100x": 100.0,
}
"""Rows of each head over the scale's own."""

RELATIVES: Mapping[str, float] = {"1x": 1.0, "10x": 10.0}
"""Sizes at which OverEncoding and a plain bigram table of as many numbers stand beside it."""


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale, three seeds an arm; arms differ in cost by their table alone."""
    arms = [_arm("engram_one_row", engram(scale, engram_index="single"))]
    arms += [_arm(f"engram_{name}", engram(scale, **rows(scale, k))) for name, k in ROWS.items()]
    for name, factor in RELATIVES.items():
        arms.append(_arm(f"over_encoding_{name}", over_encoding(scale) | rows(scale, factor)))
        arms.append(_arm(f"bigram_{name}", bigram(scale) | one_table(scale, factor)))
    return study_of_losses("slots", QUESTION, tuple(arms), scale, scale_name)


def _arm(name: str, architecture: Mapping[str, Any]) -> ModelSpec:
    return ModelSpec(name, architecture, THREE_SEEDS)


def rows(scale: Scale, factor: float) -> dict[str, Any]:
    """Return the scale's rows of every order, times a factor."""
    return {"engram_rows": [round(count * factor) for count in scale.memory["engram_rows"]]}


def one_table(scale: Scale, factor: float) -> dict[str, Any]:
    """Return as many rows of the model's width as hold the numbers of all heads together."""
    memory = scale.memory
    numbers = sum(memory["engram_rows"]) * memory["engram_heads"] * memory["engram_row_dim"]
    return {"engram_rows": [round(numbers * factor / scale.backbone["hidden_size"])]}
