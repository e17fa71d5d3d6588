"""Claims of ``context``: what the memory does for text that only the context can tell.

All are about bits per byte of the right answer; accuracies of models this small are near chance.
"""

from collections.abc import Sequence

from engram_eval.claims.claim import Claim, Declare, Rows, Score, less_than, more_than
from engram_eval.records import EQUAL_LOSS

TABLE = "arXiv:2601.07372 Table 2"
SMALLEST = 0.05
"""Bits per byte of an answer, about one point in twenty of what guessing among four costs."""

LENGTHS = (128, 256, 512)
"""Tokens of the tasks' contexts where a study names none."""


def _cost(task: str, condition: str | None = None, **labels: str) -> Rows:
    return Rows(task, "bits_per_byte", {"domain": "context", **labels}, condition)


_claim = Declare("context.", SMALLEST)


def _one(rows: Rows) -> Score:
    return Score(((1.0, rows),))


def _difference(more: Rows, less: Rows) -> Score:
    return Score(((1.0, more), (-1.0, less)))


LOWER = less_than("engram", "moe")
LARGER = more_than("engram", "moe")
NOT_PUBLISHED = "not published"
OURS = "this suite's control"


def context_claims(lengths: Sequence[int]) -> tuple[Claim, ...]:
    """Return the claims of a study of these lengths; the longest is set against the shortest."""
    ends = max(lengths), min(lengths)
    return (
        _claim(
            "recall",
            "Engram is better at looking up which value went with which key",
            "arXiv:2601.07372 section 6",
            "attention is left for what is far away; no figure for associative recall",
            LOWER,
            _one(_cost("long_recall")),
        ),
        _claim(
            "recall_at_equal_loss",
            "Engram is better at it even where its loss is no lower than the MoE's",
            TABLE,
            "97.0 against 84.2 on multi-query needles at equal loss",
            LOWER,
            _one(_cost("long_recall", EQUAL_LOSS)),
        ),
        _claim(
            "many_needles",
            "Engram is better at finding several needles at once",
            TABLE,
            "multi-query needles 97.0 against 84.2",
            LOWER,
            _one(_cost("needle_multiquery", asked="several")),
        ),
        _claim(
            "many_needles_at_equal_loss",
            "Engram is better at several needles even where its loss is no lower than the MoE's",
            TABLE,
            "97.0 against 84.2 at equal loss",
            LOWER,
            _one(_cost("needle_multiquery", EQUAL_LOSS, asked="several")),
        ),
        _claim(
            "one_needle",
            "For a single needle the memory makes no difference",
            TABLE,
            "99.3 against 100.0",
            LOWER,
            _one(_cost("needle_single")),
            prediction="equal",
        ),
        _claim(
            "variable_tracking",
            "Engram is better at following assignments",
            TABLE,
            "89.0 against 77.0",
            LOWER,
            _one(_cost("variable_tracking")),
        ),
        _claim(
            "longer",
            "What the memory gains in looking up grows with the length of the context",
            "arXiv:2601.07372 section 6",
            NOT_PUBLISHED,
            LOWER,
            _difference(*(_cost("long_recall", length=str(end)) for end in ends)),
        ),
        _claim(
            "static_at_first_sight",
            "Fragments of the training text cost less at first sight",
            OURS,
            NOT_PUBLISHED,
            LOWER,
            _one(_cost("repeated_fragments", repeat="static 1")),
        ),
        _claim(
            "fresh_at_first_sight",
            "The same words in another order cost the same: only what was read before is stored",
            OURS,
            NOT_PUBLISHED,
            LOWER,
            _one(_cost("repeated_fragments", repeat="fresh 1")),
            prediction="equal",
        ),
        _claim(
            "copying",
            "A second occurrence of words in a new order saves more in Engram: it copies better",
            "arXiv:2601.07372 section 6",
            NOT_PUBLISHED,
            LARGER,
            _difference(
                _cost("repeated_fragments", repeat="fresh 1"),
                _cost("repeated_fragments", repeat="fresh 2"),
            ),
        ),
    )
