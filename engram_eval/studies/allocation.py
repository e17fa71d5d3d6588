"""How should a fixed sparse budget be shared between experts and a table?"""

from engram_eval.config import StudyConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import THREE_SEEDS, allocation_arm, study_of_losses

QUESTION = "At equal cost, which share of the sparse parameters should experts keep?"

SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4)
"""The points of arXiv:2601.07372 Fig. 3, left."""


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale: every share in three seeds, experts fine enough to move it."""
    return study_of_losses(
        "allocation",
        QUESTION,
        tuple(allocation_arm(rho, scale, THREE_SEEDS) for rho in SHARES),
        scale,
        scale_name,
    )
