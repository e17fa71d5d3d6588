"""Files that may be compressed: their kind, their rows, and damage."""

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from engram_eval.decompressed import suffixes
from engram_eval.errors import UserError
from engram_eval.evaluation.source_rows import source_rows

ROWS = b'{"a": 1}\n\n{"a": 2}\n'


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("rows.jsonl", (".jsonl", "")),
        ("rows.of.2026.CSV.GZ", (".csv", ".gz")),
        ("rows.gz", ("", ".gz")),
        ("rows.parquet.xz", ("", ".xz")),
        ("rows", ("", "")),
    ],
)
def test_kinds(name: str, found: tuple[str, str]) -> None:
    assert suffixes(Path("folder.gz") / name) == found


@pytest.mark.parametrize(
    ("ending", "compress"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)]
)
def test_rows_know_their_line(
    tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"rows.jsonl{ending}"
    path.write_bytes(compress(ROWS))
    assert list(source_rows(path)) == [({"a": 1}, f"{path}:1"), ({"a": 2}, f"{path}:3")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl.gz", gzip.compress(ROWS)[:-9], "cannot be read"),
        ("rows.jsonl.xz", lzma.compress(ROWS)[:-9], "cannot be read"),
        ("rows.jsonl", b'{"a": "\xff"}', "cannot be read .*0xff"),
        ("rows.gz", gzip.compress(ROWS), "cannot read this kind of file"),
    ],
    # Compressed bytes hold the time, and would name the case anew in each process.
    ids=["gz cut off", "xz cut off", "no UTF-8", "no kind"],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(source_rows(tmp_path / name))
