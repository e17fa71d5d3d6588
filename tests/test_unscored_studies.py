"""Studies that score no held-out text run from their first stage to verdicts and a report."""

import dataclasses
import json
from pathlib import Path

import pytest

from engram_eval.bench import offload
from engram_eval.claims.stored import read_verdicts
from engram_eval.corpus.store import load_corpus
from engram_eval.files import read_jsonl
from engram_eval.progress import Reporter
from engram_eval.running.runner import run_study
from engram_eval.studies.registry import find_study

QUIET = Reporter(quiet=True)


def test_arms_are_asked_about_their_own_people(tmp_path: Path) -> None:
    study = find_study("capacity", "smoke", n_seeds=1)
    wanted = ("dense_1x", "moe_1x", "moe_4x")
    models = tuple(model for model in study.models if model.name in wanted)
    train = dataclasses.replace(study.train, checkpoints=(1.0,), val_sequences=8)
    models = tuple(dataclasses.replace(m, train={"tokens": 3_200}) for m in models)
    study = dataclasses.replace(study, models=models, train=train)
    out = tmp_path / "runs" / "capacity"
    assert run_study(study, out, QUIET) == []
    rows = [row for row in read_jsonl(out / "metrics.jsonl") if row["name"] == "capacity"]
    bits = {row["model"]: row["value"] for row in rows if row["metric"] == "facts_bits"}
    people = {name: 2 * int(name.partition("_")[2].rstrip("x")) for name in wanted}
    assert bits == {name: 33.0 * count for name, count in people.items()}
    for name in wanted:
        corpus = load_corpus(out / "models" / name / "corpus")
        assert corpus.manifest["config"]["entities"]["n_entities"] == people[name]
        assert corpus.domains == ("entities",)
    assert not (out / "corpus").exists()
    stages = json.loads((out / "stages.json").read_text())
    assert sum(stage["stage"] == "corpus" for stage in stages) == 2
    assert "stored_share" in (out / "metrics.jsonl").read_text()
    assert 'id="capacity"' in (out / "report.html").read_text()


def test_storages_are_timed_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "LENGTH", 24)
    monkeypatch.setattr(offload, "DECODED", 3)
    changes = ["offload.seconds=0.1", "offload.tables=[1, 250]"]
    study = find_study("offload", "smoke", n_seeds=3, assignments=changes)
    out = tmp_path / "runs" / "offload"
    assert run_study(study, out, QUIET) == []
    found = read_verdicts(out)
    assert all(entry["effect"] is not None and entry["seeds"] == 3 for entry in found)
    page = (out / "report.html").read_text()
    assert 'id="offload"' in page and "on this machine" in page
