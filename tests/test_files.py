import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_eval.errors import UserError
from engram_eval.files import (
    canonical_json,
    content_hash,
    file_sha256,
    read_jsonl,
    write_atomic,
    write_json,
    write_jsonl,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON)
def test_equal_values_have_equal_hashes(value: object) -> None:
    again = json.loads(canonical_json(value))
    assert content_hash(again) == content_hash(value)


def test_key_order_does_not_change_a_hash_but_values_do() -> None:
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": math.nan})
    with pytest.raises(TypeError):
        write_atomic(path, 3)  # type: ignore[arg-type]
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_known_hash(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x").startswith("ba7816bf8f01cfea")


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}])
    assert list(read_jsonl(path)) == [{"a": 1}]
    path.write_text('{"a": 1}\nnot json\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: not JSON"):
        list(read_jsonl(path))
