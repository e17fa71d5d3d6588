"""Where should the memory stand? One module at each depth, and two of half the size."""

from engram_eval.config import ModelSpec, StudyConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import BASELINE, THREE_SEEDS, arm, study_of_losses
from engram_eval.variants import engram

QUESTION = "Does it matter at which depth the memory stands, and are two modules better than one?"


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale, three seeds an arm, all at the cost of the MoE."""
    arms = [arm(BASELINE, scale, THREE_SEEDS)]
    arms += [_at(f"block_{block}", scale, block) for block in depths(scale)]
    arms.append(_at("two_modules", scale, 1, early_and_late(scale)))
    return study_of_losses("placement", QUESTION, tuple(arms), scale, scale_name)


def depths(scale: Scale) -> list[int]:
    """Return the blocks that are tried: every one, 0-based."""
    return list(range(scale.backbone["num_hidden_layers"]))


def early_and_late(scale: Scale) -> int:
    """Return the second block of two modules: half-way down, as in arXiv:2601.07372 Fig. 5."""
    return int(scale.backbone["num_hidden_layers"]) // 2


def _at(name: str, scale: Scale, *blocks: int) -> ModelSpec:
    architecture = engram(scale, engram_layers=sorted(set(blocks)))
    return ModelSpec(name, architecture, THREE_SEEDS, match=BASELINE)
