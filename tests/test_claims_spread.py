"""Which spread a claim is tested with: one that spreads widely is told apart, and how well."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import spreads
from scipy import stats as reference

from engram_eval.analysis.contrasts import WIDER, Values, wider_arms
from engram_eval.claims.claim import Claim, less_than
from engram_eval.claims.judge import judge

DOCS = Path(__file__).parents[1] / "docs" / "statistics.md"
ALIKE = Claim("x.b", "b beats a", "nobody", "nothing", less_than("arm_1", "arm_0"), 0.01)


def named(y: np.ndarray) -> Values:
    return {f"arm_{i}": dict(enumerate(map(float, seeds))) for i, seeds in enumerate(y)}


@pytest.mark.parametrize("seeds", [3, 5])
def test_verdicts_test_as_the_simulated_rule_does(seeds: int) -> None:
    y = spreads.draw(np.random.default_rng(1), 6, seeds, 2.0)[:60]
    own = 0
    for study, p in zip(y, spreads.others_left_out(y), strict=True):
        (found,) = judge([(ALIKE, named(study))])
        assert found.p_difference == pytest.approx(p)
        assert found.tested is not None
        part = found.tested.shown.found
        assert part.pooled == (not part.wider)
        own += not part.pooled
        if part.wider:
            assert p == pytest.approx(reference.ttest_rel(study[0], study[1]).pvalue)
    assert 10 < own < 50


def test_an_arm_beside_that_spreads_widely_is_left_out_of_the_pool() -> None:
    y = spreads.draw(np.random.default_rng(6), 6, 5, 40.0, which=-1)[:30]
    alone = 0
    for study in y:
        (found,) = judge([(ALIKE, named(study))])
        (without,) = judge([(ALIKE, named(study[:-1]))])
        assert found.tested is not None and without.tested is not None
        part, same = found.tested.shown.found, without.tested.shown.found
        if part.left_out == ("arm_5",) and not same.left_out:
            assert tuple(part.estimate) == pytest.approx(tuple(same.estimate))
            alone += 1
    assert alone > 15


def test_an_arm_is_wider_by_the_f_test_of_what_it_adds() -> None:
    """Of equal seeds that is its distance to all others' mean, against their own residuals."""
    rng = np.random.default_rng(2)
    for spread in (1.0, 3.0):
        for _ in range(20):
            y = rng.normal(size=(5, 4))
            y[0] *= spread
            own = np.var(y[0] - y[1:].mean(0), ddof=1) / (1 + 1 / 4)
            rest = np.square(spreads.residuals(y[None, 1:])).sum() / 9
            wide = reference.f.sf(own / rest, 3, 9) < WIDER
            assert wider_arms(named(y), ["arm_0"]) == (("arm_0",) if wide else ())


def test_arms_that_spread_alike_are_taken_for_wider_as_often_as_the_level_says() -> None:
    y = spreads.draw(np.random.default_rng(3), 5, 3, 1.0)[:1000]
    wider = sum(bool(wider_arms(named(study), ["arm_0"])) for study in y)
    assert wider == pytest.approx(1000 * WIDER, abs=3 * np.sqrt(1000 * WIDER * (1 - WIDER)))


def test_too_few_arms_or_seeds_are_not_wider() -> None:
    y = np.random.default_rng(4).normal(size=(3, 3))
    assert wider_arms(named(y[:2]), ["arm_0", "arm_1"]) == ()
    assert wider_arms({"arm_0": {0: 5.0}, **named(y[1:])}, ["arm_0"]) == ()
    assert wider_arms({"arm_0": {0: 1.0, 1: 2.0}}, ["arm_0"]) == ()
    flat = {f"arm_{i}": {0: 1.0, 1: 2.0, 2: 3.0} for i in (1, 2)}
    assert wider_arms({"arm_0": {0: 1.0, 1: 2.5, 2: 3.0}, **flat}, ["arm_0"]) == ("arm_0",)
    assert wider_arms({"arm_0": {0: 2.0, 1: 3.0, 2: 4.0}, **flat}, ["arm_0"]) == ()


def test_a_claim_that_needs_positive_scores_says_what_it_would_be_about() -> None:
    asked = dataclasses.replace(ALIKE, positive=("arm_2",), unless_positive="so that it is not")
    y = 1 + 0.01 * np.random.default_rng(5).normal(size=(4, 3))
    assert judge([(asked, named(y))])[0].tested is not None
    y[2, 1] = -0.1
    (found,) = judge([(asked, named(y))])
    assert (found.verdict, found.tested) == ("inconclusive", None)
    assert found.reason == "arm_2: not above 0 in every seed, so that it is not; power 0%"


@pytest.mark.slow
def test_the_sizes_in_the_documentation_are_the_simulated_ones() -> None:
    assert spreads.table() in DOCS.read_text()
