"""What the memory must beat to be more than added capacity, a hash, or a bigram table."""

from engram_eval.config import StudyConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import arm

QUESTION = (
    "Is it the n-grams that help, or would as many rows do with nothing in them, at random places, "
    "untrained, or as a plain bigram table?"
)
ARMS = (
    "moe",
    "engram",
    "capacity_one",
    "random_index",
    "frozen_rows",
    "collision_free",
    "bigram",
    "over_encoding",
)


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale: each control twice, all at the cost of the MoE."""
    return StudyConfig(
        name="controls",
        scale=scale_name,
        question=QUESTION,
        models=tuple(arm(name, scale) for name in ARMS),
        corpus=scale.corpus,
        train=scale.train,
        evaluate=scale.evaluate,
        probe=scale.probe,
    )
