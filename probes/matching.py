"""Static against not static at equal word frequency.

What is predictable is mostly made of frequent tokens, and frequent tokens are easier for every
reason. So tokens are put into strata of equal size by their unigram frequency, and the most and
the least predictable third are taken *within* each stratum, equally many of each.
"""

from typing import NamedTuple

import numpy as np

from engram_eval.arrays import Floats, Mask

# A stratum is wide enough for its thirds to be thirds, and there are no more than make a match.
TOKENS_PER_STRATUM, MOST_STRATA = 60, 100


class Thirds(NamedTuple):
    """Which tokens are the most static (``high``) and the least static (``low``), each (n,)."""

    high: Mask
    low: Mask


def matched_thirds(surprisal_bits: Floats, unigram_bits: Floats) -> Thirds:
    """Take the least and the most surprising third within each stratum of frequency.

    Every stratum gives as many tokens to one as to the other, and fewer where ties would put
    equally surprising tokens on both sides.

    Args:
        surprisal_bits: of each token after its predecessors, (n,).
        unigram_bits: of each token by its frequency alone, (n,).
    """
    n = surprisal_bits.size
    high, low = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    strata = int(np.clip(n // TOKENS_PER_STRATUM, 1, MOST_STRATA))
    by_frequency = np.argsort(unigram_bits, kind="stable")
    for members in np.array_split(by_frequency, strata):
        ranked = members[np.argsort(surprisal_bits[members], kind="stable")]
        count = _apart(surprisal_bits[ranked])
        high[ranked[:count]] = True
        low[ranked[ranked.size - count :]] = True
    return Thirds(high, low)


def _apart(ranked: Floats) -> int:
    """Return the largest k up to a third for which the k lowest lie below the k highest."""
    count = ranked.size // 3
    apart = ranked[:count] < ranked[::-1][:count]
    # Growing k brings the two edges closer: once they meet they stay together.
    return int(apart.sum())
