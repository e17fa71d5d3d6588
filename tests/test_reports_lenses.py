"""What the lens, CKA and linear sections say of their controls, and at equal loss."""

import json
from pathlib import Path
from typing import Any

import pytest
from reports_fixture import SMALL, read_metrics, write_metrics, write_study

from engram_eval.analysis.analyze import analyze
from engram_eval.records import MetricRow
from reports.blocks import Block, Note, Table
from reports.load import load_study
from reports.sections.equal_loss import _matches, _numbers
from reports.sections.mechanism import section
from reports.sections.task_knockout import task_knockout_block


def copies(rows: list[dict[str, Any]], name: str, **changes: Any) -> list[dict[str, Any]]:
    return [{**row, **changes} for row in rows if row["name"] == name]


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Block | Table]:
    folder: Path = write_study(tmp_path_factory.mktemp("runs") / "main", SMALL)
    rows = read_metrics(folder)
    lens = [r for r in copies(rows, "logit_lens") if r["metric"] == "kl_bits"]
    engram = [r for r in lens if (r["model"], r["seed"]) == ("engram", 0)]
    early = {
        **engram[0],
        "metric": "early_kl_bits",
        "slice": {},
        "layer": None,
        "site": "resid_post",
    }
    other = {"model": "moe", "seed": 0}
    met = {
        "name": "equal_loss",
        "metric": "loss_nats",
        "value": 2.31,
        "baseline": 2.34,
        "step": 256,
    }
    first = {**engram[0], "slice": {}, "layer": None, "site": None, "other": other}
    cka = next(r for r in rows if r["name"] == "cka" and r["other"])
    shift = {"metric": "aligned_shift_layers", "value": 1.5, "ci_low": 1.0, "ci_high": 2.0}
    new = [
        *(dict(row, name="tuned_lens") for row in lens),
        *(dict(row, condition="memory_subtracted", value=3.0) for row in engram),
        *(dict(row, step=256, other=other) for row in engram),
        dict(early, value=1.25),
        dict(early, value=1.75, condition="memory_subtracted"),
        dict(early, value=1.35, step=256, other=other),
        {**first, **met},
        {**cka, **shift, "layer": None, "slice": {}},
        {**cka, **shift, "layer": None, "slice": {}, "condition": "of_other", "value": -0.5},
        {**cka, "slice": {"static_in": "name_end"}},
        {
            **early,
            "name": "linear",
            "metric": "decodable_depth_layers",
            "value": 2.5,
            "slice": {"task": "next_token_kind"},
        },
        *(
            {**early, "name": "linear", "metric": "code_length_bits", "value": bits, **more}
            for bits, more in (
                (0.75, {"slice": {"task": "entity"}, "layer": 1}),
                (1.5, {"slice": {"task": "entity"}, "layer": 0}),
                (2.25, {"slice": {"task": "entity"}, "layer": 0, "condition": "control_task"}),
            )
        ),
        *(
            {**early, "name": "task_knockout", "metric": "retained", "split": "test", **more}
            for more in (
                {"condition": "memory_zeroed", "value": 0.35, "stderr": 0.1},
                {"condition": "experts_removed", "value": 0.95},
                {"condition": "memory_zeroed", "value": 0.1, "slice": {"domain": "code"}},
                {
                    "condition": "memory_zeroed",
                    "value": 0.2,
                    "slice": {"domain": "code", "task": "code_names"},
                },
            )
        ),
    ]
    deeper = [
        {**row, "model": "moe_plus2", "value": row["value"] - 0.1}
        for row in rows
        if (row["name"], row["model"], row["metric"]) == ("heldout", "moe", "bits_per_byte")
    ]
    write_metrics(folder, [*rows, *new, *deeper])
    analyze(folder)
    found = section(load_study(folder)).items
    return {item.ident: item for item in found if not isinstance(item, Note)}


def test_lenses_stand_beside_their_controls(blocks: dict[str, Block | Table]) -> None:
    assert list(blocks)[:2] == ["logit-lens", "tuned-lens"]
    finding = blocks["logit-lens"].finding
    assert "engram 1.25" in finding
    assert "engram (without the memory’s write) 1.75" in finding
    steps = {row.get("step") for row in blocks["logit-lens"].rows}
    assert steps == {None}, "what is read at equal loss is drawn apart"


def test_equal_loss_says_what_was_met(blocks: dict[str, Block | Table]) -> None:
    finding = blocks["equal-loss"].finding
    assert "engram, seed 0 at step 256 (2.31 nats per token) beside moe, seed 0" in finding
    assert "at its end (2.34)" in finding and "1.35" in finding
    assert {row["model"] for row in blocks["equal-loss"].rows} == {"moe", "engram"}


