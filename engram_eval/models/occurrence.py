"""The random-index control: the same hash and table, but n-grams that nobody wrote.

What a position reads must not depend on its n-gram, must use the whole table, and must be the same
in one pass, in cached decoding and beside padding. A row per position would meet the first and the
last, but read only as many rows as there are positions. So the rows hang on the *occurrence*: on
everything that has been read in the document so far. Two occurrences of an n-gram get rows that
have nothing to do with each other; the same text in the same place gets the same rows again.
"""

import torch

from .hashing import TokenHistory

# Products of two numbers below it stay within int64. x -> x^5 permutes the residues, as 5 does not
# divide MERSENNE - 1.
MERSENNE = 2**31 - 1


def scramble(x: torch.Tensor) -> torch.Tensor:
    """Return ``x^5`` modulo 2^31 - 1, of any shape: a permutation that leaves no trace of order."""
    x = x % MERSENNE
    fourth = (x * x % MERSENNE) ** 2 % MERSENNE
    return fourth * x % MERSENNE


class OccurrenceHistory(TokenHistory):
    """Gives each position pseudo-random ids, drawn by all that came before in its document."""

    def forward(self, ids: torch.Tensor, new: int) -> torch.Tensor:
        """Draw the ids that the last ``new`` positions of ``ids`` (B, S; -1 = absent) hash.

        Returns:
            (N, B, new) compressed ids, as :class:`TokenHistory` does.
        """
        self.check()
        occurrence = self.occurrences(ids)[:, -new:]
        size = len(self.compressed_ids)
        draws = [scramble(occurrence + scramble_step(k)) % size for k in range(self.length)]
        return self.compressed_ids[torch.stack(draws)]

    def occurrences(self, ids: torch.Tensor) -> torch.Tensor:
        """Number each position of ``ids`` (B, S) by its document up to and with itself, (B, S).

        The number is the sum over the document's tokens of (id + 1) times a factor that belongs to
        the place, modulo 2^31 - 1.
        """
        absent = ids < 0
        ends = absent if self.boundary_id is None else absent | (ids == self.boundary_id)
        starts = torch.nn.functional.pad(ends[:, :-1], (1, 0), value=True)
        here = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        first = torch.where(starts, here, 0).cummax(dim=1).values
        terms = (ids + 1) * scramble(here - first + 1) % MERSENNE
        sums = terms.cumsum(dim=1)
        return (sums - (sums - terms).gather(1, first)) % MERSENNE


def scramble_step(number: int) -> int:
    """Return the shift that makes the ``number``-th draw differ from the others."""
    return 1 + 1_000_003 * number
