"""The paper's four models: counted without building, beside the published numbers and by hand."""

import json

import pytest
import torch

from engram_eval.cli import main
from engram_eval.costs.paper import PAPER_MODELS, SEQ_LEN, paper_plan, paper_table
from engram_eval.costs.solver import match
from engram_eval.studies.arms import experts_kept

D, LAYERS, SPARSE = 2560, 30, 29
EXPERT = 3 * D * 1536
ATTENTION = D * 32 * 192 + D * (512 + 64) + 512 + 512 * 32 * 256 + 32 * 128 * D
HYPER = 24 * 4 * D + 24 + 3
BLOCK = ATTENTION + 2 * HYPER + 2 * D
END = 4 * 4 * D + 4 + 1 + D
VOCABULARY = 129_280 * D
MEMORY = 5 * 1280 * D + 3 * 4 * D + 4 * 4 * D


@pytest.fixture(scope="module")
def rows() -> dict[str, dict]:
    return {row["model"]: row for row in paper_plan()}


def test_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a weight is allocated")

    monkeypatch.setattr(torch.nn.Parameter, "__new__", refuse)
    assert [row["model"] for row in paper_plan()] == list(PAPER_MODELS)


@pytest.mark.parametrize("model", PAPER_MODELS)
def test_within_one_percent_of_the_published_numbers(model: str, rows: dict[str, dict]) -> None:
    row = rows[model]
    for name, stated in row["paper"].items():
        if stated and (model, name) != ("Engram-27B", "table_params"):
            assert row[name] == pytest.approx(stated, rel=0.01), name
            assert row["deviation"][name] == pytest.approx(row[name] / stated - 1)


def test_the_papers_table_size_contradicts_its_own_rows_and_share(rows: dict[str, dict]) -> None:
    row = rows["Engram-27B"]
    assert row["table_params"] == pytest.approx(2_262_400 * 80 * 16 * 2, rel=1e-3)
    assert 0.01 < row["deviation"]["table_params"] < 0.02 and row["findings"]
    assert round(row["expert_share"], 3) == row["paper"]["expert_share"] == 0.743
    idle = SPARSE * 49 * EXPERT
    assert idle / (idle + row["paper"]["table_params"]) == pytest.approx(0.746, abs=5e-4)


def test_counts_by_hand(rows: dict[str, dict]) -> None:
    dense = LAYERS * (BLOCK + 3 * D * 12_288) + END
    assert rows["Dense-4B"]["params_total_backbone"] == dense
    assert rows["Dense-4B"]["total_params"] == dense + VOCABULARY
    assert rows["Dense-4B"]["active_params"] == dense
    frame = LAYERS * BLOCK + END + 3 * D * 10_240 + SPARSE * 2 * EXPERT
    moe = frame + SPARSE * (72 * D + 72 * EXPERT)
    assert rows["MoE-27B"]["params_total_backbone"] == moe
    assert rows["MoE-27B"]["active_params"] == moe - SPARSE * 66 * EXPERT
    for name in ("Engram-27B", "Engram-40B"):
        table = rows[name]["table_params"]
        kept = frame + SPARSE * (55 * D + 55 * EXPERT) + 2 * MEMORY
        assert rows[name]["params_total_backbone"] == kept + table
        read = 2 * 16 * 80
        assert rows[name]["active_params"] == kept - SPARSE * 49 * EXPERT + read


def test_flops_are_twice_the_active_weights_and_attention(rows: dict[str, dict]) -> None:
    row = rows["Dense-4B"]
    scores = LAYERS * 2 * SEQ_LEN * 32 * (192 + 128)
    assert row["flops_per_token"] == pytest.approx(2 * row["params_active"] + scores, rel=1e-3)


def test_the_solver_finds_the_papers_engram_from_its_moe() -> None:
    moe, engram = (PAPER_MODELS[name].architecture for name in ("MoE-27B", "Engram-27B"))
    memory = {key: value for key, value in engram.items() if key.startswith("engram_")}
    kept = experts_kept(moe, 0.743)
    wish = {**moe, **memory, "engram_rows": [1, 1], "n_routed_experts": kept}
    found = match(moe, wish, SEQ_LEN)
    assert found["n_routed_experts"] == kept == 55
    assert found["engram_rows"][0] == pytest.approx(2_262_400, rel=0.01)


def test_every_assumption_is_named_and_shown(
    rows: dict[str, dict], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--paper", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(list(rows.values())))
    assert main(["plan", "--paper"]) == 0
    shown = capsys.readouterr().out
    assert shown == paper_table(list(rows.values())) + "\n"
    for row in rows.values():
        assert row["model"] in shown and row["assumptions"]
        assert all(f"  {name}: {text}" in shown for name, text in row["assumptions"].items())
        assert all(text in shown for text in row["findings"])
        assert f"{row['total_params'] / 1e9:.2f} B" in shown
