"""The statistics against statsmodels, which computes them another way."""

import numpy as np
import pytest

from engram_eval.analysis import stats

sm = pytest.importorskip("statsmodels.api", reason="pip install statsmodels")


def test_mcnemar() -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    rng = np.random.default_rng(0)
    a, b = (rng.random(80) < 0.5).astype(float), (rng.random(80) < 0.7).astype(float)
    table = [[int(((a == i) & (b == j)).sum()) for j in (1, 0)] for i in (1, 0)]
    assert stats.mcnemar(a, b) == pytest.approx(mcnemar(table, exact=True).pvalue)


def test_the_clustered_error_of_a_mean() -> None:
    rng = np.random.default_rng(1)
    clusters = rng.integers(15, size=120)
    values = rng.standard_normal(15)[clusters] + rng.standard_normal(120)
    fit = sm.OLS(values, np.ones(120)).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    count = len(set(clusters))
    expected = fit.bse[0] * np.sqrt(count / (count - 1))
    assert stats.ratio(values, np.ones(120), clusters).stderr == pytest.approx(expected)


def test_holm() -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(2).random(25) ** 3
    assert stats.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_bootstrap_agrees_with_the_large_sample_interval() -> None:
    from statsmodels.stats.weightstats import DescrStatsW

    values = np.random.default_rng(5).normal(0.1, 1, size=2000)
    given = values[:, None], np.ones((2000, 1))
    (found,) = stats.bootstrap_ratios(*given, np.random.default_rng(0))
    low, high = DescrStatsW(values).tconfint_mean()
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.005)
    assert stats.bootstrap_ratios(*given, np.random.default_rng(0)) == [found]
