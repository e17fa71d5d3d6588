"""All claims by id, and which of them a study decides."""

from engram_eval.claims.claim import Claim
from engram_eval.claims.controls import CONTROLS
from engram_eval.claims.horizon import HORIZON
from engram_eval.claims.main import MAIN

CLAIMS: dict[str, Claim] = {claim.id: claim for claim in (*MAIN, *CONTROLS, *HORIZON)}

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
