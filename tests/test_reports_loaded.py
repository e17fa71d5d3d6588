"""A report on models that were trained elsewhere: their tasks answer, and nothing is uncounted."""

from dataclasses import replace
from pathlib import Path

import pytest

from engram_eval.records import MetricRow
from reports.answer import answer
from reports.blocks import Table
from reports.decode import decode
from reports.load import Comparison, Model, Study
from reports.markdown import markdown
from reports.numbers import MISSING
from reports.sections.overview import section
from reports.sections.scores import accuracy_block
from reports.summary import summary

NAMES = ("moe", "engram")


def row(name: str, metric: str, value: float, model: str, **cut: str) -> MetricRow:
    return MetricRow(name, metric, value, model=model, seed=0, slice=cut, stage="evaluate",
                     split="val" if name == "heldout" else "test")  # fmt: skip


def difference(task: str, effect: float, low: float, high: float) -> Comparison:
    return Comparison("moe", "engram", task, "acc", effect, ci_low=low, ci_high=high, p=0.238,
                      seeds_a=[0], seeds_b=[0], units="items", informative=True)  # fmt: skip


@pytest.fixture
def study() -> Study:
    rows = [row("heldout", "bits_per_byte", 1.2 - 0.1 * i, m) for i, m in enumerate(NAMES)]
    rows += [row("quiz", "acc", 0.5 + 0.08 * i, m) for i, m in enumerate(NAMES)]
    models = [{"name": name, "seeds": [0], "path": f"/models/{name}"} for name in NAMES]
    config = {"name": "compare", "scale": "loaded", "models": models}
    found = (difference("quiz", 0.08, -0.05, 0.21),)
    known = tuple(Model(name, [0]) for name in NAMES)
    return Study(Path("runs/compare"), config, known, tuple(rows), found, (), [], ())


def test_the_tasks_that_were_asked_for_are_answered(study: Study) -> None:
    told = answer(study)
    assert told.text == (
        "Overall engram predicts held-out text better than moe: 1.100 against 1.200 bits per byte "
        "on all text. On quiz, the accuracy of engram differs from that of moe by +8.0 percentage "
        "points (95 % interval over items: −5.0 to +21.0)."
    )
    assert told.scale.startswith("This holds of these trained models alone")
    assert "loaded" not in told.scale and "seed" not in told.scale
    more = (*study.comparisons, difference("test", 0.2, 0.1, 0.3))
    assert (
        "Of 2 informative tasks, engram answers more items rightly than moe in 1 and fewer in 0; "
        "in 1 the interval over items spans no difference."
        in answer(replace(study, comparisons=more)).text
    )
    silent = replace(study.comparisons[0], informative=False)
    assert answer(replace(study, comparisons=(silent,))).text.endswith(
        "No clear difference: no task tells engram and moe apart."
    )


def test_one_seed_each_is_told_by_its_interval(study: Study) -> None:
    rows = [r for r in study.rows if r.metric == "acc"]
    assert accuracy_block(study, rows).finding.startswith("On quiz, the accuracy of engram differs")
    assert "Every seed" not in accuracy_block(study, rows).finding
    again = [*rows, *(replace(r, seed=1) for r in rows)]
    assert "Every seed of engram" in accuracy_block(study, again).finding


def test_a_ledger_of_nothing_is_left_out(study: Study) -> None:
    assert [item.ident for item in section(study).items] == ["heldout-by-domain"]
    counted = replace(study.models[0], params_total=1e6)
    known = section(replace(study, models=(counted, study.models[1])))
    assert [item.ident for item in known.items] == ["heldout-by-domain", "ledger"]


def test_parameters_stand_in_report_table_and_summary_with_what_is_not_known(study: Study) -> None:
    """Nothing that could not be counted is shown as a number."""
    why = {"params_table": "no part 'layers'", "params_active": "no part 'layers'"}
    costs = {"seeds": [0], "loaded": True}
    moe = decode(Model, {"name": "moe", "params_total": 4_462_000, "uncounted": why, **costs})
    counts = {"params_total": 4_460_000, "params_active": 1_234_000, "params_table": 680_000}
    known = replace(study, models=(moe, decode(Model, {"name": "engram", **counts, **costs})))
    (table,) = (item for item in section(known).items if isinstance(item, Table))
    cells = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert cells["Parameters"] == ["4.46 M", "4.46 M"]
    assert cells["… active per token"] == [MISSING, "1.23 M"]
    assert cells["… in the memory table"] == [MISSING, "680 k"]
    note = "Parameters that could not be counted: moe, in the table and active (no part 'layers')."
    assert table.note == note
    told = summary(known)
    assert told["models"]["engram"]["params_active"] == 1_234_000
    assert told["models"]["moe"]["params_active"] is None
    assert told["models"]["moe"]["uncounted"] == why
    lines = markdown(told).splitlines()
    assert f"| ... active per token | {MISSING} | 1.23 M |" in lines and lines[-1] == note
