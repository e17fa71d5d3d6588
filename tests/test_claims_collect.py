"""From rows to verdicts: what claims read, where they are traced to, what the command prints."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from engram_eval.analysis.arms import PAPER_ROWS, RATE, at_the_edge
from engram_eval.claims.claim import Rows, Score
from engram_eval.claims.collect import read_table
from engram_eval.claims.registry import claims_of
from engram_eval.claims.stored import read_verdicts
from engram_eval.claims.table import BRIEF, table
from engram_eval.claims.verdicts import write_verdicts
from engram_eval.cli import main
from engram_eval.config import OF_PARTS, TrainConfig
from engram_eval.config_json import to_dict
from engram_eval.errors import UserError
from engram_eval.files import read_jsonl, write_json, write_jsonl
from engram_eval.records import MetricRow, row_to_dict
from engram_eval.studies.registry import find_study
from engram_eval.variants import VARIANTS


def rows_of(values: dict, name: str = "heldout", **fields: object) -> list[MetricRow]:
    return [
        MetricRow(name, "bits_per_byte", value, model=arm, seed=seed, **fields)
        for arm, seeds in values.items()
        for seed, value in seeds.items()
    ]


def test_scores_are_weighted_sums_of_rows() -> None:
    easy, hard = {"domain": "facts"}, {"domain": "math"}
    rows = rows_of({"a": {0: 2.0}, "b": {0: 1.0}}, slice=easy) + rows_of(
        {"a": {0: 4.0}}, slice=hard
    )
    score = Score(((1.0, Rows(slice=hard)), (-0.5, Rows(slice=easy))))
    table = read_table(rows)
    assert table.values(score) == {"a": {0: 3.0}}
    logs = table.values(dataclasses.replace(score, log=True))
    assert logs["a"][0] == pytest.approx(np.log(4) - 0.5 * np.log(2))
    with pytest.raises(UserError, match="2 rows fit"):
        read_table(rows * 2).values(score)


def test_scores_at_equal_loss_are_rows_of_their_own() -> None:
    early = {"step": 4, "other": {"model": "b", "seed": 0}}
    rows = rows_of({"a": {0: 2.0}}) + rows_of({"a": {0: 3.0}}, condition="equal_loss", **early)
    rows += rows_of({"a": {0: 9.0}}, **early)
    table = read_table(rows)
    assert table.values(Score(((1.0, Rows()),))) == {"a": {0: 2.0}}
    assert table.values(Score(((1.0, Rows(condition="equal_loss")),))) == {"a": {0: 3.0}}


def test_a_mean_over_tasks_takes_those_that_inform() -> None:
    def row(task: str, model: str, value: float) -> MetricRow:
        return MetricRow(task, "acc", value, model=model, seed=0, split="test", n=200,
                         baseline=0.25, slice={"domain": "code"}, stage="evaluate")  # fmt: skip

    rows = [row("one", "a", 0.6), row("two", "a", 0.8), row("one", "b", 0.5), row("two", "b", 0.4)]
    rows += [row("guessed", "a", 0.25), row("guessed", "b", 0.26)]
    early = [row("one", "a", 0.1), row("guessed", "a", 0.9)]
    rows += [dataclasses.replace(r, condition="equal_loss") for r in early]
    score = Score(((1.0, Rows("tasks", "acc", {"domain": "code"})),))
    found = read_table(rows).values(score)
    assert found == {"a": {0: pytest.approx(0.7)}, "b": {0: pytest.approx(0.45)}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study folder of the controls whose memory is 0.1 bits per byte better than all others."""
    rng = np.random.default_rng(10)
    arms = [model.name for model in find_study("controls", "tiny").models]
    values = {
        arm: {s: 1.3 - (0.1 if arm == "engram" else 0) + rng.normal(0, 0.002) for s in range(3)}
        for arm in arms
    }
    write_json(tmp_path / "study.json", {"name": "controls", "scale": "tiny",
                                         "models": [{"name": arm} for arm in arms],
                                         "evaluate": {"tasks": []}})  # fmt: skip
    write_json(tmp_path / "ledger.json", {arm: {"tuned": arm == "engram"} for arm in arms})
    write_jsonl(tmp_path / "metrics.jsonl", [row_to_dict(row) for row in rows_of(values)])
    return tmp_path


