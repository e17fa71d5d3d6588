"""Evaluation by several processes: the rows and files of one."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_tools import QUIET, small_corpus, tiny_inputs
from ranks_tools import in_ranks

from engram_eval.config import EvalConfig
from engram_eval.corpus.store import Corpus
from engram_eval.evaluation.shared_lm import parts
from engram_eval.evaluation.stage import evaluate
from engram_eval.files import read_jsonl

CONFIG = EvalConfig(
    tasks=("math_comparison",), limit=9, batch_size=8, seq_len=32, heldout_sequences=9
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("shared") / "corpus")


@pytest.fixture(scope="module")
def inputs(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return tiny_inputs(tmp_path_factory.mktemp("inputs"), corpus)


def scored(inputs: Mapping[str, Path], out: Path) -> list[tuple[Any, ...]]:
    """Evaluate in a store of its own, so that nothing is taken from another's results."""
    out.mkdir(exist_ok=True, parents=True)
    rows = evaluate(inputs, CONFIG, 0, out, QUIET)
    return [(row.name, row.metric, str(row.slice), row.n, row.value) for row in rows]


def test_every_request_and_token_is_scored_once() -> None:
    for count, world, unit in ((10, 3, 1), (2, 4, 1), (100, 3, 32), (0, 2, 1)):
        found = [list(range(count))[part] for part in parts(count, world, unit)]
        assert list(itertools.chain(*found)) == list(range(count))
        assert all(len(part) % unit == 0 for part in found if part and part[-1] != count - 1)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_processes_score_as_one_does(
    world: int, inputs: Mapping[str, Path], tmp_path: Path
) -> None:
    alone = scored(inputs, tmp_path / "alone" / "out")
    shared = in_ranks(world, scored, inputs, tmp_path / "shared" / "out")
    assert all(rows == shared[0] for rows in shared)
    assert [row[:4] for row in shared[0]] == [row[:4] for row in alone]
    values = [np.array([row[4] for row in rows], dtype=float) for rows in (shared[0], alone)]
    np.testing.assert_allclose(*values, rtol=1e-5)
    heldout = [row for row in alone if row[0] == "heldout"]
    assert heldout and [row for row in shared[0] if row[0] == "heldout"] == heldout, "to the bit"
    files = [
        list(read_jsonl(tmp_path / name / "out" / "samples" / "math_comparison.jsonl"))
        for name in ("alone", "shared")
    ]
    plain = [
        [{k: v for k, v in item.items() if isinstance(v, int | str)} for item in found]
        for found in files
    ]
    assert plain[0] == plain[1] and len(plain[0]) == 9
