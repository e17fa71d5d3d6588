"""A checkpoint is chosen for its loss, and what is found there says so."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from probes_fixture import engram, llama, small_corpus

from engram_eval.config import EvalConfig, ProbeConfig
from engram_eval.errors import UserError
from engram_eval.evaluation.stage import evaluate, evaluate_equal_loss
from engram_eval.files import write_jsonl
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow, row_to_dict
from engram_eval.stage_config import EqualLossScores, EqualLossStage, PairStage, ProbeStage
from engram_eval.studies.registry import find_study
from engram_eval.study import graph, solve
from engram_eval.training.equal_loss import equal_loss, losses, nearest
from probes.stage import probe, probe_pair

QUIET = Reporter(quiet=True)
OPTIONS = ProbeConfig(tokens=256, seq_len=32)


@given(st.lists(st.floats(0, 9), min_size=1, max_size=6), st.floats(0, 9))
def test_nearest_is_the_nearest(values: list[float], goal: float) -> None:
    steps = {10 * (i + 1): value for i, value in enumerate(values)}
    found = nearest(steps, goal)
    assert abs(found.loss_nats - goal) == min(abs(value - goal) for value in values)
    assert found.loss_nats == steps[found.step]
    assert found.last == (found.step == max(steps))


def test_of_two_equally_near_the_later_one() -> None:
    assert nearest({1: 3.0, 2: 2.0, 3: 2.0}, 2.5).step == 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two trainings of two checkpoints each; the memory model is better from the first on."""
    folder = tmp_path_factory.mktemp("equal")
    corpus = small_corpus(folder)
    found = {"corpus": corpus.folder}
    for name, make, curve in (("good", engram, (2.0, 1.0)), ("bad", llama, (3.0, 2.1))):
        found[name] = folder / name
        for step in (1, 2):
            place = folder / name / "checkpoints" / f"{step:06d}"
            make(vocab_size=corpus.vocab_size, seed=step).save_pretrained(place)
            shutil.copy(corpus.folder / "tokenizer" / "tokenizer.json", place)
        (folder / name / "model").symlink_to("checkpoints/000002")
        rows = [
            MetricRow("train", "loss_nats", value, split="val", step=step, slice=labels)
            for step, value in enumerate(curve, start=1)
            for labels in ({}, {"domain": "code"})
        ]
        write_jsonl(folder / name / "validation.jsonl", map(row_to_dict, rows))
    return found


def choose(trained: dict[str, Path], name: str, by: str, out: Path) -> list[MetricRow]:
    out.mkdir()
    inputs = {"train": trained[name], "reference": trained[by]}
    return equal_loss(inputs, EqualLossStage({"model": by, "seed": 0}), 0, out, QUIET)


