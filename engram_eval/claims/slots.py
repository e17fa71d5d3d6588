"""Claims of ``slots``: how the loss falls with the table's rows, and beside its relatives."""

import math

from engram_eval.analysis.contrasts import slope_weights
from engram_eval.claims.claim import Declare, Rows, Score, less_than
from engram_eval.studies.slots import RELATIVES, ROWS

FIGURE = "arXiv:2601.07372 Fig. 3 right"
SMALLEST = 0.01
PER_DECADE = Score(((1.0, Rows()),), unit="bit/byte per decade")

DECADES = {f"engram_{name}": math.log10(factor) for name, factor in ROWS.items()}
FALL = {arm: -weight for arm, weight in slope_weights(DECADES).items()}

_claim = Declare("slots.", SMALLEST)


def _mean_gain(relative: str) -> dict[str, float]:
    share = 1 / len(RELATIVES)
    worse = {f"{relative}_{name}": share for name in RELATIVES}
    return worse | {f"engram_{name}": -share for name in RELATIVES}


SLOTS = (
    _claim(
        "more_rows",
        "The loss falls as rows grow, on average over the decades",
        FIGURE,
        "0.0284 nats per decade",
        {"fall per decade": FALL},
        PER_DECADE,
        axis=DECADES,
    ),
    _claim(
        "no_saturation",
        "The last decade of rows buys as much as an earlier one: the fall is log-linear",
        FIGURE,
        "a straight line over 1.6 decades, R2 0.994",
        {
            "1x to 10x - 10x to 100x": {
                "engram_1x": 1.0,
                "engram_10x": -2.0,
                "engram_100x": 1.0,
            }
        },
        prediction="equal",
    ),
    _claim(
        "saturates",
        "Each further decade of rows buys less: the fall saturates",
        "arXiv:2608.30320 (Qwen3.8-Flash-Next)",
        "with 20, 50, 100 and 200 times the rows MMLU 64.1, 64.7, 64.7 and 64.9, GSM8K 65.1, 64.0, "
        "63.1 and 63.0; the loss itself falls on by 0.030, 0.023 and 0.027 nats per decade",
        {
            "0.1x to 1x - 1x to 10x": {
                "engram_0.1x": 1.0,
                "engram_1x": -2.0,
                "engram_10x": 1.0,
            },
            "1x to 10x - 10x to 100x": {
                "engram_1x": 1.0,
                "engram_10x": -2.0,
                "engram_100x": 1.0,
            },
        },
    ),
    _claim(
        "small_table",
        "A tenth of the rows gives more than half of what all of them gain over a single row",
        "this suite's control",
        "not published; a fifth gives 49 %: 1.8082, 1.7883 and 1.7678 nats without a table, with "
        f"a fifth of the rows and with all ({FIGURE})",
        {
            "gain of a tenth - half the gain": {
                "engram_one_row": 0.5,
                "engram_0.1x": -1.0,
                "engram_1x": 0.5,
            }
        },
    ),
    _claim(
        "over_encoding",
        "At equal table size the memory beats n-grams averaged into the input",
        FIGURE,
        "0.010 to 0.017 nats better",
        {"OverEncoding - Engram, mean over sizes": _mean_gain("over_encoding")},
    ),
    _claim(
        "bigram",
        "At equal table size the memory beats a plain table of bigrams",
        "openai/parameter-golf #1369 (doubts it)",
        "a gated 2-, 3- and 4-gram memory loses to plain bigrams",
        {"bigrams - Engram, mean over sizes": _mean_gain("bigram")},
    ),
    _claim(
        "hundredfold",
        "A hundred times the rows still lower the loss",
        "AutoArk TinyEngram (doubts it)",
        "a larger table is not better",
        less_than("engram_100x", "engram_1x"),
    ),
)
