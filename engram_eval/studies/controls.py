"""What the memory must beat to be more than added capacity, a hash, or a bigram table."""

import dataclasses

from engram_eval.config import ModelSpec, StudyConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import FIVE_SEEDS, THREE_SEEDS, arm, no_probes

QUESTION = (
    "Is it the n-grams that help, or would as many rows do with nothing in them, at random places, "
    "untrained, or as a plain bigram table?"
)
CONTROLS = (
    "capacity_one",
    "random_index",
    "frozen_rows",
    "collision_free",
    "bigram",
    "over_encoding",
)


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale: each control three times, all at the cost of the MoE.

    ``capacity_one_bare`` alone is cheaper: it has the experts of ``engram`` and no table, while
    ``capacity_one`` gives the table's parameters back to the experts.
    """
    pair = tuple(arm(name, scale, FIVE_SEEDS) for name in ("moe", "engram"))
    controls = tuple(arm(name, scale, THREE_SEEDS) for name in CONTROLS)
    return StudyConfig(
        name="controls",
        scale=scale_name,
        question=QUESTION,
        models=(*pair, _bare(scale), *controls),
        corpus=scale.corpus,
        train=scale.train,
        evaluate=scale.evaluate,
        probe=no_probes(scale),
    )


def _bare(scale: Scale) -> ModelSpec:
    control = arm("capacity_one", scale, THREE_SEEDS, label="capacity_one_bare")
    return dataclasses.replace(control, match=None)
