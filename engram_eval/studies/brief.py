"""The first look: MoE against Engram at equal cost, beside their dense twin, in two seeds."""

from engram_eval.config import StudyConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import TWO_SEEDS, arm
from engram_eval.studies.main import QUESTION


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale: dense (one seed), MoE and Engram (two seeds each).

    Two seeds show that training runs differ, and are too few for a verdict; that is ``main``.
    """
    return StudyConfig(
        name="brief",
        scale=scale_name,
        question=QUESTION,
        models=(
            arm("dense", scale, seeds=(0,)),
            arm("moe", scale, TWO_SEEDS),
            arm("engram", scale, TWO_SEEDS),
        ),
        corpus=scale.corpus,
        train=scale.train,
        evaluate=scale.evaluate,
        probe=scale.probe,
    )
