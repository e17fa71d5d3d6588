"""What does it cost to keep the table elsewhere than the model?"""

import dataclasses

from engram_eval.config import OffloadConfig, StudyConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import no_probes

QUESTION = "How much throughput is lost where the table lies in host memory, or on disk?"
REPEATS = 5
TABLES = OffloadConfig().tables
SECONDS = {"smoke": 2.0}
"""Of one measurement, where the default would be longer than anything else at that scale."""


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale: nothing is trained, since what rows hold costs no time.

    Every measurement takes all storages in turn, on the scale's own table and on larger ones. The
    numbers are about this machine as much as about the storages.
    """
    seconds = SECONDS.get(scale_name, OffloadConfig().seconds)
    return StudyConfig(
        name="offload",
        scale=scale_name,
        question=QUESTION,
        models=(),
        corpus=scale.corpus,
        train=scale.train,
        evaluate=dataclasses.replace(scale.evaluate, tasks=(), heldout=False),
        probe=no_probes(scale),
        baselines=(),
        offload=OffloadConfig(REPEATS, TABLES, seconds),
    )
