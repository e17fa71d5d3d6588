"""Claims of ``controls``: is it the n-grams, or would something simpler do?"""

from engram_eval.claims.claim import Claim, Prediction, less_than

SMALLEST = 0.01
"""Bits per byte; see ``main``."""


def _control(
    name: str,
    sentence: str,
    source: str,
    published: str,
    better: str,
    worse: str,
    prediction: Prediction = "greater",
) -> Claim:
    contrast = less_than(better, worse)
    return Claim(
        f"controls.{name}",
        "controls",
        sentence,
        source,
        published,
        contrast,
        SMALLEST,
        prediction=prediction,
    )


SUITE = "this suite's control"
NONE = "not published"

CONTROLS = (
    _control(
        "capacity_one",
        "A table of one row per head does about as well as the whole table",
        "deepseek-ai/Engram issue 24",
        "a reported experiment without figures",
        "engram",
        "capacity_one",
        "equal",
    ),
    _control(
        "capacity_one_experts_removed",
        "The memory beats a table of one row that gives no parameters back to the experts",
        "arXiv:2601.07372 section 3",
        "the gain is the memory's, not that of fewer experts",
        "engram",
        "capacity_one_bare",
    ),
    _control(
        "one_row_adds_nothing",
        "A table of one row per head is worth no more than the experts that pay for it",
        SUITE,
        NONE,
        "capacity_one",
        "moe",
        "equal",
    ),
    _control(
        "random_index",
        "Rows of n-grams that were written beat rows that are read at random",
        SUITE,
        NONE,
        "engram",
        "random_index",
    ),
    _control(
        "random_index_adds_nothing",
        "Rows that are read at random are worth no more than the experts that pay for them",
        SUITE,
        NONE,
        "random_index",
        "moe",
        "equal",
    ),
    _control(
        "trained_rows",
        "Trained rows beat random rows that are never trained",
        "arXiv:2608.17050",
        "a frozen memory is not enough: 38.5 against 34.6",
        "engram",
        "frozen_rows",
    ),
    _control(
        "frozen_rows",
        "Random rows that are never trained still beat the experts that pay for them",
        SUITE,
        NONE,
        "frozen_rows",
        "moe",
    ),
    _control(
        "collisions",
        "Rows without collisions gain nothing",
        "arXiv:2601.16531 (Engram-Nine)",
        "4.4799 +- 0.012 against 4.4809 +- 0.008 nats",
        "collision_free",
        "engram",
        "equal",
    ),
    _control(
        "bigram",
        "A plain table of bigrams does better than the gated memory",
        "arXiv:2609.15126 (MoME)",
        "bits per byte: plain bigrams beat a port of Engram",
        "bigram",
        "engram",
    ),
    _control(
        "over_encoding",
        "The memory inside the model beats n-grams averaged into its input",
        "arXiv:2601.07372 Fig. 3",
        "1.7678 against 1.7820 nats at equal slots",
        "engram",
        "over_encoding",
    ),
)