def test_verdicts_can_be_traced_to_rows(folder: Path) -> None:
    write_verdicts(folder)
    found = {entry["id"]: entry for entry in read_verdicts(folder)}
    assert list(found) == [c.id for c in claims_of("controls")]
    assert found["controls.random_index"]["verdict"] == "supported"
    assert found["controls.capacity_one"]["verdict"] == "reversed"
    assert found["controls.one_row_adds_nothing"]["verdict"] == "supported"
    assert found["controls.bigram"]["verdict"] == "reversed"
    assert not any(entry["tuned"] for entry in found.values())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    for entry in found.values():
        (selector,) = entry["rows"]
        for arm, seeds in entry["values"].items():
            for seed, value in seeds.items():
                fits = [
                    r["value"]
                    for r in rows
                    if r["model"] == arm
                    and r["seed"] == int(seed)
                    and all(r[k] == selector[k] for k in ("name", "metric", "slice"))
                ]
                assert fits == [value]
        for part in entry["contrasts"]:
            means = {arm: np.mean(list(v.values())) for arm, v in entry["values"].items()}
            effect = sum(w * means[arm] for arm, w in part["weights"].items())
            assert part["effect"] == pytest.approx(effect)
            assert part["ci_low"] < part["effect"] < part["ci_high"]


def test_what_is_not_trained_tells_nothing_of_the_spread_over_trainings(folder: Path) -> None:
    write_verdicts(folder)
    alone = read_verdicts(folder)
    noise = np.random.default_rng(13).normal(1, 1, 3)
    mixed = rows_of({"moe+ngram": {seed: float(value) for seed, value in enumerate(noise)}})
    rows = [*read_jsonl(folder / "metrics.jsonl"), *(row_to_dict(row) for row in mixed)]
    write_jsonl(folder / "metrics.jsonl", rows)
    write_verdicts(folder)
    assert read_verdicts(folder) == alone


PUBLIC = {
    "triviaqa": ("triviaqa_bpb", "knowledge"),
    "mmlu": ("mmlu_bpb", "knowledge"),
    "gsm8k": ("gsm8k_bpb@0", "math"),
    "humaneval": ("humaneval_bpb", "code"),
}


def test_tasks_that_tell_nobody_apart_are_the_reason(tmp_path: Path) -> None:
    study = find_study("main", "smoke")
    write_json(tmp_path / "study.json", to_dict(study))
    losses = {model.name: dict.fromkeys(range(3), 1.0) for model in study.models}
    write_jsonl(tmp_path / "metrics.jsonl", [row_to_dict(row) for row in rows_of(losses)])
    write_verdicts(tmp_path)
    told = {entry["id"]: entry["reason"] for entry in read_verdicts(tmp_path)}
    assert told["main.tasks_code"] == "no task of its domain tells models apart; power 0%"
    assert told["main.loss"] == "contrast: no spread over seeds; power 0%"


def test_a_row_without_a_value_is_no_missing_row(tmp_path: Path) -> None:
    """A share of what was gained is not defined where nothing was."""
    (claim,) = (c for c in claims_of("mechanism") if c.id == "mechanism.facts_rely_on_memory")
    rows = [
        MetricRow(r.name, r.metric, None, model="engram", seed=seed, slice=r.slice,
                  condition=r.condition, site=r.site, layer=r.layer)
        for _, r in claim.score.terms for seed in range(3)
    ]  # fmt: skip
    write_json(tmp_path / "study.json", to_dict(find_study("mechanism", "smoke")))
    write_jsonl(tmp_path / "metrics.jsonl", [row_to_dict(row) for row in rows])
    write_verdicts(tmp_path)
    told = {entry["id"]: entry["reason"] for entry in read_verdicts(tmp_path)}
    assert told[claim.id] == "engram: their rows have no value; power 0%"
    assert told["mechanism.early_lens"] == "no rows of moe, engram; power 0%"


@pytest.mark.parametrize(
    ("tasks", "asked"), [([], set()), (["triviaqa_bpb"], {"triviaqa"}), (["small"], set(PUBLIC))]
)
def test_a_claim_on_a_benchmark_is_made_where_it_is_asked(
    tmp_path: Path, tasks: list[str], asked: set[str]
) -> None:
    study = find_study("main", "smoke")
    study = dataclasses.replace(study, evaluate=dataclasses.replace(study.evaluate, tasks=tasks))
    write_json(tmp_path / "study.json", to_dict(study))
    rows = [
        row
        for task, domain in PUBLIC.values()
        for arm, better in (("moe", 0.0), ("engram", 0.5))
        for row in rows_of(
            {arm: {seed: 3 - better + better * 0.01 * (seed - 1) for seed in range(3)}},
            name=task,
            slice={"domain": domain},
        )
    ]
    write_jsonl(tmp_path / "metrics.jsonl", [row_to_dict(row) for row in rows])
    write_verdicts(tmp_path)
    told = {entry["id"].partition(".")[2]: entry for entry in read_verdicts(tmp_path)}
    assert set(told) & set(PUBLIC) == asked
    assert all(told[name]["effect"] == pytest.approx(0.5) for name in asked)


