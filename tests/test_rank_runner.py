"""Stages that several processes share, where one of them fails alone."""

import dataclasses
import datetime
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ranks_tools import in_ranks

from engram_eval.parallel import loop, ranks
from engram_eval.progress import Reporter
from engram_eval.running.rank_runner import run_in_ranks
from engram_eval.studies.registry import find_study

STUDY = find_study("smoke", arms=("moe",))
STUDY = dataclasses.replace(
    STUDY,
    corpus=dataclasses.replace(STUDY.corpus, train_bytes=30_000, vocab_size=512),
    train=dataclasses.replace(STUDY.train, tokens=2048, batch_size=4, seq_len=64),
)


def run_where(failing: tuple[str, ...], out: Path) -> tuple[list[str], float]:
    """Run the training where some processes fail before its first step; return what failed."""
    ranks.ALIKE = datetime.timedelta(seconds=3)
    started = loop.train_in_parallel

    def train(*given: Any) -> Any:
        if os.environ["RANK"] in failing:
            raise OSError("the disk is gone")
        return started(*given)

    loop.train_in_parallel = train  # type: ignore[assignment]
    clock = time.monotonic()
    failed = run_in_ranks(STUDY, out, Reporter(quiet=True), ("train",), ("moe", 0))
    return [node.label for node in failed], time.monotonic() - clock


@pytest.mark.parametrize("failing", [("1",), ("0",), ("0", "1"), ()])
def test_no_process_waits_for_one_that_failed(failing: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "runs" / "two"
    found = in_ranks(2, run_where, failing, out)
    assert [labels for labels, _ in found] == [["train moe seed 0"] if failing else []] * 2
    assert (out / "models" / "moe" / "seed0").exists() != bool(failing)
    assert all(seconds < 60 for _, seconds in found)
    notes = [
        path.name for path in tmp_path.rglob("error.*") if "the disk is gone" in path.read_text()
    ]
    assert set(notes) == {{"0": "error.txt", "1": "error.1.txt"}[rank] for rank in failing}
