"""What does the memory do for the context: looking up, needles, and fragments that come back?"""

import dataclasses

from engram_eval.config import StudyConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import FIVE_SEEDS, arm, no_probes

QUESTION = "Does the memory free the model for its context, or only hold what it has read before?"
TASKS = ("long_context",)

OWN_LENGTH = 256
"""Of the training sequences that the tasks' own lengths (half, all and twice of it) are made for;
much shorter contexts would not hold the questions."""


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale: the main pair, which ``main`` trains too, on long contexts.

    Lengths go up to twice what the models were trained on, or farther. Scores stand at equal
    compute, and at equal loss too: Engram's at the checkpoint that is as good as the MoE at its
    end.
    """
    return StudyConfig(
        name="context",
        scale=scale_name,
        question=QUESTION,
        models=tuple(arm(name, scale, FIVE_SEEDS) for name in ("moe", "engram")),
        corpus=scale.corpus,
        train=scale.train,
        evaluate=dataclasses.replace(
            scale.evaluate, tasks=TASKS, lengths=lengths(scale.train.seq_len)
        ),
        probe=no_probes(scale),
        baselines=(),
        scores_at_equal_loss=True,
    )


def lengths(trained: int) -> tuple[int, ...]:
    """Return the contexts' tokens for models that were trained on so many; none: the tasks' own."""
    return () if trained <= OWN_LENGTH else (trained // 2, trained, 2 * trained)
