"""What else stores text: n-gram models and caches beside the model, learned keys inside it."""

import dataclasses

from engram_eval.config import StudyConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import FIVE_SEEDS, THREE_SEEDS, arm

QUESTION = "Does the memory buy more inside the model than a cheaper memory beside it?"
BESIDE = ("ngram", "cache")


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale: the main pair, alone and with each memory beside it.

    ``product_key`` is the learned memory of equal cost. The pair is trained by ``main`` too.
    """
    pair = tuple(arm(name, scale, FIVE_SEEDS) for name in ("moe", "engram"))
    around = [f"{model.name}+{memory}" for memory in BESIDE for model in pair]
    return StudyConfig(
        name="memory-systems",
        scale=scale_name,
        question=QUESTION,
        models=(arm("product_key", scale, THREE_SEEDS), *pair),
        corpus=scale.corpus,
        train=scale.train,
        evaluate=scale.evaluate,
        probe=dataclasses.replace(scale.probe, probes=()),
        baselines=(*BESIDE, *around),
    )
