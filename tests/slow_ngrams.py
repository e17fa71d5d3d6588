"""N-grams as a text-book has them: dictionaries and one formula, no code shared with ours."""

import math
from collections import Counter


def history(tokens: list[int], position: int, length: int, start: int = 0) -> tuple[int, ...]:
    """The last ``length`` tokens before a position, back to the last 0 (included)."""
    seen = tokens[max(start, position - length) : position] if length else []
    while 0 in seen[1:]:
        seen = seen[1:]
    return tuple(seen)


class SlowNGrams:
    """Counts of a training text, and what a token costs by them."""

    def __init__(self, train: list[int], vocab_size: int, order: int) -> None:
        self.vocab_size = vocab_size
        self.after: dict[tuple[int, ...], Counter] = {}
        for position, token in enumerate(train):
            longest = history(train, position, order - 1)
            for length in range(len(longest) + 1):
                context = longest[len(longest) - length :]
                self.after.setdefault(context, Counter())[token] += 1

    def probability(self, context: tuple[int, ...], token: int) -> float:
        lower = self.probability(context[1:], token) if context else 1 / self.vocab_size
        follows = self.after.get(context)
        if not follows:
            return lower
        return (follows[token] + len(follows) * lower) / (follows.total() + len(follows))

    def surprisal_bits(self, tokens: list[int], order: int, starts: list[int]) -> list[float]:
        return [
            -math.log2(self.probability(history(tokens, t, order - 1, starts[t]), token))
            for t, token in enumerate(tokens)
        ]
