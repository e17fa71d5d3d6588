"""Variants as arms of a study: each matched in cost to one of them."""

from engram_eval.config import ModelSpec
from engram_eval.scales import Scale
from engram_eval.variants import find_variant

BASELINE = "moe"


def arm(name: str, scale: Scale, seeds: tuple[int, ...] = (0, 1)) -> ModelSpec:
    """Return a variant at a scale, to be matched to ``moe`` unless it has a cost of its own.

    Raises:
        UserError: there is no variant of that name.
    """
    variant = find_variant(name)
    match = BASELINE if variant.matched and name != BASELINE else None
    return ModelSpec(name, variant.architecture(scale), seeds=seeds, match=match)
