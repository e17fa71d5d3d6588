"""Claims of ``rates``: what of Engram's lead is left where token embeddings learn as fast as rows.

Arms are trained differently, so each contrast has its own spread (``paired``).
"""

from engram_eval.claims.claim import Declare, less_than

SUITE = "this suite's control"
RECIPE = "rows at five times the backbone's rate, embeddings at the backbone's"
SMALLEST = 0.01
"""Bits per byte, as for the lead itself in ``main``."""

_claim = Declare("rates.", SMALLEST, "paired")


def _lead(label: str) -> dict[str, float]:
    return {f"moe_{label}": 1.0, f"engram_{label}": -1.0}


RATES = (
    _claim(
        "as_published",
        "Engram leads the MoE where rows learn five times as fast as token embeddings",
        "arXiv:2601.07372 App. A",
        RECIPE,
        less_than("engram_1x", "moe_1x"),
    ),
    *(
        _claim(
            f"equal_{label}",
            f"Engram leads the MoE where both rows and token embeddings learn {label[:-1]} times "
            "as fast as the backbone",
            SUITE,
            "not published",
            less_than(f"engram_{label}", f"moe_{label}"),
        )
        for label in ("5x", "25x", "125x")
    ),
    _claim(
        "lead_is_not_of_rates",
        "Engram's lead is as large where token embeddings learn as fast as rows, at 25 times",
        SUITE,
        "not published",
        {
            "lead at 1x - lead at 25x": {
                **_lead("1x"),
                **{arm: -weight for arm, weight in _lead("25x").items()},
            }
        },
        prediction="equal",
    ),
    _claim(
        "moe_with_fast_embeddings",
        "Engram as published leads a MoE whose token embeddings learn 25 times as fast",
        SUITE,
        "not published",
        less_than("engram_1x", "moe_25x"),
    ),
    _claim(
        "moe_over_dense",
        "The MoE beats its dense twin where token embeddings learn 25 times as fast",
        "arXiv:2601.07372 Table 1",
        "validation loss 1.634 against 1.768 nats",
        less_than("moe_25x", "dense_25x"),
    ),
)