def test_the_better_model_is_met_early_and_the_worse_one_at_its_end(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    (row,) = choose(trained, "good", "bad", tmp_path / "a")
    assert (row.step, row.value, row.baseline) == (1, 2.0, 2.1)
    assert (tmp_path / "a/model").resolve() == (trained["good"] / "checkpoints/000001").resolve()
    (row,) = choose(trained, "bad", "good", tmp_path / "b")
    assert (row.step, row.value, row.baseline) == (2, 2.1, 1.0)


def test_probes_read_the_chosen_weights_and_say_so(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    choose(trained, "good", "bad", tmp_path / "a")
    choose(trained, "bad", "good", tmp_path / "b")
    stage = ProbeStage("logit_lens", OPTIONS, {"model": "moe", "seed": 1})
    text = {"corpus": trained["corpus"]}
    rows = probe({**text, "train": tmp_path / "a"}, stage, 0, tmp_path, QUIET)
    assert {row.step for row in rows} == {1}
    assert all(row.other == {"model": "moe", "seed": 1} for row in rows)
    plain = probe(
        {**text, "train": trained["good"]}, ProbeStage("logit_lens", OPTIONS), 0, tmp_path, QUIET
    )
    assert {row.step for row in plain} == {None}
    assert [r.value for r in plain] != [r.value for r in rows]
    # At its end the worse model has been probed already.
    assert probe({**text, "train": tmp_path / "b"}, stage, 0, tmp_path, QUIET) == []
    pair = PairStage("cka", OPTIONS, {"model": "engram", "seed": 0}, equal_loss=True)
    rows = probe_pair({**text, "a": trained["bad"], "b": tmp_path / "a"}, pair, 0, tmp_path, QUIET)
    assert {row.step for row in rows} == {1}
    assert (
        probe_pair({**text, "a": tmp_path / "b", "b": trained["good"]}, pair, 0, tmp_path, QUIET)
        == []
    )


def test_the_chosen_weights_are_scored_and_say_so(trained: dict[str, Path], tmp_path: Path) -> None:
    choose(trained, "good", "bad", tmp_path / "a")
    choose(trained, "bad", "good", tmp_path / "b")
    config = EvalConfig(tasks=(), seq_len=32, heldout_sequences=4)
    text = {"corpus": trained["corpus"]}

    def scored(name: str) -> list[MetricRow]:
        stage = EqualLossScores(config, {"model": "moe", "seed": 1})
        inputs = {**text, "train": tmp_path / name}
        return evaluate_equal_loss(inputs, stage, 0, tmp_path / f"{name} scores", QUIET)

    (loss,) = [row for row in scored("a") if row.metric == "loss_nats" and not row.slice]
    assert (loss.condition, loss.step, loss.other) == ("equal_loss", 1, {"model": "moe", "seed": 1})
    early = {**text, "train": tmp_path / "early"}
    early["train"].mkdir()
    (early["train"] / "model").symlink_to(trained["good"] / "checkpoints/000001")
    plain = evaluate(early, config, 0, tmp_path / "plain", QUIET)
    assert [r.value for r in plain] == [r.value for r in scored("a")]
    # Both of two models have rows of this condition, so that they can be compared.
    assert {row.step for row in scored("b")} == {2}


def test_a_study_may_score_at_equal_loss_without_probing() -> None:
    study = dataclasses.replace(
        find_study("smoke"), scores_at_equal_loss=True, probe=ProbeConfig(probes=(), equal_loss=())
    )
    nodes = graph(solve(study))
    scores = [node for node in nodes if node.stage == "score_equal_loss"]
    met = [node for node in nodes if node.stage == "equal_loss"]
    assert [node.inputs["train"] for node in scores] == met and len(met) == 6
    assert all(set(node.inputs) == {"corpus", "items", "train"} for node in scores)
    assert scores[0].label == "score_equal_loss moe seed 0 at the loss of dense seed 0"
    assert not {"probe", "sample"} & {node.stage for node in nodes}
    assert [node.key for node in met] == [
        node.key for node in graph(solve(find_study("smoke"))) if node.stage == "equal_loss"
    ]


def test_a_training_without_losses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no validation loss"):
        losses(tmp_path)


def test_the_graph_meets_matched_models_both_ways() -> None:
    study = solve(find_study("smoke"))
    nodes = graph(study)
    met = [node for node in nodes if node.stage == "equal_loss"]
    assert not any(node.stage == "score_equal_loss" for node in nodes)
    assert {node.label for node in met} == {
        f"equal_loss {a} seed {s} at the loss of {b} seed {s}"
        for a, b in (("engram", "moe"), ("moe", "engram"))
        for s in (0, 1)
    } | {
        "equal_loss moe seed 0 at the loss of dense seed 0",
        "equal_loss dense seed 0 at the loss of moe seed 0",
    }
    labels = [node.label for node in nodes]
    assert len(set(labels)) == len(labels)
    assert "probe logit_lens engram seed 1 at the loss of moe seed 1" in labels
    pairs = [node for node in nodes if getattr(node.config, "equal_loss", False) is True]
    assert [{n.stage for n in (p.inputs["a"], p.inputs["b"])} for p in pairs] == 6 * [
        {"train", "equal_loss"}
    ]
    off = dataclasses.replace(study, probe=dataclasses.replace(study.probe, equal_loss=()))
    assert "equal_loss" not in {node.stage for node in graph(off)}
    # What a reference is called has no part in what is computed.
    assert len({node.key for node in met}) == 6
    assert json.dumps(met[0].config.other)
