"""The table of differences: who is compared with whom, and which way round."""

import dataclasses
from pathlib import Path

from engram_eval.records import MetricRow
from reports.intervals import interval_table
from reports.load import Comparison, Study


def compared(a: str, b: str, task: str = "arc", effect: float = 0.1, **more: object) -> Comparison:
    low, high = effect - 0.05, effect + 0.05
    given = {"p": 0.01, "n": 100, "units": "items", "ci_low": low, "ci_high": high, **more}
    return Comparison(a, b, task, "acc", effect, **given)  # type: ignore[arg-type]


def study(*comparisons: Comparison) -> Study:
    scores = {"moe": 0.25, "engram": 0.35, "ngram": 0.2}
    rows = [
        MetricRow(task, "acc", value, model=model, split="test")
        for task in ("arc", "piqa")
        for model, value in scores.items()
    ]
    config = {"models": [{"name": "moe"}, {"name": "engram"}]}
    return Study(Path(), config, (), tuple(rows), comparisons, (), [])


def lines(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_others_are_held_beside_the_first_model() -> None:
    found = lines(interval_table(study(compared("ngram", "moe"), compared("moe", "engram"))))
    assert found[0][:5] == ["other model", "task", "measure", "moe", "other"]
    # Against the n-gram model the first one wins by ten points, so the other is worse by as much.
    ngram, engram = found[2:]
    assert ngram[:7] == ["ngram", "arc", "accuracy, %", "25.0", "20.0", "−10.0", "−15.0 to −5.0"]
    assert engram[:7] == ["engram", "arc", "accuracy, %", "25.0", "35.0", "10.0", "5.0 to 15.0"]
    assert engram[7:] == ["0.010 (alone)", "100"]
    clear = dataclasses.replace(compared("moe", "engram"), p=1e-7)
    assert lines(interval_table(study(clear)))[2][7] == "< 0.001 (alone)"


def test_of_two_models_all_tasks_are_shown_of_more_those_that_inform() -> None:
    dull = compared("moe", "engram", "piqa", informative=False)
    assert "piqa" in interval_table(study(compared("moe", "engram"), dull))
    assert "piqa" not in interval_table(study(compared("ngram", "moe"), dull))


def test_what_is_not_about_whole_tasks_or_the_first_model_is_left_out() -> None:
    sliced = compared("moe", "engram", slice={"local": "resolved"})
    assert interval_table(study(sliced, compared("ngram", "engram"))) == ""