def test_claims_about_arms_that_a_study_leaves_out_are_not_made(tmp_path: Path) -> None:
    study = find_study("mechanism", "smoke", arms=("moe", "engram"))
    write_json(tmp_path / "study.json", to_dict(study))
    losses = {model.name: {seed: 1.0 + seed for seed in range(3)} for model in study.models}
    write_jsonl(tmp_path / "metrics.jsonl", [row_to_dict(row) for row in rows_of(losses)])
    write_verdicts(tmp_path)
    told = {entry["id"] for entry in read_verdicts(tmp_path)}
    asked = [c for c in claims_of("mechanism") if set(c.arms) <= {"moe", "engram"}]
    assert told == {claim.id for claim in asked} and "mechanism.early_lens" in told
    assert "mechanism.early_lens_beyond_bigram" not in told


def test_two_names_of_one_model_are_not_compared(tmp_path: Path) -> None:
    study = find_study("main", "smoke")
    moe = next(model for model in study.models if model.name == "moe")
    models = tuple(
        dataclasses.replace(
            moe if model.name == "engram" else model, name=model.name, match="dense", solved=True
        )
        for model in study.models
    )
    write_json(tmp_path / "study.json", to_dict(dataclasses.replace(study, models=models)))
    losses = {model.name: {seed: 1.0 + seed for seed in range(3)} for model in models}
    write_jsonl(tmp_path / "metrics.jsonl", [row_to_dict(row) for row in rows_of(losses)])
    write_verdicts(tmp_path)
    told = {entry["id"]: entry for entry in read_verdicts(tmp_path)}
    assert told["main.loss"]["reason"] == "moe and engram are one and the same model; power 0%"
    assert "one and the same" not in told["main.baseline"]["reason"]


def test_claims_on_domains_are_made_of_own_text_only_where_it_has_them(tmp_path: Path) -> None:
    study = find_study("main", "smoke")
    own = dataclasses.replace(study.corpus, paths=("mine.jsonl",))
    write_json(tmp_path / "study.json", to_dict(dataclasses.replace(study, corpus=own)))
    losses = {model.name: {seed: 1.0 + seed for seed in range(3)} for model in study.models}
    rows = [*rows_of(losses), *rows_of(losses, slice={"domain": "code"})]
    write_jsonl(tmp_path / "metrics.jsonl", [row_to_dict(row) for row in rows])
    write_verdicts(tmp_path)
    told = {entry["id"] for entry in read_verdicts(tmp_path)}
    assert {"main.loss", "main.baseline", "main.code", "main.tasks_code"} <= told
    assert not told & {"main.knowledge", "main.math", "main.code_as_much", "main.in_context"}


