"""Claims of ``allocation``: the U-shape over the experts' share rho, and how steep its ends are."""

from engram_eval.claims.claim import Declare, less_than
from engram_eval.studies.allocation import SHARES

FIGURE = "arXiv:2601.07372 Fig. 3 left"
SMALLEST = 0.01
"""Bits per byte; the paper's whole gain is 0.8 % of its loss."""

MIDDLE = {f"rho_{rho}": 1 / 3 for rho in (85, 80, 75)}
AXIS = {f"rho_{rho * 100:g}": rho for rho in SHARES}

_claim = Declare("allocation.", SMALLEST)


def _above_middle(arm: str) -> dict[str, float]:
    return {arm: 1.0, **{name: -weight for name, weight in MIDDLE.items()}}


ALLOCATION = (
    _claim(
        "u_shape",
        "The loss over the experts' share is U-shaped: both ends lie above the middle",
        FIGURE,
        "1.7248 at rho 100 %, 1.7109 at 80 %, 1.7247 at 40 %",
        {
            "rho 100 % - middle": _above_middle("rho_100"),
            "rho 40 % - middle": _above_middle("rho_40"),
        },
        axis=AXIS,
    ),
    _claim(
        "some_memory",
        "A fifth of the sparse parameters serves better in a table than in experts",
        FIGURE,
        "1.7109 at rho 80 % against 1.7248 nats",
        {"rho 100 % - middle": _above_middle("rho_100")},
    ),
    _claim(
        "first_share_buys_most",
        "The first 5 % of the budget buys more than half of the gain",
        FIGURE,
        "66 to 77 % of the best gain",
        {
            "gain of the first 5 % - half the gain of the middle": {
                "rho_100": 0.5,
                "rho_95": -1.0,
                **{name: weight / 2 for name, weight in MIDDLE.items()},
            }
        },
    ),
    _claim(
        "far_end",
        "With 40 % of the budget in experts the loss is the same as with all of it",
        FIGURE,
        "1.7247 against 1.7248 nats",
        less_than("rho_40", "rho_100"),
        prediction="equal",
    ),
    _claim(
        "half_is_too_much",
        "Half of the budget in a table is worse than a quarter",
        "arXiv:2608.30320 (Qwen3.8-Flash-Next)",
        "1.201 against 1.197 nats",
        less_than("rho_75", "rho_50"),
    ),
)
