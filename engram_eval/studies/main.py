"""The main comparison: MoE against Engram at equal cost; dense, and a memory on top of both."""

from engram_eval.config import StudyConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import FIVE_SEEDS, arm, no_probes

QUESTION = (
    "At equal parameters and equal FLOPs, does a share of the experts' parameters serve better "
    "as an n-gram memory?"
)
ARMS = ("dense", "dense_engram", "engram_extra", "moe", "engram")


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale, five seeds an arm; the last two arms are what is asked about.

    ``dense_engram`` and ``engram_extra`` cost more than the others, and the ledger says so. What
    happens inside is for ``mechanism``.
    """
    return StudyConfig(
        name="main",
        scale=scale_name,
        question=QUESTION,
        models=tuple(arm(name, scale, FIVE_SEEDS) for name in ARMS),
        corpus=scale.corpus,
        train=scale.train,
        evaluate=scale.evaluate,
        probe=no_probes(scale),
    )
