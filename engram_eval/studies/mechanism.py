"""What changes inside? The lenses and knock-outs on the main pair, over seeds."""

import dataclasses

from engram_eval.config import StudyConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import FIVE_SEEDS, arm

QUESTION = (
    "Does the memory take static patterns off the early layers, and what comes to rely on it?"
)
PROBES = ("logit_lens", "linear", "knockout", "cka")


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale: the main pair in five seeds, which ``main`` trains too.

    ``engram_late`` is the control: what its lens shows before its memory is no work of memory.
    """
    return StudyConfig(
        name="mechanism",
        scale=scale_name,
        question=QUESTION,
        models=tuple(arm(name, scale, FIVE_SEEDS) for name in ("moe", "engram_late", "engram")),
        corpus=scale.corpus,
        train=scale.train,
        evaluate=scale.evaluate,
        probe=dataclasses.replace(scale.probe, probes=PROBES),
    )
