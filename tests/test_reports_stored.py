"""Reports of what is no score on text: stored facts, where tables lie, facts that change."""

import json
import re
from pathlib import Path

import pytest

from engram_eval.bench.offload import STORAGES
from engram_eval.bench.offload_stage import arm_name
from engram_eval.config_json import to_dict
from engram_eval.files import write_json, write_jsonl
from engram_eval.records import MetricRow, row_to_dict
from engram_eval.running.study_folder import study_ledger
from engram_eval.studies.registry import find_study
from engram_eval.study import solve
from reports.build import build_report
from reports.load import load_study
from reports.query import heldout, told_apart


def page(folder: Path, study: str, rows: list[MetricRow]) -> str:
    solved = solve(find_study(study, "smoke"))
    write_json(folder / "study.json", to_dict(solved))
    write_json(folder / "ledger.json", study_ledger(solved))
    stage = {"stage": rows[0].name, "label": rows[0].name, "status": "ok", "config": {}}
    write_json(folder / "stages.json", [stage])
    write_jsonl(folder / "metrics.jsonl", [row_to_dict(row) for row in rows])
    write_jsonl(folder / "comparisons.jsonl", [])
    return build_report(folder, folder / "report.html").read_text()


def words(html: str) -> str:
    return " ".join(re.sub("<[^>]+>", " ", html).split())


def stored(shares: dict[str, float]) -> list[MetricRow]:
    rows = []
    for model, share in shares.items():
        for seed in range(3):
            who = {"model": model, "seed": seed}
            rows.append(MetricRow("capacity", "facts_bits", 1320.0, **who))
            for wording, part in (("trained", 1.0), ("held_out", 0.5)):
                value, labels = part * share + seed / 1000, {"wording": wording}
                rows.append(MetricRow("capacity", "stored_share", value, slice=labels, **who))
                per = value * 1320 / 1e5
                rows.append(MetricRow("capacity", "bits_per_parameter", per, slice=labels, **who))
            labels = {"wording": "trained"}
            rows.append(
                MetricRow(
                    "capacity", "stored_share", -0.3, condition="strangers", slice=labels, **who
                )
            )
    return rows


@pytest.mark.parametrize(
    ("engram", "told"),
    [
        (0.5, "engram_16x stores more facts than moe_16x: 50.0, 50.1 and 50.2 % against 40.0"),
        (0.2, "engram_16x stores fewer than moe_16x: 20.0"),
        (0.401, "No clear difference between engram_16x and moe_16x: 40.1"),
    ],
)
def test_the_first_screen_says_who_stores_more(tmp_path: Path, engram: float, told: str) -> None:
    html = page(tmp_path, "capacity", stored({"moe_16x": 0.4, "engram_16x": engram}))
    text = words(html)
    assert told in text and 'id="capacity"' in html
    assert "Stored of 1320 bits of facts, every seed: moe_16x 40.0, 40.1 and 40.2 %;" in text
    assert "asked for in a wording that was never told, " in text
    assert "against 20.0, 20.1 and 20.2 %." in text
    assert "people who do not exist" in text and "Held-out text was not scored" in text


def test_storages_stand_in_a_table_with_what_they_lose(tmp_path: Path) -> None:
    rows = []
    for name in (arm_name(each.name) for each in STORAGES):
        for seed, lost in enumerate((0.01, 0.02, 0.03)):
            who = {"model": name, "seed": seed}
            for table, size in (("1x", 4e6), ("250x", 1e9)):
                labels = {"table": table}
                rows.append(MetricRow("offload", "table_bytes", size, slice=labels, **who))
                for phase in ("prefill", "decode"):
                    labels = {"table": table, "phase": phase}
                    share = 0.0 if name == "device" else lost
                    for metric, value in (
                        ("tokens_per_s", 1e4 * (1 - share)),
                        ("ms_per_step", 12.5),
                        ("lost_share", share),
                    ):
                        rows.append(MetricRow("offload", metric, value, slice=labels, **who))
    text = words(page(tmp_path, "offload", rows))
    assert (
        "With a table of 250x the rows in host memory, fetched ahead, the model loses 1.0 to 3.0 % "
        "of its speed of reading and 1.0 to 3.0 % of its speed of writing on this machine"
    ) in text
    assert "250x, 1000.0 MB" in text and "disk_prefetch_cache" in text
    assert "Nothing was trained here." in text and "No model is recorded" not in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["answer"]["text"].startswith("With a table of 250x")


def told(way: str, seed: int, before: float, after: float) -> list[MetricRow]:
    who, rows = {"model": way, "seed": seed}, []
    for facts, wording in (("changed", "told"), ("changed", "untold"), ("unchanged", None)):
        labels = {"facts": facts, **({"wording": wording} if wording else {})}
        for value, condition in ((before, "before_update"), (after, None)):
            value += {"told": 0.0, "untold": -0.1, None: 0.05}[wording]
            fields = {"slice": labels, "condition": condition, **who}
            rows.append(MetricRow("update", "exact_match", value, **fields))
    for value, condition in ((2.0, "before_update"), (2.125, None)):
        rows.append(MetricRow("update", "bits_per_byte", value, condition=condition, **who))
    costs = (("update_seconds", 1.5), ("update_bytes", 2e6), ("update_rate", 0.03))
    return rows + [MetricRow("update", metric, value, **who) for metric, value in costs]


def test_facts_that_change_stand_beside_what_was_before(tmp_path: Path) -> None:
    rows = []
    for seed in range(3):
        rows += told("engram_people+rows", seed, 0.125, 0.5 + seed / 10)
        rows += told("ngram_added", seed, 0.125, 0.25)
    html = page(tmp_path, "memory-systems", rows)
    text = words(html)
    assert (
        "Changed facts are answered most as told by engram_people+rows (60.0 %) and most in other "
        "words by engram_people+rows (50.0 %); facts of other people go from 17.5 to "
        "30.0 % by ngram_added (middle seeds)."
    ) in text
    assert 'id="update"' in html and 'id="update-costs"' in html
    # Before and after, the spread of the seeds, what it adds to the loss, time, bytes, rate.
    assert "12.5 \u2192 60.0 50.0 to 70.0" in text and "17.5 \u2192 65.0" in text
    assert "2.125 +0.125 1.50 2.00 0.03" in text
    # What a model was told makes it no other model: the text was scored of the models alone.
    assert "against-reference" not in html


def test_models_that_are_told_lack_no_score_on_the_text_of_others(tmp_path: Path) -> None:
    rows, study = [], find_study("memory-systems", "smoke")
    for model in study.models:
        for seed in model.seeds:
            who = {"metric": "bits_per_byte", "model": model.name, "seed": seed, "split": "val"}
            rows.append(MetricRow(name="train", step=16, value=3.0, **who))
            if not model.corpus:
                rows.append(MetricRow(name="heldout", value=2.0, **who))
    page(tmp_path, "memory-systems", rows)
    read = load_study(tmp_path)
    assert told_apart(read) == {"moe_people", "engram_people"}
    assert {row.value for row in heldout(read)} == {2.0}
    lacking = [row for row in rows if (row.name, row.model) != ("heldout", "moe")]
    page(tmp_path, "memory-systems", lacking)
    assert {row.value for row in heldout(load_study(tmp_path))} == {3.0}
