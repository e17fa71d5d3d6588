"""All claims by id, and which of them a study decides."""

from engram_eval.claims.allocation import ALLOCATION
from engram_eval.claims.capacity import CAPACITY
from engram_eval.claims.claim import Claim
from engram_eval.claims.components import COMPONENTS
from engram_eval.claims.context import CONTEXT
from engram_eval.claims.controls import CONTROLS
from engram_eval.claims.horizon import HORIZON
from engram_eval.claims.main import MAIN
from engram_eval.claims.mechanism import MECHANISM
from engram_eval.claims.memory_systems import MEMORY_SYSTEMS
from engram_eval.claims.offload import OFFLOAD
from engram_eval.claims.placement import PLACEMENT
from engram_eval.claims.slots import SLOTS

CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for claims in (
        MAIN,
        CONTROLS,
        HORIZON,
        ALLOCATION,
        SLOTS,
        PLACEMENT,
        COMPONENTS,
        MECHANISM,
        CONTEXT,
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


def claims_of(study: str) -> list[Claim]:
    """Return the claims that a study decides, in their order; none for an unknown one."""
    whole, arms = TRIMMED.get(study, (study, None))
    return [
        claim
        for claim in CLAIMS.values()
        if claim.study == whole and (arms is None or set(claim.arms) <= set(arms))
    ]
