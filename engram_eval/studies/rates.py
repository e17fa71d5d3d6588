"""Does the memory lead because its rows learn faster than the token embeddings beside them?

Rows learn at five times the backbone's rate (arXiv:2601.07372 App. A), token embeddings, which are
read as rarely, at the backbone's own. Here embeddings learn faster in every arm, and rows at least
as fast as they.
"""

from collections.abc import Mapping

from engram_eval.config import ModelSpec, StudyConfig, TrainConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import FIVE_SEEDS, arm, study_of_losses

QUESTION = "Does Engram lead because its rows learn faster than token embeddings?"

KINDS = ("dense", "moe", "engram")
RATES: Mapping[str, float] = {"1x": 1.0, "5x": 5.0, "25x": 25.0, "125x": 125.0}
"""The token embedding's rate over the backbone's."""


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale: dense, MoE and Engram at each rate of the token embedding."""
    arms = [_arm(kind, label, scale) for label in RATES for kind in KINDS]
    return study_of_losses("rates", QUESTION, tuple(arms), scale, scale_name)


def _arm(kind: str, label: str, scale: Scale) -> ModelSpec:
    rate = RATES[label]
    rows = max(rate, TrainConfig().table_lr_multiplier)
    train = {"embedding_lr_multiplier": rate, "table_lr_multiplier": rows}
    return arm(kind, scale, FIVE_SEEDS, f"{kind}_{label}", match=f"moe_{label}", train=train)
