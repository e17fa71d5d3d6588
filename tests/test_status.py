"""What `engram-eval status` says of a folder, before, while and after its study runs."""

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from engram_eval.cli import main
from engram_eval.config import TrainConfig
from engram_eval.config_json import to_dict
from engram_eval.errors import UserError
from engram_eval.files import write_json, write_jsonl
from engram_eval.records import SCHEMA, StageRecord, write_record
from engram_eval.running.status import status, status_table
from engram_eval.stage_config import TrainStage

CONFIG = to_dict(TrainStage({}, TrainConfig(tokens=1000, seq_len=10, batch_size=10)))


def folder_with(tmp_path: Path, **changes: Any) -> Path:
    stage = {"label": "train moe seed 0", "folder": "../store/abc", "config": CONFIG, "key": "abc"}
    ended = {"status": "not run", "seconds": None, "error": None, **changes}
    write_json(tmp_path / "study" / "stages.json", [{**stage, **ended}])
    return tmp_path / "study"


def working(tmp_path: Path) -> Path:
    """Write what a training leaves in its folder after two of ten steps, and half a line."""
    place = tmp_path / "store" / "abc"
    step = {"loss_nats": 2.5, "gate_mean": 0.5, "rows_touched": 0.25, "collision_rate": 0.1}
    write_jsonl(place / "train.jsonl", [{"step": 1, **step}, {"step": 2, **step}])
    with open(place / "train.jsonl", "ab") as log:
        log.write(b'{"step": 3, "loss')
    write_jsonl(place / "timing.jsonl", [{"step": 2, "tokens_per_s": 12_345.6}])
    return place


def record(status_: str, error: str | None) -> StageRecord:
    state: Any = status_
    return StageRecord(
        *(SCHEMA, state, error, "train", 1, "abc", {}, {}, 0, None, {}, "cpu", "now", 7.0)
    )


def test_ended_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(tmp_path, status="ok", seconds=1.25)
    assert main(["status", str(folder)]) == 0
    assert "1.2 s  train moe seed 0" in capsys.readouterr().out
    folder = folder_with(tmp_path, status="failed", error="disk full")
    assert main(["status", str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["error"] == "disk full"
    assert main(["status", str(folder)]) == 1
    assert "disk full" in capsys.readouterr().out


def test_not_begun(tmp_path: Path) -> None:
    assert status(folder_with(tmp_path))[0]["status"] == "not run"


def test_running_and_interrupted(tmp_path: Path) -> None:
    folder, place = folder_with(tmp_path), working(tmp_path)
    with open(place / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (stage,) = status(folder)
        assert stage["status"] == "running"
        assert stage["progress"]["step"] == 2 and stage["progress"]["steps"] == 10
    line, count = status_table([stage]).splitlines()
    assert count == "0 of 1 stages are finished, 1 running"
    assert "step 2 of 10, loss 2.500, 12,346 tokens/s, gate 0.50, 25% of rows read" in line
    assert status(folder)[0]["status"] == "interrupted"


def test_a_stage_that_ended_since_the_study_was_written(tmp_path: Path) -> None:
    folder, place = folder_with(tmp_path), working(tmp_path)
    write_record(place, record("ok", None))
    assert status(folder)[0]["status"] == "ok" and status(folder)[0]["seconds"] == 7.0
    write_record(place, record("failed", "no"))
    assert status(folder)[0]["error"] == "no"


def test_a_folder_without_a_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no stages.json here"):
        status(tmp_path)
    (tmp_path / "stages.json").write_text("[")
    with pytest.raises(UserError, match=r"stages.json: damaged"):
        status(tmp_path)
