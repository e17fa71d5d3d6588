"""Times of several things, turn by turn: planted ratios, noise that must not count, coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from engram_eval.bench.turns import compared


def test_a_planted_ratio_is_found_though_turns_differ_and_some_times_are_absurd() -> None:
    draw = np.random.default_rng(0)
    turn = np.exp(draw.normal(0, 1, 41))
    slower = 1.07 * turn
    slower[::7] *= 50
    found = compared({"here": turn.tolist(), "there": slower.tolist()}, "here")
    assert found["there"].ratio == pytest.approx(1.07)
    assert found["there"].seconds == pytest.approx(1.07 * np.median(turn))
    assert found["here"] == (pytest.approx(np.median(turn)), 1, 1, 1)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40))
def test_the_interval_holds_the_median_and_is_that_of_the_sign_test(ratios: list[float]) -> None:
    (_, found) = compared({"here": [1.0] * len(ratios), "there": ratios}, "here").values()
    if len(ratios) < 6:
        assert found.low is None and found.high is None
        return
    assert found.low is not None and found.high is not None
    assert found.low <= found.ratio <= found.high
    ordered, n = sorted(ratios), len(ratios)
    left_out = max(k for k in range(n // 2) if binomtest(k, n).pvalue <= 0.05)
    assert (found.low, found.high) == (ordered[left_out], ordered[n - 1 - left_out])


def test_intervals_hold_as_often_as_they_say() -> None:
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        base = np.exp(draw.normal(0, 1, 15))
        other = base * 1.2 * np.exp(draw.standard_cauchy(15) / 20)
        found = compared({"here": base.tolist(), "there": other.tolist()}, "here")["there"]
        assert found.low is not None and found.high is not None
        held += found.low <= 1.2 <= found.high
    assert held >= 945
