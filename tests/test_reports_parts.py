"""Parts of the report on their own: turned comparisons, merged headers, thinned curves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports_fixture import SMALL, write_study

from reports.blocks import Cell, Column, Table
from reports.load import Comparison, load_study
from reports.query import widest
from reports.sections.benchmarks import against
from reports.sections.training import thinned


def comparison(**fields):
    given = {"model_a": "a", "model_b": "b", "name": "heldout", "metric": "acc", "effect": 0.2}
    return Comparison(**{**given, "ci_low": 0.1, "ci_high": 0.4, **fields})


def test_a_comparison_seen_from_the_other_side():
    turned = comparison(seeds_a=[0], seeds_b=[0, 1]).seen_from("b")
    assert turned is not None and (turned.model_a, turned.model_b) == ("b", "a")
    assert (turned.effect, turned.ci_low, turned.ci_high) == (-0.2, -0.4, -0.1)
    assert (turned.seeds_a, turned.seeds_b) == ([0, 1], [0])
    assert turned.seen_from("a") == comparison(seeds_a=[0], seeds_b=[0, 1])
    assert comparison().seen_from("c") is None
    assert comparison(effect=None, ci_low=None).seen_from("b").effect is None


def test_the_comparison_over_most_seeds_is_kept_and_seeds_before_items():
    one = comparison(seeds_a=[0], seeds_b=[0], units="items")
    items = comparison(seeds_a=[0, 1], seeds_b=[0, 1], units="items")
    seeds = comparison(seeds_a=[0, 1], seeds_b=[0, 1], units="seeds")
    assert widest([one, items, seeds]) == widest([seeds, items, one]) == [seeds]
    assert widest([one, comparison(metric="bits_per_byte")])[1].metric == "bits_per_byte"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return load_study(write_study(tmp_path_factory.mktemp("runs") / "main", SMALL))


def test_every_model_is_held_against_the_reference(study):
    recorded = next(
        c
        for c in study.comparisons
        if (c.model_a, c.model_b, c.name, c.metric) == ("dense", "moe", "heldout", "bits_per_byte")
        and not c.slice
        and len(c.seeds_b) == 2
    )
    found = against(study, "moe", "dense")[("bits_per_byte", "all")]
    assert found.effect == -recorded.effect and found.ci_low == -recorded.ci_high
    assert ("acc", "code") in against(study, "moe", "engram")


@given(st.integers(0, 5000), st.integers(1, 300))
def test_thinned_curves_keep_their_end_and_their_order(length, most):
    steps = list(range(length))
    kept = thinned(steps, most)
    assert len(kept) <= most and list(kept) == sorted(set(kept)) and set(kept) <= set(steps)
    assert not steps or kept[-1] == steps[-1]
    assert len(steps) > most or list(kept) == steps


def test_headers_merge_within_their_band_only():
    columns = [Column("task")]
    for band in ("accuracy", "bits"):
        columns += [Column(f"seed {seed}", "moe", chip=1, band=band) for seed in (0, 1)]
    table = Table("t", columns, [[Cell("x"), *[Cell("1", 1)] * 4]])
    assert [tuple(span) for span in table.bands()] == [
        ("", 1, None),
        ("accuracy", 2, None),
        ("bits", 2, None),
    ]
    assert [tuple(span) for span in table.groups()] == [("", 1, None), ("moe", 2, 1), ("moe", 2, 1)]
    assert Table("t", [Column("a")], []).bands() == []
