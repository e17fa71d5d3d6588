"""Kneser-Ney against one written down from the definition, token by token, without tables."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_eval.baselines.kneser_ney import FALLBACK, KneserNey, discounts
from engram_eval.baselines.predictor import history
from engram_eval.corpus.ngrams import NGramModel
from engram_eval.errors import UserError

VOCAB = 6


def grams(stream: Sequence[int], n: int) -> Counter[tuple[int, ...]]:
    """Count n-grams; a 0 may only be the first token (before a document) or the last."""
    found = (tuple(stream[i : i + n]) for i in range(len(stream) - n + 1))
    return Counter(gram for gram in found if 0 not in gram[1:-1])


class Slow:
    """The formulas of Chen and Goodman, evaluated anew for every token."""

    def __init__(self, stream: Sequence[int], order: int) -> None:
        self.counts = [Counter(), *(grams(stream, n) for n in range(1, order + 1))]
        self.order = order
        self.adjusted = [self._adjusted(n) for n in range(order + 1)]
        self.discounts = [
            discounts(np.array(list(a.values()), np.int64)) if a else FALLBACK
            for a in self.adjusted
        ]

    def _adjusted(self, n: int) -> dict[tuple[int, ...], int]:
        if n in (0, self.order):
            return dict(self.counts[n])
        longer = self.counts[n + 1]
        left = Counter(gram[1:] for gram in longer)
        return {
            gram: count if n > 1 and gram[0] == 0 else max(left[gram], 1)
            for gram, count in self.counts[n].items()
        }

    def p(self, context: Sequence[int], token: int) -> float:
        told = history(np.array(context, np.int64)).tolist()
        value = 1 / VOCAB
        for n in range(1, self.order + 1):
            if n - 1 > len(told):
                break
            h = tuple(told[len(told) - n + 1 :])
            following = {g: a for g, a in self.adjusted[n].items() if g[:-1] == h}
            if not following:
                continue
            total = sum(following.values())
            d = (0.0, *self.discounts[n])
            left_over = sum(d[min(a, 3)] for a in following.values())
            own = following.get((*h, token), 0)
            value = (own - d[min(own, 3)]) / total + left_over / total * value
        return value


def documents(*texts: str) -> list[int]:
    return [token for text in texts for token in [*map(int, text), 0]]


STREAM = documents("123", "1234", "12351", "2312", "3312", "55", "41234", "1", "123123")


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_it_equals_the_definition(order: int) -> None:
    model = KneserNey.fit(NGramModel.count(STREAM, VOCAB, 5), order)
    slow = Slow(STREAM, order)
    text = np.array(documents("1233", "5", "412"))
    expected = [slow.p(text[:i], int(token)) for i, token in enumerate(text)]
    assert model.score(text).p == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(1, VOCAB - 1), max_size=6), min_size=1, max_size=8),
    st.lists(st.integers(0, VOCAB - 1), max_size=7),
    st.integers(1, 5),
)
def test_it_sums_to_one_and_scores_what_it_predicts(
    texts: list[list[int]], context: list[int], order: int
) -> None:
    stream = [token for text in texts for token in [*text, 0]]
    model = KneserNey.fit(NGramModel.count(stream, VOCAB, 5), order)
    contexts = [np.array(context[:n], np.int64) for n in range(len(context))]
    if not contexts:
        return
    found = model.distributions(contexts).p
    assert found.sum(axis=1) == pytest.approx(1) and (found > 0).all()
    assert model.score(np.array(context)).p == pytest.approx(
        found[np.arange(len(context)), context]
    )


def test_a_frequent_word_after_one_other_is_no_good_guess_elsewhere() -> None:
    # "Francisco" is as frequent as "glass", but only ever follows "San".
    stream = documents(*["12"] * 8, *["34", "54"] * 4)
    p = KneserNey.fit(NGramModel.count(stream, VOCAB, 2), 2).distributions([np.array([2])]).p[0]
    assert p[4] > p[2]


def test_discounts_follow_the_counts_of_counts() -> None:
    counts = np.repeat([1, 2, 3, 4], [40, 10, 5, 3])
    y = 40 / 60
    assert discounts(counts) == pytest.approx(
        (1 - 2 * y * 10 / 40, 2 - 3 * y * 5 / 10, 3 - 4 * y * 3 / 5)
    )
    assert discounts(np.array([1, 1, 2])) == FALLBACK


def test_orders_that_were_not_counted_are_refused() -> None:
    with pytest.raises(UserError, match="order 3; counted are 1 to 2"):
        KneserNey.fit(NGramModel.count(STREAM, VOCAB, 2), 3)
