import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_eval.errors import UserError
from engram_eval.records import (
    METRICS,
    SCHEMA,
    MetricRow,
    StageRecord,
    canonical_json,
    content_hash,
    file_sha256,
    read_jsonl,
    read_record,
    row_from_dict,
    row_to_dict,
    sort_key,
    write_atomic,
    write_json,
    write_jsonl,
    write_record,
)

ROW = MetricRow("heldout", "bits_per_byte", 1.5, layer=3, slice={"domain": "code"}, n=4)
RECORD = StageRecord(
    SCHEMA, "ok", None, "train", 1, "ab" * 8, {"a": 1}, {}, 0, None, {}, "cpu", "now", 1.0, (ROW,)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
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


@given(JSON)
def test_equal_values_have_equal_hashes(value: object) -> None:
    again = json.loads(canonical_json(value))
    assert content_hash(again) == content_hash(value)


def test_key_order_does_not_change_a_hash_but_values_do() -> None:
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": math.nan})
    with pytest.raises(TypeError):
        write_atomic(path, 3)  # type: ignore[arg-type]
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_known_hash(tmp_path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x").startswith("ba7816bf8f01cfea")


def test_a_bad_line_is_named(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}])
    assert list(read_jsonl(path)) == [{"a": 1}]
    path.write_text('{"a": 1}\nnot json\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: not JSON"):
        list(read_jsonl(path))


def test_sorting_is_total_and_numeric_on_layers() -> None:
    rows = [row_to_dict(dataclasses.replace(ROW, layer=layer)) for layer in (10, None, 2)]
    assert [row["layer"] for row in sorted(rows, key=sort_key)] == [None, 2, 10]


def test_every_metric_states_unit_and_direction() -> None:
    for name, metric in METRICS.items():
        assert metric.unit, name
        assert metric.higher_is_better in (True, False, None)
