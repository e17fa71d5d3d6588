"""What changes inside? Lenses, knock-outs and a price in blocks for the main pair, over seeds."""

import dataclasses

from engram_eval.config import StudyConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import FIVE_SEEDS, THREE_SEEDS, arm

QUESTION = (
    "Does the memory take static patterns off the early layers, and what comes to rely on it?"
)
PROBES = (
    *("logit_lens", "tuned_lens", "linear", "knockout", "task_knockout"),
    *("offsets", "depth", "cka", "gates"),
)
DEEPER = ("moe_plus1", "moe_plus2", "moe_plus4")
CONTROLS = ("frozen_rows", "bigram")


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale: the main pair in five seeds, which ``main`` trains too.

    Three kinds of controls. ``engram_late``: what its lens shows before its memory is no work of
    memory. ``frozen_rows`` and ``bigram``: only what exceeds both speaks for offloading. MoEs with
    more blocks: what a memory is worth in layers.
    """
    pair = tuple(arm(name, scale, FIVE_SEEDS) for name in ("moe", "engram_late", "engram"))
    beside = tuple(arm(name, scale, THREE_SEEDS) for name in (*DEEPER, *CONTROLS))
    return StudyConfig(
        name="mechanism",
        scale=scale_name,
        question=QUESTION,
        models=(*beside, *pair),
        corpus=scale.corpus,
        train=scale.train,
        evaluate=scale.evaluate,
        probe=dataclasses.replace(scale.probe, probes=PROBES),
    )
