"""Parts of the report on their own: turned comparisons, merged headers, thinned curves."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports_fixture import SMALL, write_study

from engram_eval.records import MetricRow
from probes import generated_exercises, ngram_exercise, token_tasks
from reports.blocks import Block, Cell, Column, Legend, Panel, Table, View, told_strokes
from reports.draw import HOLLOW, Dot, Line, dots, lines, styles
from reports.load import Comparison, load_study
from reports.numbers import fixed, quoted, seed_numbers
from reports.query import widest
from reports.runs import read_run
from reports.sections.benchmarks import against
from reports.sections.columns import _alike, seed_cells, seeds_cell, seeds_note
from reports.sections.knockout import knockout_block
from reports.sections.linear import _learnt_by_heart
from reports.sections.probe_tasks import TASKS
from reports.sections.training import thinned
from reports.seeds import bundled
from reports.theme import Look, stand_in


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


def test_curves_stand_against_all_seconds_until_then(study):
    stage = next(s for s in study.stages if s.stage == "train" and s.model == "dense")
    seconds = read_run(study, stage).seconds
    assert [seconds[step] for step in (1, 2, 5)] == pytest.approx([1.01, 2.02, 5.05])


def test_headers_merge_within_their_band_only():
    columns = [Column("task")]
    for band in ("accuracy", "bits"):
        columns += [Column(model, chip=1, band=band) for model in ("moe", "engram")]
    table = Table("t", columns, [[Cell("x"), *[Cell("1", 1)] * 4]])
    assert [tuple(span) for span in table.bands()] == [("", 1), ("accuracy", 2), ("bits", 2)]
    assert Table("t", [Column("a")], []).bands() == []


@pytest.mark.parametrize(
    ("found", "text", "small", "sort"),
    [
        ([], "–", "", None),
        ([2.0], "2.000", "", 2.0),
        ([3.0, 1.0], "3.000 / 1.000", "", 1.0),
        ([3.0, 1.0, 2.0], "2.000", "1.000 to 3.000", 2.0),
    ],
)
def test_seeds_share_a_cell(found, text, small, sort):
    cell = seeds_cell(found, fixed)
    assert (cell.text, cell.small, cell.sort) == (text, small, sort)


def test_bold_needs_every_seed_ahead_of_all_others():
    values = {"a": (1.0, 1.2), "b": (1.3, 1.4), "c": (1.35,)}
    rows = [
        MetricRow("heldout", "bits_per_byte", value, model=model, seed=seed)
        for model, found in values.items()
        for seed, value in enumerate(found)
    ]
    low = seed_cells(rows, ["a", "b", "c"], fixed, "low")
    assert [cell.strong for cell in low] == [True, False, False]
    high = seed_cells(rows, ["a", "b", "c"], fixed, "high")
    assert not any(cell.strong for cell in high)
    assert not any(cell.strong for cell in seed_cells(rows[:2], ["a"], fixed, "low"))
    assert seeds_note(rows).startswith("Several numbers") and "Bold" in seeds_note(rows)


def test_tests_that_differ_in_a_number_are_told_once():
    texts = ["bootstrap over 40 sources", "bootstrap over 23 sources", "t-test", "over 3 items"]
    assert _alike(texts) == ["bootstrap over 23 to 40 sources", "t-test", "over 3 items"]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([1.0], "1.000"),
        ([2.0, 1.0], "2.000 and 1.000"),
        ([3.0, 1.0, 2.5, 9.0], "2.500 (1.000 to 9.000)"),
    ],
)
def test_seeds_in_a_sentence(found, text):
    assert quoted(found) == text


def test_from_three_seeds_on_curves_share_a_band():
    seeds = [Line([0, 1], y, Look(0, "#000000", "o"), "") for y in ([3, 1], [1, 5], [2, 3])]
    (one,) = bundled(seeds, "moe")
    assert (one.y, one.low, one.high) == ([2, 3], [1, 1], [3, 5])
    assert bundled(seeds[:2], "moe") == seeds[:2]
    (plain,) = bundled(seeds, "moe", banded=False)
    assert (plain.y, plain.low, plain.high) == ([2, 3], (), ())
    moved = [*seeds[:2], seeds[2]._replace(x=[0, 2])]
    assert bundled(moved, "moe") == moved


STROKES = {"-": "plain", "--": "control", ":": "never drawn", HOLLOW: "a bound"}


def test_line_styles_are_told_where_they_are_drawn():
    look = Look(0, stand_in(0), "o")
    two = lines([Line([0, 1], [0, 1], look, ""), Line([0, 1], [1, 0], look, "", "--")], "x", "y")
    assert told_strokes(STROKES, styles(two)) == [("-", "plain"), ("--", "control")]
    plain = lines([Line([0, 1], [0, 1], look, "")], "x", "y")
    assert told_strokes(STROKES, styles(plain)) == []
    points = [Dot(0, 1.0, look, ""), Dot(1, 2.0, look, "", hollow=True)]
    grid = dots(["a", "b"], points, "x")
    assert told_strokes({HOLLOW: "a bound"}, styles(grid)) == [(HOLLOW, "a bound")]
    views = [View("", [Panel("", plain)]), View("", [Panel("", grid)])]
    block = Block("i", "title", "finding", views, [], strokes=STROKES)
    assert block.legends() == [Legend([], []), Legend([], [(HOLLOW, "a bound")])]
    assert replace(block, views=views[1:] * 2).legends() == [Legend([], [(HOLLOW, "a bound")])]
    own = replace(block, legend=["a", "b"], views=[replace(views[0], legend=["b"]), views[0]])
    assert [signs.models for signs in own.legends()] == [["b"], ["a", "b"]]


def test_a_knock_out_by_domain_names_only_who_is_drawn(tmp_path):
    study = load_study(write_study(tmp_path / "main", SMALL))
    block = knockout_block(study, [row for row in study.rows if row.name == "knockout"])
    by_domain, by_block = block.legends()
    assert by_domain == Legend(["engram"], [])
    assert by_block.models == ["dense", "moe", "engram"]
    assert [style for style, _ in by_block.strokes] == ["-", "--"]


def test_a_control_that_reaches_the_probe_is_explained():
    def row(task, value, condition=None):
        return MetricRow("linear", "acc", value, model="moe", seed=0, layer=1, site="resid_post",
                         slice={"task": task}, condition=condition)  # fmt: skip

    clear = [row("entity", 0.9), row("entity", 0.5, "control_task")]
    learnt = [row("recall_key", 0.6), row("recall_key", 1.0, "control_task")]
    assert _learnt_by_heart(clear) == ""
    told = _learnt_by_heart(clear + learnt)
    assert "In 1 task of 2 it reaches the probe" in told and "learnt by heart" in told


def test_every_linear_probe_says_what_it_asks():
    told = generated_exercises.__doc__ + token_tasks.__doc__
    asked = {ngram_exercise.NAME, *re.findall(r"``([a-z_]+)``", told)} - {"tokenize"}
    assert set(TASKS) == asked and len(asked) == 11


@pytest.mark.parametrize(
    ("seeds", "told"),
    [
        ((), "–"),
        ((0, 1, 2), "0, 1, 2"),
        (tuple(range(10, 25)), "10 to 24"),
        ((0, 1, 2, 3, 4, 6), "0, 1, 2, 3, 4, 6"),
    ],
)
def test_many_seeds_in_a_row_are_told_by_their_ends(seeds: tuple[int, ...], told: str) -> None:
    assert seed_numbers(seeds) == told
