"""Scores against hand-worked numbers."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_eval.analysis.stats import ratio
from engram_eval.evaluation.dataset import process_results
from engram_eval.evaluation.informative import judge_tasks
from engram_eval.evaluation.scores import chance_level, task_rows
from engram_eval.records import MetricRow

NUMBERS = itertools.count()


def sample(acc: float, nats: float, size: int, n_choices: int = 4, **slices: str) -> dict:
    doc = {"choices": ["x"] * n_choices, "slices": slices}
    return {"doc": doc, "doc_id": next(NUMBERS), "acc": acc, "bits_per_byte": [nats, size]}


def value(rows: list[MetricRow], metric: str, **labels: str) -> MetricRow:
    (row,) = [r for r in rows if r.metric == metric and dict(r.slice) == labels]
    return row


def test_one_item_is_scored_by_its_gold_choice() -> None:
    doc = {"choices": [" a", " bé"], "gold": 1}
    assert process_results(doc, [(-3.0, False), (-2.0, True)]) == {
        "acc": 1.0,
        "bits_per_byte": (-2.0, 4),
    }
    assert process_results(doc, [(-1.0, True), (-2.0, False)])["acc"] == 0.0


def test_among_equals_the_first_choice_counts() -> None:
    doc = {"choices": [" a", " b"], "gold": 0}
    assert process_results(doc, [(-1.0, False), (-1.0, False)])["acc"] == 1.0
    assert process_results({**doc, "gold": 1}, [(-1.0, False)] * 2)["acc"] == 0.0


def test_a_task_is_scored_as_worked_by_hand() -> None:
    nats = -math.log(2)
    samples = [sample(1, 4 * nats, 2), sample(1, 6 * nats, 2), sample(0, 2 * nats, 4)]
    rows = task_rows("t", {"domain": "math", "chance": 0.25}, samples)
    acc = value(rows, "acc", domain="math")
    assert (acc.value, acc.baseline, acc.n, acc.split) == (pytest.approx(2 / 3), 0.25, 3, "test")
    # Variance of (1, 1, 0) with n - 1 is 1/3; the error of the mean sqrt(1/3 / 3).
    assert acc.stderr == pytest.approx(1 / 3)
    centred = value(rows, "acc_centered", domain="math")
    assert centred.value == pytest.approx((2 / 3 - 0.25) / 0.75)
    assert centred.stderr == pytest.approx(1 / 3 / 0.75)
    bits = value(rows, "bits_per_byte", domain="math")
    assert bits.value == pytest.approx(12 / 8)
    # Residuals 4 - 3, 6 - 3, 2 - 6: sqrt(3/2 * (1 + 9 + 16)) / 8.
    assert bits.stderr == pytest.approx(math.sqrt(1.5 * 26) / 8)


def test_slices_cover_the_items_and_constant_ones_are_left_out() -> None:
    samples = [
        sample(1, -1, 1, local="resolved", kind="add"),
        sample(0, -1, 1, local="unresolved", kind="add"),
        sample(1, -1, 1, local="resolved", kind="add"),
    ]
    rows = task_rows("t", {"domain": "math"}, samples)
    assert value(rows, "acc", domain="math", local="resolved").value == 1.0
    assert value(rows, "acc", domain="math", local="unresolved").n == 1
    assert value(rows, "acc", domain="math", local="unresolved").stderr is None
    assert not [row for row in rows if "kind" in row.slice]


def test_chance_comes_from_the_choices_where_the_task_does_not_tell() -> None:
    samples = [sample(1, -1, 1, n_choices=2), sample(1, -1, 1, n_choices=4)]
    assert chance_level(samples) == pytest.approx(0.375)
    assert value(task_rows("t", {}, samples), "acc").baseline == pytest.approx(0.375)
    assert chance_level([{"doc": {}}]) is None
    assert chance_level([]) is None


def test_a_task_of_another_kind_gives_the_rows_it_can() -> None:
    found = [{"doc": {"q": "?"}, "doc_id": n, "acc": float(n)} for n in range(2)]
    rows = task_rows("t", {}, found)
    assert [(row.metric, row.baseline) for row in rows] == [("acc", None)]


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 9)), min_size=2, max_size=20))
def test_a_ratio_with_equal_denominators_is_a_mean(pairs: list[tuple[float, int]]) -> None:
    top = np.array([a for a, _ in pairs])
    found = ratio(top, np.full(len(top), 2.0))
    assert found.value == pytest.approx(top.mean() / 2)
    assert found.stderr == pytest.approx(top.std(ddof=1) / math.sqrt(len(top)) / 2, abs=1e-9)


def test_clustered_entries_are_no_independent_evidence() -> None:
    top, bottom = np.array([1.0, 1.0, 3.0, 3.0]), np.ones(4)
    clustered = ratio(top, bottom, ["a", "a", "b", "b"])
    assert clustered.value == 2.0
    assert clustered.stderr == pytest.approx(ratio(top[[0, 2]], bottom[:2]).stderr)
    assert ratio(top, bottom, ["a"] * 4).stderr is None


def test_rows_take_items_of_one_source_for_one() -> None:
    found = [sample(*scores) for scores in [(1, -2, 1), (1, -2, 1), (0, -6, 1), (0, -6, 1)]]
    for entry, source in zip(found, "aabb", strict=True):
        entry["doc"]["passage"] = source
        entry["by_filter"] = {"loose": {"exact_match": entry["acc"]}}
    rows = task_rows("t", {"chance": 0.25}, found)
    # Two clusters, one all right and one all wrong: sqrt(2 (1 + 1)) / 4, as from two items.
    assert value(rows, "acc").stderr == pytest.approx(0.5)
    assert value(rows, "acc_centered").stderr == pytest.approx(0.5 / 0.75)
    assert value(rows, "exact_match", filter="loose").stderr == pytest.approx(0.5)
    # Residuals of bits: -4 and 4 nats per cluster.
    assert value(rows, "bits_per_byte").stderr == pytest.approx(2 / math.log(2))
    one = [{**entry, "doc": {**entry["doc"], "passage": "a"}} for entry in found]
    assert value(task_rows("t", {}, one), "acc").stderr is None


def acc_row(task: str, acc: float, n: int = 200, stage: str = "evaluate") -> MetricRow:
    labels = {"domain": "math"}
    return MetricRow(task, "acc", acc, split="test", slice=labels, n=n, baseline=0.25, stage=stage)


def test_tasks_that_tell_nothing_are_judged_so() -> None:
    rows = [
        *(acc_row("solved", acc) for acc in (0.98, 1.0)),
        *(acc_row("out_of_reach", acc) for acc in (0.24, 0.28)),
        *(acc_row("good", acc) for acc in (0.26, 0.5)),
        *(acc_row("almost_solved", acc) for acc in (0.97, 1.0)),
        acc_row("only_the_baseline", 0.6, stage="baseline"),
    ]
    judged = judge_tasks(rows)
    assert {task: j.informative for task, j in judged.items()} == {
        "solved": False,
        "out_of_reach": False,
        "good": True,
        "almost_solved": True,
    }
    assert "98" in judged["solved"].reason
    assert "25" in judged["out_of_reach"].reason


def test_more_models_need_stronger_evidence() -> None:
    # 63 of 200 at chance 1/4: p = 0.024 for a single model.
    assert judge_tasks([acc_row("t", 0.315)])["t"].informative
    crowd = [acc_row("t", 0.315), *(acc_row("t", 0.25) for _ in range(4))]
    assert not judge_tasks(crowd)["t"].informative


def test_items_of_one_source_are_no_more_evidence_than_one() -> None:
    """Four items each of 50 sums, all right or all wrong: 16 sums of 50 are nothing (p = 0.16)."""
    alone = [{"acc": float(place < 16), "doc": {"source": str(place)}} for place in range(50)]
    four = [dict(sample, doc_id=n) for n, sample in enumerate(4 * alone)]
    one = [dict(sample, doc_id=n) for n, sample in enumerate(alone)]
    facts = {"chance": 0.25, "domain": "math"}
    for samples in (four, one):
        rows = [dataclasses.replace(r, stage="evaluate") for r in task_rows("t", facts, samples)]
        assert not judge_tasks(rows)["t"].informative
    independent = [dict(sample, doc={}) for sample in four]
    rows = [dataclasses.replace(r, stage="evaluate") for r in task_rows("t", facts, independent)]
    assert judge_tasks(rows)["t"].informative


def test_only_rows_over_all_items_judge_a_task() -> None:
    sliced = MetricRow(
        "t",
        "acc",
        0.9,
        split="test",
        slice={"domain": "math", "local": "resolved"},
        n=200,
        baseline=0.25,
    )
    assert judge_tasks([sliced]) == {}
    assert not judge_tasks([sliced, acc_row("t", 0.25)])["t"].informative