def test_a_best_rate_at_the_edge_of_what_was_tried_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = json.loads((folder / "study.json").read_text())
    names = [model["name"] for model in study["models"]]
    write_json(folder / "ledger.json", {name: {"tuned": True} for name in names})
    runs = [
        MetricRow("tune", "loss_nats", loss, model=name, split="val", slice=dict(labels))
        for name in names
        # The loss falls up to the highest rate for one arm alone.
        for loss, *labels in (
            (3.0, ("lr", "0.01"), ("table_lr_multiplier", "5")),
            (2.0, ("lr", "0.02"), ("table_lr_multiplier", "1")),
            (1.0 if name == "random_index" else 2.5, ("lr", "0.04"), ("table_lr_multiplier", "5")),
        )
    ]
    rows = [*read_jsonl(folder / "metrics.jsonl"), *(row_to_dict(row) for row in runs)]
    write_jsonl(folder / "metrics.jsonl", rows)
    write_verdicts(folder)
    for entry in read_verdicts(folder):
        touched = "random_index" in {arm for each in entry["contrasts"] for arm in each["weights"]}
        assert entry["tuned"] and entry["at_edge"] == ["random_index"] * touched
    assert main(["claims", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "tuned to the edge of what was tried" in line]
    assert told and all("controls." in line for line in told)
    assert len(told) == sum(bool(entry["at_edge"]) for entry in read_verdicts(folder))
    assert not any("untuned" in line for line in lines)


def test_rates_that_all_arms_have_in_common_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = json.loads((folder / "study.json").read_text())
    train = {"embedding_lr_multiplier": 3.0, "table_lr_multiplier": 7.0}
    untuned = {model["name"]: {"tuned": False} for model in study["models"]}

    def told(ledger: dict, **changes: object) -> list:
        write_json(folder / "study.json", {**study, "train": train, **changes})
        write_json(folder / "ledger.json", ledger)
        write_verdicts(folder)
        return [entry["lookup_rates"] for entry in read_verdicts(folder)]

    every = len(claims_of("controls"))
    assert told(untuned) == [{"embedding": 3.0, "rows": 7.0}] * every
    assert main(["claims", str(folder)]) == 0
    assert ", untuned; embeddings 3x, rows 7x" in capsys.readouterr().out
    first, *others = study["models"]
    own = {**first, "train": {"table_lr_multiplier": 1.0}}
    assert told(untuned, models=[own, *others]) == [None] * every
    assert told({name: {"tuned": True} for name in untuned}) == [None] * every
    assert all(key.endswith(RATE) for key in OF_PARTS)
    assert TrainConfig().table_lr_multiplier == PAPER_ROWS
    # As studies say it that were made before an embedding could have a rate of its own.
    train.pop("embedding_lr_multiplier")
    assert told(untuned)[0] == {"embedding": 1.0, "rows": 7.0}


@pytest.mark.parametrize(("factor", "edge"), [("25", True), ("5", False)])
def test_a_second_rate_may_be_at_its_edge_too(factor: str, edge: bool) -> None:
    runs = [("0.1", "1"), ("0.2", "5"), ("0.4", "25"), ("0.2", "25"), ("0.2", factor)]
    rows = [
        MetricRow("tune", "loss_nats", 3.0 - place, model="a", split="val",
                  slice={"lr": lr, "table_lr_multiplier": table})
        for place, (lr, table) in enumerate(runs)
    ]  # fmt: skip
    assert at_the_edge(rows) == ({"a"} if edge else set())


def test_the_command_prints_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_verdicts(folder)
    again = shutil.copytree(folder, tmp_path / "again")
    assert main(["claims", str(folder), str(again)]) == 0
    text = capsys.readouterr().out
    count = len(claims_of("controls"))
    assert f"{2 * count} claims, each at its scale only" in text
    assert "at this scale (tiny), 3 seeds, untuned" in text
    assert main(["claims", str(folder), "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) == count and all(set(BRIEF) <= set(entry) for entry in entries)


def test_the_command_prints_curves_and_effects_without_an_interval() -> None:
    curves = {"flat": 0.005, "line": 0.2, "parabola": 0.795}
    shape = {"weights": curves, "lowest": 0.58, "low": 0.4, "high": 0.7}
    entry = {
        "id": "x.b", "claim": "b", "source": "s", "published": "p", "verdict": "supported",
        "effect": 0.0, "ci_low": None, "ci_high": None, "unit": "share", "seeds": 6,
        "scale": "tiny", "tuned": True, "shape": shape,
    }  # fmt: skip
    text = table([entry, {**entry, "shape": {**shape, "lowest": None}}])
    evidence = "weights of evidence: parabola 80%, line 20%"
    assert f"{evidence}; a parabola is lowest at 0.58 (0.40 to 0.70) on the axis\n" in text
    assert f"{evidence}\n" in text and text.count("+0.0000 in every seed, share") == 2


def test_what_could_not_be_tested_is_counted_apart(folder: Path) -> None:
    write_verdicts(folder)
    first, second, *_ = read_verdicts(folder)
    open_, none = (e | {"verdict": "inconclusive", "reason": "too few"} for e in (first, second))
    text = table([open_, none | {"effect": None}])
    assert text.endswith("2 claims, each at its scale only: 1 inconclusive, 1 not tested")
    words = [line[:13].strip() for line in text.splitlines() if "at this scale" in line]
    assert words == ["inconclusive", "not tested"]


def test_a_folder_without_verdicts_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["claims", str(tmp_path)]) == 2
    assert "no verdicts.json here; no claim could be judged" in capsys.readouterr().err
    (tmp_path / "stages.json").write_text("[]")
    assert main(["claims", str(tmp_path)]) == 2
    assert f"`engram-eval analyze {tmp_path}` writes it" in capsys.readouterr().err
    (tmp_path / "verdicts.json").write_text("[")
    assert main(["claims", str(tmp_path)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_a_study_without_verdicts_beside_others_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_verdicts(folder)
    other = folder / "other"
    other.mkdir()
    (other / "provenance.json").write_text("{}")
    assert main(["claims", str(folder), str(other)]) == 0
    told = capsys.readouterr()
    assert "controls.random_index" in told.out and f"{other}: no claim" in told.err
    assert main(["claims", str(folder), str(folder / "nowhere")]) == 2


def test_variants_that_controls_name_exist() -> None:
    names = {model.name for model in find_study("controls", "tiny").models}
    assert names - {"capacity_one_bare"} <= set(VARIANTS)
