"""Variants as arms of a study: each matched in cost to one of them."""

from engram_eval.allocation import experts_kept
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


def allocation_arm(rho: float, scale: Scale, seeds: tuple[int, ...] = (0, 1)) -> ModelSpec:
    """Return the arm ``rho_75`` (for 0.75) of an allocation study; ``rho_100`` must be one too.

    All idle parameters of ``rho_100``, a mixture of fine experts, are shared: ``rho`` stays with
    the experts, the rest is a memory's table. The study's solver finds rows and widths.

    Raises:
        UserError: ``rho`` is not between 0 and 1.
    """
    moe = {**scale.backbone, **scale.fine_experts}
    kept = experts_kept(moe, rho)
    name = f"rho_{rho * 100:g}"
    if kept == moe["n_routed_experts"]:
        return ModelSpec(name, moe, seeds=seeds)
    architecture = {**moe, **scale.memory, "n_routed_experts": kept}
    return ModelSpec(name, architecture, seeds=seeds, match="rho_100")
