"""The main comparison: MoE against Engram at equal cost, beside their dense twin."""

from engram_eval.config import StudyConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import arm

QUESTION = (
    "At equal parameters and equal FLOPs, does a share of the experts' parameters serve better "
    "as an n-gram memory?"
)


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale: dense (one seed), MoE and Engram (two seeds each)."""
    return StudyConfig(
        name="main",
        scale=scale_name,
        question=QUESTION,
        models=(arm("dense", scale, seeds=(0,)), arm("moe", scale), arm("engram", scale)),
        corpus=scale.corpus,
        train=scale.train,
        evaluate=scale.evaluate,
        probe=scale.probe,
    )
