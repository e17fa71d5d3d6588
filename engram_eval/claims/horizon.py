"""Claims of ``horizon``: does the gap between MoE and Engram vanish with tokens, or with size?

The study trains the pair at 1, 4 and 16 times some number of tokens, and at three widths. Arms are
trained differently, so each contrast has its own spread (``paired``).
"""

import math
from collections.abc import Mapping

from engram_eval.analysis.contrasts import slope_weights
from engram_eval.claims.claim import Declare, Rows, Score, less_than
from engram_eval.studies.horizon import TOKENS, WIDTHS

RELATIVE = Score(((1.0, Rows()),), log=True, unit="relative gap per doubling")
PER_DOUBLING = Score(((1.0, Rows()),), unit="bit/byte per doubling")

_claim = Declare("horizon.", 0.01, "paired")


def _shrinking_gap(axis: Mapping[str, float]) -> dict[str, float]:
    """Return minus the slope of (MoE - Engram) over the logarithm of an axis, to base 2."""
    slope = slope_weights({arm: math.log2(x) for arm, x in axis.items()})
    worse = {f"moe_{arm}": -weight for arm, weight in slope.items()}
    return worse | {f"engram_{arm}": weight for arm, weight in slope.items()}


OVER_TOKENS = {"minus the slope over tokens": _shrinking_gap(TOKENS)}
OVER_WIDTH = {"minus the slope over width": _shrinking_gap(dict(WIDTHS))}

HORIZON = (
    _claim(
        "gap_at_16x",
        "Engram still leads the MoE after sixteen times the tokens",
        "arXiv:2601.07372 Table 1",
        "0.012 nats after 262 B tokens",
        less_than("engram_16x", "moe_16x"),
    ),
    _claim(
        "vanishes_with_tokens",
        "The gap between Engram and the MoE shrinks as tokens grow",
        "arXiv:2609.35578 (FactorEngram)",
        "gone at 1 B parameters and 120 B tokens: perplexity 15.57 against 15.60",
        OVER_TOKENS,
        PER_DOUBLING,
        0.005,
    ),
    _claim(
        "relative_gap_vanishes",
        "The gap shrinks even as a share of the loss",
        "karpathy/nanochat log, January 2026",
        "a slight gain that vanishes at depth 25",
        OVER_TOKENS,
        RELATIVE,
        0.0025,
    ),
    _claim(
        "vanishes_with_size",
        "The gap between Engram and the MoE shrinks as models get wider",
        "arXiv:2609.35578 (FactorEngram)",
        "perplexity 22.29 against 23.19 at 340 M, equal at 1 B",
        OVER_WIDTH,
        PER_DOUBLING,
    ),
    _claim(
        "persists_with_size",
        "The gap, as a share of the loss, stays as it is when models get wider",
        "arXiv:2601.07372 Fig. 3",
        "0.0137 nats at 2e20 and 0.0153 at 6e20 training FLOPs",
        OVER_WIDTH,
        RELATIVE,
        prediction="equal",
    ),
)