def test_many_seeds_at_equal_loss_are_told_in_one_breath() -> None:
    met = [
        MetricRow("equal_loss", "loss_nats", 2.3 + seed / 10, model="engram", seed=seed, step=4,
                  baseline=2.2, other={"model": "moe", "seed": seed})
        for seed in range(3)
    ]  # fmt: skip
    lens = [
        MetricRow("logit_lens", metric, 1.0 + row.seed, model="engram", seed=row.seed, step=4,
                  other=row.other, layer=layer, site="resid_post")
        for row in met for metric, layer in (("kl_bits", 0), ("early_kl_bits", None))
    ]  # fmt: skip
    shifts = [
        MetricRow("cka", "aligned_shift_layers", value + row.seed, model="moe", seed=row.seed,
                  step=4, condition=condition, site="resid_post",
                  other={**(row.other or {}), "model": "engram", "site": "resid_post"})
        for row in met for value, condition in ((-3.0, None), (2.0, "of_other"))
    ]  # fmt: skip
    told = _matches(met, lens)
    assert told == (
        "engram (3 seeds) at step 4 (2.30 to 2.50 nats per token) beside moe (3 seeds) "
        "at its end (2.20)."
    )
    numbers = _numbers([*lens, *shifts])
    assert "in bits: engram 2.00 (1.00 to 3.00)." in numbers
    minus = "\N{MINUS SIGN}"
    assert f"moe in engram {minus}2.00 ({minus}3.00 to {minus}1.00)" in numbers
    assert "engram in moe 3.00 (2.00 to 4.00)" in numbers


def cells(table: Table, row: int) -> list[str]:
    return [cell.text for cell in table.rows[row]]


def test_cka_quotes_its_shifts(blocks: dict[str, Block | Table]) -> None:
    assert [view.label for view in blocks["cka"].views] == ["all tokens", "last tokens of names"]
    assert cells(blocks["cka-shifts"], 0)[1:3] == ["+1.50", "+1.00 to +2.00"]
    assert cells(blocks["cka-shifts"], 0)[3:] == ["\N{MINUS SIGN}0.50", "+1.00 to +2.00"]


def test_probes_quote_accuracy_and_depth(blocks: dict[str, Block | Table]) -> None:
    table = blocks["linear-table"]
    labels = [(column.band, column.label) for column in table.columns[2:]]
    assert labels[2] == ("highest accuracy of any block, %", "engram")
    assert labels[5] == ("blocks until 90 % of it", "engram")
    rows = {row[0].text: [cell.text for cell in row] for row in table.rows}
    assert set(rows) == {"previous token kind", "next token kind"}
    assert rows["next token kind"][1] == "36.0" and rows["next token kind"][7] == "2.5"
    plain = [
        float(row["value"])
        for row in blocks["linear-probe"].rows
        if row.get("condition") is None
        and row["metric"] == "acc"
        and (row["model"], row.get("slice.task")) == ("dense", "next_token_kind")
    ]
    assert rows["next token kind"][2] == f"{100 * max(plain):.1f}"
    assert " of 2 tasks the best block" in blocks["linear-probe"].finding


def test_code_lengths_stand_beside_the_controls(blocks: dict[str, Block]) -> None:
    (view,) = [v for v in blocks["linear-probe"].views if v.label == "code length"]
    tips = view.panels[0].canvas.tips
    assert tips == ["engram, seed 0: 0.75", "engram, seed 0: 2.25"], "the shortest of each"


def test_what_is_left_of_scores_is_drawn_by_domain_and_task(blocks: dict[str, Block]) -> None:
    block = blocks["task-knock-out"]
    assert "without memory: engram 0.35" in block.finding
    assert "experts removed, memory's size: engram 0.95" in block.finding
    assert "not where knowledge lies" in block.key
    assert [view.label for view in block.views] == ["by domain", "task by task"]
    titles = [panel.title for panel in block.views[0].panels]
    assert titles == ["without memory", "experts removed, memory's size"]
    tips = block.views[0].panels[0].canvas.tips
    assert set(tips) == {"engram, seed 0, all: 0.35 ± 0.10", "engram, seed 0, code: 0.10 ± –"}


def test_a_memory_is_priced_in_blocks(blocks: dict[str, Block]) -> None:
    block = blocks["equivalent-layers"]
    assert block.finding.startswith("Blocks that a MoE would need more")
    worth = {tip.split(":")[0] for tip in block.views[0].panels[0].canvas.tips}
    assert {"engram, seed 0", "engram, seed 1", "dense, seed 0"} <= worth
    curves = block.views[1].panels[0].canvas.tips
    assert "MoE with more blocks, seed 0" in curves and "engram, seed 1" in curves


def test_where_nothing_is_above_chance_the_report_says_so(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path / "main", SMALL))
    intact = MetricRow("task_knockout", "acc", 0.25, model="moe", seed=0, baseline=0.25)
    note = task_knockout_block(study, [intact])
    assert isinstance(note, Note) and "no model scores above chance" in note.text


def test_a_probe_that_was_asked_for_and_has_no_rows_is_told_of(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "main", SMALL)
    study = json.loads((folder / "study.json").read_text())
    study["probe"] = {"probes": ["offsets", "absent"]}
    (folder / "study.json").write_text(json.dumps(study))
    assert "absent is not recorded." in " ".join(section(load_study(folder)).missing)
