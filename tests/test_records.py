import dataclasses
import json
import math

import pytest

from engram_eval.errors import UserError
from engram_eval.records import (
    METRICS,
    SCHEMA,
    MetricRow,
    StageRecord,
    read_record,
    row_from_dict,
    row_to_dict,
    sort_key,
    write_record,
)

ROW = MetricRow("heldout", "bits_per_byte", 1.5, layer=3, slice={"domain": "code"}, n=4)
RECORD = StageRecord(
    SCHEMA, "ok", None, "train", 1, "ab" * 8, {"a": 1}, {}, 0, None, {}, "cpu", "now", 1.0, (ROW,)
)


def test_a_row_survives_json() -> None:
    assert row_from_dict(json.loads(json.dumps(row_to_dict(ROW)))) == ROW


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(UserError, match="'accuracy'"):
        MetricRow("task", "accuracy", 0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(UserError, match="not finite"):
        MetricRow("task", "acc", value)


def test_a_newer_schema_and_unknown_keys_are_refused() -> None:
    with pytest.raises(UserError, match="schema 99"):
        row_from_dict({**row_to_dict(ROW), "schema": 99})
    with pytest.raises(UserError, match="'colour'"):
        row_from_dict({**row_to_dict(ROW), "colour": 1})


def test_a_record_survives_the_disk(tmp_path) -> None:
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path) == RECORD
    assert read_record(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", ["{", "{}", '{"metrics": [{}]}'])
def test_a_damaged_record_is_named(tmp_path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(UserError, match=r"record\.json: damaged"):
        read_record(tmp_path)


def test_sorting_is_total_and_numeric_on_layers() -> None:
    rows = [row_to_dict(dataclasses.replace(ROW, layer=layer)) for layer in (10, None, 2)]
    assert [row["layer"] for row in sorted(rows, key=sort_key)] == [None, 2, 10]


def test_every_metric_states_unit_and_direction() -> None:
    for name, metric in METRICS.items():
        assert metric.unit, name
        assert metric.higher_is_better in (True, False, None)
