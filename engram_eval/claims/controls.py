"""Claims of ``controls``: is it the n-grams, or would something simpler do?"""

from engram_eval.claims.claim import Declare, less_than

SMALLEST = 0.01
"""Bits per byte; see ``main``."""

SUITE = "this suite's control"
NONE = "not published"

_claim = Declare("controls.", SMALLEST)

CONTROLS = (
    _claim(
        "capacity_one",
        "A table of one row per head does about as well as the whole table",
        "deepseek-ai/Engram issue 24",
        "a reported experiment without figures",
        less_than("engram", "capacity_one"),
        prediction="equal",
    ),
    _claim(
        "capacity_one_experts_removed",
        "The memory beats a table of one row that gives no parameters back to the experts",
        "arXiv:2601.07372 section 3",
        "the gain is the memory's, not that of fewer experts",
        less_than("engram", "capacity_one_bare"),
    ),
    _claim(
        "one_row_adds_nothing",
        "A table of one row per head is worth as much as the experts that pay for it, not more",
        SUITE,
        NONE,
        less_than("capacity_one", "moe"),
        prediction="equal",
    ),
    _claim(
        "random_index",
        "Rows of n-grams that were written beat rows that are read at random",
        SUITE,
        NONE,
        less_than("engram", "random_index"),
    ),
    _claim(
        "random_index_adds_nothing",
        "Rows that are read at random are worth as much as the experts that pay for them, not more",
        SUITE,
        NONE,
        less_than("random_index", "moe"),
        prediction="equal",
    ),
    _claim(
        "trained_rows",
        "Trained rows beat random rows that are never trained",
        "arXiv:2608.17050",
        "a frozen memory is not enough: 38.5 against 34.6",
        less_than("engram", "frozen_rows"),
    ),
    _claim(
        "frozen_rows",
        "Random rows that are never trained still beat the experts that pay for them",
        SUITE,
        NONE,
        less_than("frozen_rows", "moe"),
    ),
    _claim(
        "collisions",
        "Rows without collisions make no difference",
        "arXiv:2601.16531 (Engram-Nine)",
        "4.4799 +- 0.012 against 4.4809 +- 0.008 nats",
        less_than("collision_free", "engram"),
        prediction="equal",
    ),
    _claim(
        "bigram",
        "A plain table of bigrams does better than the gated memory",
        "arXiv:2609.15126 (MoME)",
        "bits per byte: plain bigrams beat a port of Engram",
        less_than("bigram", "engram"),
    ),
    _claim(
        "over_encoding",
        "The memory inside the model beats n-grams averaged into its input",
        "arXiv:2601.07372 Fig. 3",
        "1.7678 against 1.7820 nats at equal slots",
        less_than("engram", "over_encoding"),
    ),
)
