"""What is published: small, traceable, and its verdicts follow from its own rows."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from engram_eval.claims.stored import read_verdicts
from engram_eval.claims.table import markdown
from engram_eval.claims.verdicts import write_verdicts
from engram_eval.cli import main
from engram_eval.config import StudyConfig
from engram_eval.config_json import from_dict, to_dict
from engram_eval.errors import UserError
from engram_eval.files import write_json, write_jsonl
from engram_eval.publish import (
    MOST_BYTES,
    command,
    keep_report,
    kept_rows,
    local_paths,
    publish,
    slim,
)
from engram_eval.records import row_from_dict
from engram_eval.studies.registry import find_study
from engram_eval.study import solve

ROOT = Path(__file__).resolve().parent.parent / "reports" / "published"
STUDIES = sorted(path.parent for path in ROOT.glob("*/verdicts.json"))
FOLDERS = sorted(path.parent for path in ROOT.glob("*/provenance.json"))


@pytest.mark.parametrize("folder", STUDIES, ids=lambda path: path.name)
def test_published_verdicts_follow_from_published_rows(folder: Path, tmp_path: Path) -> None:
    for name in ("study.json", "ledger.json", "metrics.jsonl"):
        shutil.copyfile(folder / name, tmp_path / name)
    write_verdicts(tmp_path)
    again, told = read_verdicts(tmp_path), read_verdicts(folder)
    assert [(e["id"], e["verdict"], e["seeds"]) for e in again] == [
        (e["id"], e["verdict"], e["seeds"]) for e in told
    ]
    for mine, theirs in zip(again, told, strict=True):
        for key in ("effect", "ci_low", "ci_high", "power"):
            # Published rows have ten digits: a bound next to 0 has fewer.
            assert mine[key] == pytest.approx(theirs[key], abs=1e-8), (mine["id"], key)
        for entry in (mine, theirs):
            assert entry["verdict"] != "inconclusive" or entry["reason"].endswith(
                f"power {entry['power']:.0%}"
            )


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_published_study_is_small_and_can_be_run_again(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MOST_BYTES
    facts = json.loads((folder / "provenance.json").read_text())
    assert facts["command"].startswith("engram-eval run ") and facts["seconds"] > 0
    assert facts["machines"] and facts["commits"] and facts["versions"]["torch"]
    study = from_dict(StudyConfig, json.loads((folder / "study.json").read_text()))
    assert find_study(str(folder)) == study and solve(study) == study
    assert not local_paths(to_dict(study))


def test_the_command_of_a_shipped_study_is_named_and_another_runs_from_its_file() -> None:
    study = to_dict(solve(find_study("placement", "tiny")))
    assert command(study) == "engram-eval run placement --scale tiny"
    for options, told in (
        ({"tune": True}, " --tune"),
        ({"n_seeds": 4}, " --seeds 4"),
        ({"n_seeds": 4, "tune": True}, " --seeds 4 --tune"),
    ):
        found = to_dict(solve(find_study("placement", "tiny", **options)))
        assert command(found) == f"engram-eval run placement --scale tiny{told}"
    other = {**study, "probe": {**study["probe"], "tokens": 64}}
    assert command(other) == "engram-eval run placement --scale tiny", "it analyses nothing"
    assert command({**study, "question": "mine"}) == "engram-eval run study.json --out runs/again"
    assert command({**study, "name": "own"}) == "engram-eval run study.json --out runs/again"


ROW = {"name": "heldout", "metric": "bits_per_byte", "slice": {}, "condition": None, "site": None,
       "layer": None, "step": None, "stage": "evaluate", "model": "moe", "seed": 0,
       "value": 1.0}  # fmt: skip


def test_rows_of_verdicts_stay_and_the_bulk_goes() -> None:
    lens = {**ROW, "name": "logit_lens", "metric": "kl_bits", "stage": "probe", "layer": 1}
    selector = {k: lens[k] for k in ("name", "metric", "slice", "condition", "site", "layer")}
    early = {**ROW, "step": 16}
    part = {"stage": "train", "slice": {"domain": "code"}}
    half, end = ({**ROW, "stage": "train", "split": "val", "step": step} for step in (8, 16))
    rows = [ROW, lens, {**lens, "layer": 2}, early, {**ROW, **part}, half, end]
    assert kept_rows(rows, [{"rows": [selector]}]) == [ROW, lens]
    control = {**lens, "condition": "memory_subtracted"}
    beside = [control, {**control, "layer": 2}, {**lens, "condition": "random_row"}]
    assert kept_rows([lens, *beside], [{"rows": [selector]}]) == [lens, control]
    bits = {**lens, "name": "linear", "metric": "code_length_bits", "slice": {"task": "entity"}}
    right = {**bits, "metric": "acc"}
    others = [{**right, "layer": 0}, {**right, "slice": {"task": "carry"}}, {**ROW, **control}]
    about = {key: bits[key] for key in selector}
    assert kept_rows([bits, right, *others], [{"rows": [about]}]) == [bits, right]
    assert kept_rows(rows, []) == [ROW]
    assert kept_rows(rows[1:], []) == [end], "what was scored at the end of training stands in"
    other = {**end, "seed": 1}
    assert kept_rows([*rows, other], []) == [ROW, end, other], "for all where it does for one"
    met = {**early, "condition": "equal_loss"}
    at_equal_loss = {**selector, "name": "heldout", "metric": "bits_per_byte", "layer": None}
    asked = [{"rows": [{**at_equal_loss, "condition": "equal_loss"}]}]
    loss = {**met, "name": "equal_loss", "metric": "loss_nats", "stage": "equal_loss"}
    assert kept_rows([early, met, loss], asked) == [met, loss], "and which loss was met"


def test_what_was_told_stays_and_whoever_was_told_needs_no_other_score() -> None:
    told = {**ROW, "name": "update", "metric": "exact_match", "stage": "update"}
    told |= {"model": "moe_people+rows", "slice": {"facts": "changed", "wording": "told"}}
    before = {**told, "condition": "before_update"}
    end = {**ROW, "model": "moe_people", "stage": "train", "split": "val", "step": 16}
    rows = [ROW, told, before, end]
    assert kept_rows(rows, [], ["moe_people"]) == [ROW, told, before], "what changed can be told"
    assert kept_rows(rows, []) == [ROW, told, before, end]
    other = {**before, "condition": "something_else"}
    assert kept_rows([ROW, other], []) == [ROW]


def test_the_bounds_of_a_text_are_kept_once() -> None:
    bound = {**ROW, "metric": "entropy_absent_bits", "slice": {"domain": "math"}}
    rows = [ROW, bound, {**ROW, "model": "engram"}, {**bound, "model": "engram"}]
    other = [{**bound, "slice": {"domain": "code"}}, {**bound, "value": 2.0}]
    assert kept_rows([*rows, *other], []) == [*rows[:3], *other]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "placement-tiny"
    solved = to_dict(solve(find_study("placement", "tiny")))
    write_json(folder / "study.json", solved)
    write_json(folder / "ledger.json", {})
    write_jsonl(folder / "metrics.jsonl", [ROW | {"schema": 1}])
    pooled = {"slice": {}, "units": "seeds", "seeds_a": [0, 1, 2], "seeds_b": [0, 1, 2]}
    single = {**pooled, "units": "items", "seeds_a": [0], "seeds_b": [0]}
    write_jsonl(folder / "comparisons.jsonl", [pooled, single])
    stage = {"stage": "train", "status": "ok", "label": "train moe seed 0",
             "device": "cpu: x", "commit": "abc",
             "versions": {"torch": "2"}, "started": "2026-01-02", "seconds": 2.4}  # fmt: skip
    later = {**stage, "label": "evaluate moe seed 0", "seconds": 0.1,
             "versions": {"torch": "2", "kernels": "compiled"}}  # fmt: skip
    failed = {**stage, "status": "failed", "label": "train moe seed 1", "started": "2026-01-03"}
    write_json(folder / "stages.json", [stage, later, failed])
    write_verdicts(folder)
    return folder


def test_publishing_keeps_findings_and_how_they_were_made(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "published"
    assert main(["publish", str(study), str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    facts = json.loads((out / "provenance.json").read_text())
    assert facts["command"] == "engram-eval run placement --scale tiny"
    assert facts["stages"] == {"ok": 2, "failed": 1}
    assert facts["versions"] == {"kernels": "not recorded; compiled", "torch": "2"}
    assert facts["unfinished"] == ["train moe seed 1"]
    assert (facts["seconds"], facts["machines"], facts["commits"]) == (2, ["cpu: x"], ["abc"])
    assert len((out / "comparisons.jsonl").read_text().splitlines()) == 1
    page = gzip.decompress((out / "report.html.gz").read_bytes()).decode()
    assert "Rendered from the records of" in page
    assert json.loads((out / "summary.json").read_text())["complete"] is False
    assert not (out / "verdicts.json").exists()  # two rows test no claim
    assert (out / "metrics.jsonl").read_text().count("null") == 0
    (study / "stages.json").unlink()
    assert main(["publish", str(study), str(out)]) == 2
    assert "no stages.json here" in capsys.readouterr().err


def test_places_on_one_machine_are_not_published(study: Path, tmp_path: Path) -> None:
    config = json.loads((study / "study.json").read_text())
    own = {"mirror": str(tmp_path / "my mirror"), "paths": [str(tmp_path / "text"), "beside.txt"]}
    config["evaluate"]["mirror"], config["corpus"]["paths"] = own.values()
    write_json(study / "study.json", config)
    out = publish(study, tmp_path / "published")
    told = json.loads((out / "study.json").read_text())
    assert told["evaluate"]["mirror"] == "my mirror"
    assert told["corpus"]["paths"] == ["text", "beside.txt"]
    page = gzip.decompress((out / "report.html.gz").read_bytes()).decode()
    assert "my mirror" in page and str(tmp_path / "my mirror") not in page


def test_a_row_keeps_what_applies() -> None:
    row = {**ROW, "artifact": {"file": "x"}}
    short = slim(row)
    assert slim({"value": 1.23456789012345, "n": 12345678901234}) == {
        "value": 1.23456789, "n": 12345678901234}  # fmt: skip
    assert short == {k: v for k, v in ROW.items() if v is not None and k != "slice"}
    assert row_from_dict(short) == row_from_dict(ROW)


def test_a_report_is_compressed_and_refused_where_it_does_not_fit(tmp_path: Path) -> None:
    packed = tmp_path / "report.html.gz"
    for _ in range(2):
        keep_report(b"x" * (MOST_BYTES + 1), packed)
        assert gzip.decompress(packed.read_bytes()) == b"x" * (MOST_BYTES + 1)
    with pytest.raises(UserError, match="bytes more than 2,000,000"):
        keep_report(os.urandom(MOST_BYTES + 1), packed)
    assert not list(tmp_path.iterdir()), "what does not fit must not look published"
    (tmp_path / "metrics.jsonl").write_bytes(b"x" * MOST_BYTES)
    with pytest.raises(UserError, match="bytes more than"):
        keep_report(b"<html>", packed)


def test_the_largest_data_stays_out_of_a_report_that_would_not_fit(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = publish(study, tmp_path / "published")
    whole = gzip.decompress((out / "report.html.gz").read_bytes()).decode()
    size = sum(path.stat().st_size for path in out.iterdir())
    monkeypatch.setattr("engram_eval.publish.MOST_BYTES", size - 100)
    publish(study, out)
    told = gzip.decompress((out / "report.html.gz").read_bytes()).decode()
    assert sum(path.stat().st_size for path in out.iterdir()) <= size - 100
    left = told.count("CSV left out of this copy")
    assert left >= 1 and "left out" not in whole
    assert told.count("base64,") == whole.count("base64,") - left > 0


def test_a_published_folder_is_drawn_as_what_it_is(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "published", tmp_path / "again.html"
    assert main(["publish", str(study), str(out)]) == 0
    assert main(["report", str(out), "--out", str(page)]) == 0
    text = page.read_text()
    assert "Not kept in this published folder" in text and "train moe seed 1" in text
    navigation = text.partition('aria-label="Sections"')[2].partition("</nav>")[0]
    assert "#method" in navigation and "#samples" not in navigation
    assert "#mechanism" not in navigation and text.count('href="#mechanism"') == 0
    assert "1 of 3 stages did not finish" in text and "stages.json" not in text
    assert main(["report", str(out), str(study), "--out", str(page)]) == 0
    assert page.read_text().count("unfinished: 1 failed of 3 stages") == 4
    (out / "provenance.json").write_text('{"seconds": "long"}')
    assert main(["report", str(out), "--out", str(page)]) == 0
    assert "provenance.json</strong>: seconds: unexpected" in page.read_text()


def test_the_markdown_table_has_a_row_per_claim(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["claims", str(study), "--markdown"]) == 0
    text = capsys.readouterr().out.strip()
    entries = read_verdicts(study)
    assert text == markdown(entries)
    assert len(text.splitlines()) == 2 + len(entries)
    assert all(entry["effect"] is None for entry in entries)
    assert text.count("| not tested | – |") == len(entries) and "inconclusive" not in text
