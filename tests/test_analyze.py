"""Comparisons between models against the metric rows, scipy and planted differences."""

import dataclasses
import json

import numpy as np
import pytest
from reports_fixture import SMALL, UNINFORMATIVE, read_metrics, write_study
from scipy import stats as scipy_stats

from engram_eval.analysis.analyze import Pairing, analyze, compare_table
from engram_eval.analysis.item_scores import Measure, Scores, Table, load_scores, select
from engram_eval.analysis.stats import bootstrap_ratios, holm
from engram_eval.errors import UserError
from engram_eval.evaluation.samples import pool, source_of, sources_of
from engram_eval.files import content_hash, read_jsonl, write_json, write_jsonl
from engram_eval.records import MetricRow, row_to_dict


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("runs") / "main", SMALL)


@pytest.fixture(scope="module")
def found(study):
    return list(read_jsonl(study / "comparisons.jsonl"))


def compared(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def recorded(study, model, name, metric, cut):
    return np.mean(
        [
            row["value"]
            for row in read_metrics(study)
            if (row["model"], row["name"], row["metric"], row["slice"])
            == (model, name, metric, cut)
        ]
    )


def test_effects_are_the_differences_of_the_metric_rows(study, found):
    for metric, sign in (("acc", 1), ("bits_per_byte", -1)):
        for cut in ({"domain": "math"}, {"domain": "math", "local": "unresolved"}):
            row = only(found, "moe", "engram", name="pocket_compare", metric=metric, slice=cut)
            a, b = (recorded(study, m, "pocket_compare", metric, cut) for m in ("moe", "engram"))
            assert row["effect"] == pytest.approx(sign * (b - a), abs=1e-5)
            assert row["ci_low"] <= row["effect"] <= row["ci_high"]


def only(rows, a, b, seeds=((0, 1), (0, 1)), **wanted):
    (row,) = compared(
        rows, model_a=a, model_b=b, seeds_a=list(seeds[0]), seeds_b=list(seeds[1]), **wanted
    )
    return row


def test_heldout_effects_are_in_bits_per_byte_over_documents(study, found):
    for cut in ({}, {"domain": "code"}):
        row = only(found, "moe", "engram", name="heldout", metric="bits_per_byte", slice=cut)
        a, b = (recorded(study, m, "heldout", "bits_per_byte", cut) for m in ("moe", "engram"))
        assert row["effect"] == pytest.approx(a - b, abs=1e-5)
        assert row["units"] == "documents" and row["informative"] is None
        assert row["n"] == (40 if not cut else 20)
    answers = only(found, "moe", "engram", name="heldout", metric="bits_per_answer", slice={})
    assert answers["n"] == 20


def test_seeds_are_paired_and_pooled_but_two_bear_no_seed_test(found):
    rows = compared(found, model_a="moe", model_b="engram", name="heldout", slice={})
    pairs = {(tuple(r["seeds_a"]), tuple(r["seeds_b"])) for r in rows}
    assert pairs == {((0, 1), (0, 1)), ((0,), (0,)), ((1,), (1,))}
    assert not [row for row in found if row["units"] == "seeds"]
    pooled = only(found, "moe", "engram", name="heldout", metric="bits_per_byte", slice={})
    assert "not over seeds (2 seeds per model)" in pooled["reason"]
    lone = only(
        found, "dense", "moe", ((0,), (0, 1)), name="heldout", metric="bits_per_byte", slice={}
    )
    assert "1 or 2 seeds" in lone["reason"]
    assert compared(found, model_a="ngram", model_b="dense", seeds_a=[], seeds_b=[0])


def test_accuracy_of_single_seeds_is_tested_by_mcnemar(study, found):
    row = only(found, "moe", "engram", ((1,), (1,)), name="pocket_recall_many", metric="acc",
               slice={"domain": "context"})  # fmt: skip
    (table,) = [t for t in load_scores(study).tables if t.name == "pocket_recall_many"]
    a, b = (table.metrics["acc"].tops[(m, 1)] for m in ("moe", "engram"))
    wins, losses = int((b > a).sum()), int((b < a).sum())
    assert row["p"] == pytest.approx(scipy_stats.binomtest(wins, wins + losses).pvalue)
    assert row["test"] == "exact McNemar over items"


def test_uninformative_tasks_are_marked_and_kept_out_of_domains_and_families(found):
    for task in UNINFORMATIVE:
        rows = compared(found, name=task)
        assert rows and all(row["informative"] is False for row in rows)
        assert all("above chance" in row["reason"] and row["p_adjusted"] is None for row in rows)
    domains = {row["slice"]["domain"] for row in compared(found, name="tasks")}
    assert domains == {"knowledge", "code", "context"}


def test_p_values_are_corrected_within_a_pairing_and_metric(found):
    pooled = [
        row
        for row in compared(found, model_a="moe", model_b="engram", metric="bits_per_byte")
        if row["seeds_a"] == [0, 1] and set(row["slice"]) <= {"domain"}
    ]
    texts = compared(pooled, name="heldout")
    tasks = [row for row in pooled if row["informative"]]
    assert (len(texts), len(tasks)) == (3, 3)
    for family in (texts, tasks):
        assert [r["p_adjusted"] for r in family] == pytest.approx(
            list(holm([r["p"] for r in family]))
        )


def test_analysis_is_deterministic_and_ignores_what_did_not_finish(study, tmp_path):
    before = (study / "comparisons.jsonl").read_bytes()
    assert analyze(study).read_bytes() == before
    stages = json.loads((study / "stages.json").read_text())
    kept = [
        s | {"status": "failed"} if s["label"] == "evaluate engram seed 1" else s for s in stages
    ]
    write_json(study / "stages.json", kept)
    rows = list(read_jsonl(analyze(study)))
    write_json(study / "stages.json", stages)
    assert analyze(study).read_bytes() == before
    assert only(
        rows, "moe", "engram", ((0, 1), (0,)), name="heldout", metric="bits_per_byte", slice={}
    )


def planted(folder, seeds=(0, 1, 2), gain=0.3, items=80, drop=(), beside=(), seeds_b=None):
    """Write a study of models a and b; b is right on more items, by ``gain`` in probability.

    ``beside`` are names of models with a memory beside them, right on nine of ten; ``seeds_b`` are
    those of b, where they are not a's.
    """
    rng = np.random.default_rng(0)
    stages, rows = [], []
    for model, share in (("a", 0.4), ("b", 0.4 + gain), *((name, 0.9) for name in beside)):
        for seed in seeds_b if model == "b" and seeds_b else seeds:
            right = rng.random(items) < share
            samples = [
                {"doc_id": i, "doc": {"id": f"q{i}", "slices": None}, "doc_hash": "0",
                 "acc": float(hit), "bits_per_byte": [-4.0, 4]}
                for i, hit in enumerate(right)
            ]  # fmt: skip
            place = f"store/{model}{seed}"
            kept = [{k: v for k, v in sample.items() if k not in drop} for sample in samples]
            write_jsonl(folder / place / "samples" / "quiz.jsonl", kept)
            kind = "baseline" if model in beside else "evaluate"
            stages.append({"stage": kind, "status": "ok", "model": model, "seed": seed,
                           "folder": place})  # fmt: skip
            rows.append(MetricRow("quiz", "acc", float(right.mean()), model=model, seed=seed,
                                  stage="evaluate", split="test", slice={"domain": "code"},
                                  baseline=0.25, n=items))  # fmt: skip
    models = [{"name": "a"}, {"name": "b"}]
    write_json(folder / "study.json", {"models": models, "baselines": list(beside)})
    write_json(folder / "stages.json", stages)
    write_jsonl(folder / "metrics.jsonl", map(row_to_dict, rows))
    return rows


def scores_of(rows, model):
    return [r.value for r in rows if r.model == model]


def quiz_over_seeds(folder):
    found = compared(read_jsonl(analyze(folder)), units="seeds", name="quiz", metric="acc")
    return {(row["model_a"], row["model_b"]): row for row in found}


def test_three_seeds_bear_the_paired_test(tmp_path):
    rows = planted(tmp_path)
    row = quiz_over_seeds(tmp_path)["a", "b"]
    truth = scipy_stats.ttest_rel(scores_of(rows, "b"), scores_of(rows, "a"))
    bounds = truth.confidence_interval(0.95)
    gain = np.mean(scores_of(rows, "b")) - np.mean(scores_of(rows, "a"))
    assert (row["effect"], row["p"]) == pytest.approx((gain, truth.pvalue))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((bounds.low, bounds.high))
    assert row["n"] == 6


def test_trainings_without_common_seeds_bear_welchs_test(tmp_path):
    rows = planted(tmp_path, seeds_b=(3, 4, 5, 6))
    row = quiz_over_seeds(tmp_path)["a", "b"]
    a, b = scores_of(rows, "a"), scores_of(rows, "b")
    truth = scipy_stats.ttest_ind(b, a, equal_var=False)
    assert (row["effect"], row["p"]) == pytest.approx((np.mean(b) - np.mean(a), truth.pvalue))
    assert (row["test"], row["n"]) == ("Welch's t-test over seeds", 7)


def test_a_memory_beside_a_model_is_compared_seed_by_seed_and_tells_no_spread(tmp_path):
    rows = planted(tmp_path, beside=("a+ngram",))
    found = list(read_jsonl(analyze(tmp_path)))
    quiz = {(r["model_a"], r["model_b"]): r for r in compared(found, units="seeds", metric="acc")
            if r["name"] == "quiz"}  # fmt: skip
    assert quiz["a", "b"]["test"].endswith("over 2 models")
    a, mixed = (scores_of(rows, model) for model in ("a", "a+ngram"))
    truth = scipy_stats.ttest_rel(mixed, a)
    row = quiz[tuple(sorted(("a+ngram", "a"), key=["a+ngram", "a", "b"].index))]
    sign = 1 if row["model_b"] == "a+ngram" else -1
    assert row["p"] == pytest.approx(truth.pvalue) and "each seed" in row["test"]
    assert sign * row["effect"] == pytest.approx(np.mean(mixed) - np.mean(a))


def test_constant_scores_bear_no_seed_test(tmp_path):
    planted(tmp_path)
    found = list(read_jsonl(analyze(tmp_path)))
    assert not compared(found, units="seeds", metric="bits_per_byte")
    row = only(
        found, "a", "b", ((0, 1, 2), (0, 1, 2)), units="items", name="quiz", metric="bits_per_byte"
    )
    assert (row["effect"], row["ci_low"], row["ci_high"], row["p"]) == (0, 0, 0, 1)


@pytest.mark.parametrize(("gain", "found_it"), [(0.4, True), (0.0, False)])
def test_planted_difference_is_found_and_noise_is_not(tmp_path, gain, found_it):
    planted(tmp_path, seeds=(0,), gain=gain)
    (row,) = compared(read_jsonl(analyze(tmp_path)), name="quiz", metric="acc")
    assert (row["p"] < 0.01 and row["ci_low"] > 0) is found_it


@pytest.mark.parametrize(("drop", "left"), [("acc", "bits_per_byte"), ("bits_per_byte", "acc")])
def test_tasks_may_lack_a_measure(tmp_path, drop, left):
    planted(tmp_path, seeds=(0,), drop=(drop,))
    assert {r["metric"] for r in compared(read_jsonl(analyze(tmp_path)), name="quiz")} == {left}


def test_different_items_are_refused(tmp_path):
    planted(tmp_path)
    path = tmp_path / "store/b1/samples/quiz.jsonl"
    write_jsonl(path, list(read_jsonl(path))[1:])
    with pytest.raises(UserError, match=r"quiz: .* scored on different items"):
        analyze(tmp_path)


def test_folder_without_stages_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no stages\.json"):
        analyze(tmp_path)


def test_slices_keep_units_aligned(study):
    (table,) = [t for t in load_scores(study).tables if t.name == "pocket_compare"]
    part = select(table, "local", "unresolved")
    assert part.labels == {"domain": "math", "local": "unresolved"}
    assert len(part.ids) == len(part.slices) == len(part.metrics["acc"].bottom) == 20
    assert select(table, "local", "no such label") is None


def test_items_of_one_source_are_resampled_together():
    rng = np.random.default_rng(0)
    sources = tuple(f"text {n}" for n in range(12) for _ in range(5))
    gain = np.repeat(rng.integers(0, 2, 12), 5).astype(float)
    table = Table(
        "made",
        {},
        "test",
        "items",
        tuple(map(str, range(60))),
        ({},) * 60,
        {"acc": Measure({("a", 0): np.zeros(60), ("b", 0): gain}, np.ones(60))},
        sources,
    )
    pairing, scores = (
        Pairing("a", "b", (0,), (0,)),
        Scores([table], {"a": (0,), "b": (0,)}, frozenset()),
    )
    (row,) = compare_table(table, [pairing], scores, {})
    salt = np.random.default_rng(int(content_hash(["made", {}]), 16))
    sums = gain.reshape(12, 5).sum(axis=1, keepdims=True)
    (expected,) = bootstrap_ratios(sums, np.full_like(sums, 5.0), salt)
    assert (row["ci_low"], row["ci_high"], row["p"]) == pytest.approx(expected[1:])
    assert row["test"] == "paired bootstrap over 12 sources of items" and row["n"] == 60
    apart = dataclasses.replace(table, sources=())
    (other,) = compare_table(apart, [pairing], Scores([apart], scores.models, frozenset()), {})
    assert other["test"] == "exact McNemar over items"
    assert row["ci_high"] - row["ci_low"] > 1.5 * (other["ci_high"] - other["ci_low"])
    # A part without shared sources is as good as single items; joined parts keep theirs apart.
    keep = np.arange(60) % 5 == 0
    assert table.rows(keep, {}).sources == ()
    assert len(set(Table.joined("all", [table, apart], {}).sources)) == 12 + 60


def test_items_name_what_they_were_made_from():
    def sample(**doc):
        return {"doc": doc, "doc_id": 3, "doc_hash": "abc"}

    assert source_of(sample(source="os.py")) == source_of(sample(source="os.py", passage="x"))
    assert source_of(sample(passage="long text")) != source_of(sample(passage="other"))
    assert source_of(sample(context=["A: Hi.", "B: Ho."])) == source_of(
        sample(context=["A: Hi.", "B: Ho."], q=1)
    )
    assert source_of(sample(question="?")) == "3 abc"
    # Tasks of a benchmark number their items anew; equal numbers are no common source.
    pooled = pool({task: [sample(question="?")] * 1 for task in ("anatomy", "virology")})
    assert sources_of(pooled) == ()
