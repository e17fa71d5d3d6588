"""All claims by id, and which of them a study decides."""

from collections.abc import Collection, Iterable, Sequence

from engram_eval.claims.allocation import ALLOCATION
from engram_eval.claims.capacity import CAPACITY
from engram_eval.claims.claim import Claim
from engram_eval.claims.components import COMPONENTS
from engram_eval.claims.context import LENGTHS, context_claims
from engram_eval.claims.controls import CONTROLS
from engram_eval.claims.horizon import HORIZON
from engram_eval.claims.main import MAIN
from engram_eval.claims.mechanism import MECHANISM
from engram_eval.claims.memory_systems import MEMORY_SYSTEMS
from engram_eval.claims.offload import OFFLOAD
from engram_eval.claims.placement import placement_claims
from engram_eval.claims.rates import RATES
from engram_eval.claims.slots import SLOTS

BLOCKS = 4
"""Blocks of the models at ``tiny``, whose claims stand in ``CLAIMS``."""

CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claims in (
        MAIN,
        CONTROLS,
        HORIZON,
        ALLOCATION,
        SLOTS,
        placement_claims(BLOCKS),
        COMPONENTS,
        RATES,
        MECHANISM,
        context_claims(LENGTHS),
        MEMORY_SYSTEMS,
        CAPACITY,
        OFFLOAD,
    )
    for claim in claims
}

TRIMMED: dict[str, tuple[str, tuple[str, ...]]] = {
    "brief": ("main", ("dense", "moe", "engram")),
}
"""Studies that are another one with fewer arms: the claims about these arms are theirs too."""


def claims_of(study: str, models: Collection[str] = (), lengths: Sequence[int] = ()) -> list[Claim]:
    """Return the claims that a study decides, in their order; none for an unknown one.

    Args:
        study: its name.
        models: its arms, where it was run: their number may decide what a claim is about.
        lengths: of its contexts, in tokens; none means the tasks' own.
    """
    whole, arms = TRIMMED.get(study, (study, None))
    return [
        claim
        for claim in _declared(whole, models, lengths)
        if claim.study == whole and (arms is None or set(claim.arms) <= set(arms))
    ]


def _declared(study: str, models: Collection[str], lengths: Sequence[int]) -> Iterable[Claim]:
    """Return a study's claims, among others; some depend on how it was run."""
    blocks = sum(model.startswith("block_") for model in models)
    if study == "placement" and blocks:
        return placement_claims(blocks)
    if study == "context" and lengths:
        return context_claims(lengths)
    return CLAIMS.values()
