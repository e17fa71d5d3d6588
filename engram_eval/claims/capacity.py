"""Claims of ``capacity``: how many bits of facts are stored, by what, and as people grow.

All facts are told 100 times, whatever their number. Arms of different numbers of people read
different texts for different times, so each contrast has its own spread (``paired``).
"""

import math

from engram_eval.analysis.contrasts import slope_weights
from engram_eval.claims.claim import Declare, Rows, Score, more_than
from engram_eval.studies.capacity import PEOPLE

LAWS = "arXiv:2404.05405"
OURS = "this suite's control"
NONE = "not published"

STEPS = "so that the slope over people, who are told in as many more steps, is one over steps"
"""People and steps grow together: who has not begun to learn says nothing of how many there are."""

SMALLEST = 0.02
"""Share of the facts' bits: one fact in fifty."""
SMALLEST_SLOPE = 0.01
"""Per doubling of the people; over the four doublings that is twice ``SMALLEST``."""

FEWEST = min(PEOPLE, key=lambda label: PEOPLE[label])
MOST = max(PEOPLE, key=lambda label: PEOPLE[label])
DOUBLINGS = {label: math.log2(times) for label, times in PEOPLE.items()}


def _share(wording: str = "trained", unit: str = "share of the facts' bits") -> Score:
    return Score(((1.0, Rows("capacity", "stored_share", {"wording": wording})),), unit=unit)


PER_DOUBLING = _share(unit="share of the facts' bits per doubling")
PER_PARAMETER = Score(
    ((1.0, Rows("capacity", "bits_per_parameter", {"wording": "trained"})),),
    log=True,
    unit="relative difference",
)


def _slope(*signed: tuple[float, str]) -> dict[str, float]:
    """Return the slope over doublings of the people, of a weighted sum of architectures."""
    slope = slope_weights(DOUBLINGS)
    return {f"{name}_{k}": sign * weight for sign, name in signed for k, weight in slope.items()}


_claim = Declare("capacity.", SMALLEST, "paired")


def _more(better: str, worse: str) -> dict[str, dict[str, float]]:
    """Return the contrast that is positive where ``better`` stores more, of most people."""
    return more_than(f"{better}_{MOST}", f"{worse}_{MOST}")


CAPACITY = (
    _claim(
        "memory_stores_more",
        "At equal parameters Engram stores more of the facts than the MoE",
        "arXiv:2601.07372 Table 1",
        "TriviaQA 50.7 against 48.8, PopQA 19.4 against 19.2",
        _more("engram", "moe"),
        _share(),
    ),
    _claim(
        "memory_stores_more_in_other_words",
        "It leads as well where facts are asked for in a wording that was never told",
        OURS,
        NONE,
        _more("engram", "moe"),
        _share("held_out"),
    ),
    _claim(
        "experts_store_more",
        "At equal FLOPs a MoE stores more of the facts than its dense twin",
        f"{LAWS} (MoE)",
        "32 experts: 1.3 times less per parameter, of which 8.8 % are in use",
        _more("moe", "dense"),
        _share(),
    ),
    _claim(
        "dense_stores_more_per_parameter",
        "Per parameter a dense model stores more than a MoE",
        f"{LAWS} (MoE)",
        "1.3 times more than 32 experts after 1,000 exposures, 1.5 times after 100; at tiny most "
        "of it is that the MoE has 1.7 times the parameters",
        _more("dense", "moe"),
        PER_PARAMETER,
        0.1,
    ),
    _claim(
        "far_below_capacity",
        "Far below one bit per parameter, what is remembered of each person does not depend on how "
        "many there are",
        f"{LAWS} (1 bit a parameter after 100 exposures, 2 after 1,000)",
        "up to there all facts are stored, however many",
        {"slope of dense over people": _slope((1.0, "dense"))},
        PER_DOUBLING,
        SMALLEST_SLOPE,
        "equal",
        positive=(f"dense_{FEWEST}",),
        unless_positive=STEPS,
    ),
    _claim(
        "memory_counts_more_with_more_people",
        "The more people there are, the more a memory adds to what is stored",
        "arXiv:2601.07372 section 1",
        "static knowledge goes to the table; no figure over the number of facts",
        {"slope of (Engram - MoE) over people": _slope((1.0, "engram"), (-1.0, "moe"))},
        PER_DOUBLING,
        SMALLEST_SLOPE,
        positive=(f"engram_{FEWEST}", f"moe_{FEWEST}"),
        unless_positive=STEPS,
    ),
)
