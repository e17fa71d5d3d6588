"""A published study, run again from its own configuration, comes to the same verdicts."""

from pathlib import Path

import pytest

from engram_eval.claims.stored import read_verdicts
from engram_eval.cli import main

PUBLISHED = Path(__file__).parents[1] / "reports" / "published" / "placement-tiny"


@pytest.mark.slow
def test_the_same_verdicts_come_out(tmp_path: Path) -> None:
    again = tmp_path / "runs" / "again"
    study = str(PUBLISHED / "study.json")
    assert main(["run", study, "--out", str(again), "--workers", "2", "--quiet"]) == 0
    then, now = read_verdicts(PUBLISHED), read_verdicts(again)
    assert [v["id"] for v in then] == [v["id"] for v in now]
    assert {v["id"]: v["verdict"] for v in then} == {v["id"]: v["verdict"] for v in now}
    for old, new in zip(then, now, strict=True):
        # Processors round differently; what a seed teaches is the same.
        assert new["effect"] == pytest.approx(old["effect"], abs=old["ci_high"] - old["ci_low"])
