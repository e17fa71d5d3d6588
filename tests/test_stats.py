"""Statistics against scipy, scikit-learn, brute force and numbers worked out by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from engram_eval.analysis import stats
from engram_eval.errors import UserError

FINITE = st.floats(-100, 100, allow_nan=False)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def error(values, clusters=None):
    """Return the standard error of a mean."""
    return stats.ratio(np.array(values), np.ones(len(values)), clusters).stderr


def test_the_error_of_a_mean_by_hand():
    # mean 3; sums of deviations per cluster: (1-3)+(2-3) = -3, (3-3)+(6-3) = 3;
    # sqrt(2/1 * (9 + 9)) / 4 = 6 / 4
    assert error([1, 2, 3, 6], ["x", "x", "y", "y"]) == pytest.approx(1.5)


def test_items_apart_give_the_plain_stderr():
    values = rng().normal(size=20)
    assert error(values) == error(values, range(20)) == pytest.approx(scipy_stats.sem(values))


def test_ratio_by_hand():
    top, bottom = np.array([1.0, 2, 3, 6]), np.array([2.0, 2, 2, 4])
    documents = np.array([0, 0, 1, 1])
    # Sums per document: (3, 4) and (9, 6); ratio 1.2; residuals -1.8 and 1.8.
    expected = math.sqrt(2 / 1 * (1.8**2 + 1.8**2)) / 10
    found = stats.ratio(top, bottom, documents)
    assert found.value == pytest.approx(1.2)
    assert found.stderr == pytest.approx(expected)
    assert stats.ratio(top, np.zeros(4), documents) == stats.Ratio(None, None)
    assert stats.ratio(top, bottom, np.zeros(4, dtype=int)) == stats.Ratio(1.2, None)
    assert stats.ratio(top[:1], bottom[:1], documents[:1]) == stats.Ratio(0.5, None)
    assert stats.ratio(top, bottom, list("aabb")) == found


def test_copied_items_in_clusters_do_not_shrink_the_stderr():
    values = rng().normal(size=12)
    copies = np.repeat(values, 5)
    assert error(copies, np.repeat(np.arange(12), 5)) == pytest.approx(scipy_stats.sem(values))


def bootstrap(values, source, weights=None, resamples=10_000):
    """Bootstrap the mean of some values, or their sum over that of the weights."""
    bottoms = np.ones_like(values) if weights is None else weights
    (found,) = stats.bootstrap_ratios(values[:, None], bottoms[:, None], source, resamples)
    return found


def test_bootstrap_interval_equals_scipy():
    values = rng(2).normal(0.4, size=80) - rng(1).normal(size=80)
    ours = bootstrap(values, rng(3), resamples=20_000)
    truth = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=0.95, method="percentile",
        rng=rng(4),
    ).confidence_interval  # fmt: skip
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(truth.low, abs=0.015)
    assert ours.high == pytest.approx(truth.high, abs=0.015)


def test_bootstrap_of_four_items_equals_all_256_draws():
    values, w = np.array([1.0, 2.0, 9.0, 3.0]), np.array([1.0, 1.0, 2.0, 1.0])
    draws = [
        values[list(pick)].sum() / w[list(pick)].sum()
        for pick in itertools.product(range(4), repeat=4)
    ]
    ours = bootstrap(values, rng(), weights=w, resamples=60_000)
    assert ours.value == pytest.approx(15 / 5)
    assert min(draws) < ours.low and ours.high < max(draws)
    assert ours.low == pytest.approx(np.quantile(draws, 0.025, method="inverted_cdf"), abs=0.01)
    assert ours.high == pytest.approx(np.quantile(draws, 0.975, method="inverted_cdf"), abs=0.01)


def test_columns_see_the_same_draws():
    values = rng(1).normal(size=(40, 2))
    together = stats.bootstrap_ratios(values, np.ones_like(values), rng(3), 500)
    apart = [bootstrap(column, rng(3), resamples=500) for column in values.T]
    assert np.array(together) == pytest.approx(np.array(apart), rel=1e-12)


def test_bootstrap_chunks_do_not_change_the_draws(monkeypatch):
    values = rng(1).normal(size=50)
    whole = bootstrap(values, rng(3), resamples=500)
    monkeypatch.setattr(stats, "_CHUNK_CELLS", 1000)
    assert bootstrap(values, rng(3), resamples=500) == whole


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    hits = 0
    for trial in range(200):
        found = bootstrap(rng(trial).normal(0.3, size=60), rng(trial), resamples=400)
        hits += found.low <= 0.3 <= found.high
    assert 0.90 <= hits / 200 <= 0.985


def test_of_few_documents_the_bootstrap_errs_more_often_than_it_says():
    """By the normal limit of its draws: Student's t beyond 1.96 x sqrt(17 / 18), in 7.4 %."""
    source, missed = rng(0), 0
    for _ in range(1000):
        found = bootstrap(source.normal(size=18), source, resamples=400)
        missed += not found.low <= 0 <= found.high
    assert 0.06 <= missed / 1000 <= 0.10


@given(st.lists(FINITE, min_size=2, max_size=20), st.integers(0, 99))
def test_swapping_the_models_flips_the_bootstrap(differences, seed):
    values = np.array(differences)
    forth = bootstrap(values, rng(seed), resamples=99)
    back = bootstrap(-values, rng(seed), resamples=99)
    assert back.value == pytest.approx(-forth.value)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))
    assert back.p == forth.p and 0 < forth.p <= 1


@pytest.mark.parametrize("n", [3, 5, 8])
def test_few_units_cannot_be_surer_than_their_signs(n):
    found = bootstrap(1 + rng().random(n), rng(), resamples=2000)
    assert found.low > 0
    assert found.p == pytest.approx(scipy_stats.binomtest(n, n).pvalue)


def test_mcnemar_by_hand():
    a = [1] * 6 + [0] * 1 + [1] * 5
    b = [0] * 6 + [1] * 1 + [1] * 5
    # seven disagreements, one on one side: 2 * (C(7,0) + C(7,1)) / 2^7
    assert stats.mcnemar(a, b) == pytest.approx(2 * 8 / 128)
    assert stats.mcnemar([1, 0], [1, 0]) == 1.0


def test_holm_by_hand():
    p = [0.01, 0.04, 0.03, 0.005]
    assert stats.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(P_VALUES)
def test_a_correction_never_lowers_a_p_value_and_keeps_its_rank(p):
    corrected = stats.holm(p)
    assert (corrected <= 1).all() and (corrected >= scipy_stats.false_discovery_control(p)).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= -1e-12).all()


@given(st.floats(0, 0.9))
def test_centred_maps_chance_to_zero_and_one_to_one(chance):
    assert stats.centred(chance, chance) == 0
    assert stats.centred(1.0, chance) == pytest.approx(1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.bootstrap_ratios(np.ones((1, 1)), np.ones((1, 1)), rng()),
        lambda: stats.mcnemar([0.5], [1]),
        lambda: stats.centred(0.5, 1.0),
    ],
)
def test_impossible_input_is_refused(call):
    with pytest.raises(UserError):
        call()
