"""Numbers over depth, against cases worked by hand and slow definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.settling import (
    early_weights,
    fall_bounds,
    fall_depth,
    interval,
    prediction_depth,
    rise_depth,
)


@pytest.mark.parametrize(
    ("curve", "share", "expected"),
    [
        ([8, 4, 0], 0.5, 1.0),
        ([8, 6, 2, 0], 0.5, 1.5),
        ([8, 9, 10, 0], 0.5, 2.6),
        ([8, 4, 0], 0.1, 1.8),
        ([8, 8, 8], 0.5, None),
        ([0, 0, 0], 0.5, None),
    ],
)
def test_fall_depth(curve: list[float], share: float, expected: float | None) -> None:
    found = fall_depth(np.array(curve, dtype=np.float64), share)
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("curve", "expected"),
    [([0, 1, 2], 1.8), ([0.95, 1, 0.5], 0.0), ([0, 0.8, 1], 1.5), ([0, -1, 0], None)],
)
def test_rise_depth(curve: list[float], expected: float | None) -> None:
    found = rise_depth(np.array(curve, dtype=np.float64), 0.9)
    assert found == (None if expected is None else pytest.approx(expected))


@given(st.integers(1, 30), st.floats(0.05, 1), st.integers(0, 1000))
def test_early_weights_are_an_integral(n_layers: int, share: float, seed: int) -> None:
    curve = np.random.default_rng(seed).uniform(0, 9, n_layers + 1)
    end = share * n_layers
    x = np.unique(np.concatenate([np.arange(n_layers + 1)[: int(end) + 1], [end]]))
    expected = np.trapezoid(np.interp(x, np.arange(n_layers + 1), curve), x) / end
    assert early_weights(n_layers, share) @ curve == pytest.approx(expected)


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6))
def test_prediction_depth_is_its_definition(columns: list[list[bool]]) -> None:
    agrees = np.array(columns).T
    slow = [next(d for d in range(4) if all(column[d:])) for column in columns]
    np.testing.assert_array_equal(prediction_depth(agrees), slow)


def test_bounds_cover_what_documents_vary_by() -> None:
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(40), 5)
    fall = rng.uniform(0.5, 1.5, 40)[documents]
    values = np.stack([np.full(200, 4.0), np.clip(4 - 2 * fall, 0, None), np.zeros(200)])
    found = fall_bounds(values, documents, 0.5, np.random.default_rng(1))
    assert found.value is not None and found.low is not None and found.high is not None
    assert found.low < found.value < found.high
    # The middle depth's mean is about 2 with an error of 2 * 0.29 / sqrt(40).
    assert found.high - found.low == pytest.approx(4 * 0.09 / 2, rel=0.6)
    alone = fall_bounds(values, np.zeros(200, dtype=np.int64), 0.5, rng)
    assert (alone.low, alone.high) == (None, None)


def test_an_interval_of_mostly_undefined_draws_is_none() -> None:
    assert interval([1.0, None, None, 2.0]) == (None, None)
    assert interval([1.0] * 99 + [None]) == (1.0, 1.0)
