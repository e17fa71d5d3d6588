import gzip
import json
import lzma
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from engram_eval.corpus.readers import PIECE_CHARS, _pieces, open_sources, read_documents
from engram_eval.errors import UserError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def texts(*paths: Path | str) -> list[tuple[str, str]]:
    return [(d.domain, d.text) for d in read_documents(open_sources([str(p) for p in paths]))]


def jsonl(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", [".txt", ".md", ".jsonl"])
def test_every_kind_and_compression(tmp_path: Path, kind: str, suffix: str) -> None:
    raw = jsonl({"text": "één\nzwei"}) if kind == ".jsonl" else "één\r\nzwei\n".encode()
    path = tmp_path / f"my.notes{kind}{suffix}"
    path.write_bytes(COMPRESS[suffix](raw))
    assert texts(path) == [("my.notes", "één\nzwei")]


def test_records_may_name_their_domain(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + jsonl({"text": "a", "domain": "law"}) + b"\n" + jsonl({"text": "b"})
    )
    assert texts(path) == [("law", "a"), ("mixed", "b")]
    table = pyarrow.table({"text": ["c", "d"], "domain": ["law", None], "n": [1, 2]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert texts(tmp_path / "rows.parquet") == [("law", "c"), ("rows", "d")]


def test_records_may_name_their_split(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(jsonl({"text": "a", "split": "val"}, {"text": "b"}))
    assert [document.split for document in read_documents(open_sources([str(path)]))] == [
        "val",
        None,
    ]
    path.write_bytes(jsonl({"text": "a", "split": "test"}))
    with pytest.raises(UserError, match=r"mixed.jsonl:1: split 'test'; allowed: train, val"):
        texts(path)


def test_folders_are_read_in_order_and_say_what_they_ignore(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "two.md").write_text("two")
    (folder / "a.txt").write_text("one")
    (folder / "cover.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.txt").write_text("no")
    assert texts(folder) == [("books", "one"), ("books", "two")]
    assert open_sources([str(folder)])[0].ignored == ("cover.png",)


def test_sources_take_turns_by_bytes(tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_bytes(jsonl({"text": "x" * 30}, {"text": "y" * 30}))
    (tmp_path / "short.jsonl").write_bytes(jsonl(*({"text": str(i) * 10} for i in range(5))))
    order = [domain for domain, _ in texts(tmp_path / "long.jsonl", tmp_path / "short.jsonl")]
    assert order == ["long", "short", "short", "short", "long", "short", "short"]


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', r"a\.jsonl:2: no field 'text'"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1: expected an object"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl:1: field 'text' must be text"),
        ("a.jsonl", b'{"text": "x", "domain": 3}\n', r"a\.jsonl:1: field 'domain' must be text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl:1: half a character"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', r"a\.jsonl:2: not UTF-8 \(byte 0xff\)"),
        ("a.jsonl", b"", r"a\.jsonl: holds no text"),
        ("a.jsonl", b'{"text": "  "}\n', r"a\.jsonl: holds no text"),
        ("a.txt", b"", r"a\.txt: holds no text"),
        ("a.txt", b" \n\n", r"a\.txt: holds no text"),
        ("a.txt", b"one\ntwo\ncaf\xe9 x\n", r"a\.txt:3: not UTF-8 \(byte 0xe9\)"),
        ("a.txt", b"one\n" * 400_000 + b"\xff", r"a\.txt:400001: not UTF-8"),
        ("a.txt", b"one\n\xc3", r"a\.txt:2: not UTF-8 \(byte 0xc3\)"),
        ("a.txt", "zwölf".encode("utf-16"), r"a\.txt:1: not UTF-8 \(byte 0xff\)"),
        ("a.txt.gz", b"plain", r"a\.txt\.gz: cannot be read"),
        ("a.txt.gz", gzip.compress(b"x" * 99, mtime=0)[:-9], r"a\.txt\.gz: cannot be read"),
        ("a.txt.xz", lzma.compress(b"x" * 99)[:-9], r"a\.txt\.xz: cannot be read"),
        ("a.txt.zst", zstandard.compress(b"x" * 99)[:-3], r"a\.txt\.zst: cannot be read"),
        ("a.txt.zst", b"plain", r"a\.txt\.zst: cannot be read"),
        ("a.parquet", b"plain", r"a\.parquet: not a readable parquet file"),
    ],
)
def test_bad_content_is_named_with_file_and_line(
    tmp_path: Path, name: str, raw: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=message):
        texts(tmp_path / name)


def test_bad_parquet_columns(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'text'; columns: body"):
        texts(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"text": ["x", None]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: row 2: field 'text'"):
        texts(tmp_path / "b.parquet")


def test_bad_paths_are_named_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"no such file or folder \(did you mean 'notes.txt'\?\)"):
        open_sources([str(tmp_path / "notez.txt")])
    for name in ("notes.pdf", "rows.parquet.gz", "noext"):
        (tmp_path / name).write_text("x")
        with pytest.raises(UserError, match=r"cannot read this kind of file; allowed: .jsonl"):
            open_sources([str(tmp_path / name)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no text in this folder"):
        open_sources([str(tmp_path / "empty")])


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_long_texts_are_cut_without_loss(data: st.DataObject) -> None:
    """Any chunking gives the same pieces; joined again they are the text, but for blank lines."""
    line = st.sampled_from(["", "", "a line of text " * 20, "x" * 3_000, "end."])
    lines = data.draw(st.lists(line, max_size=120))
    text = "\n".join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    bounds = [0, *cuts, len(text)]
    chunks = [text[a:b] for a, b in pairwise(bounds)]
    pieces = list(_pieces(chunks))
    assert pieces == list(_pieces([text]))
    assert "".join(pieces).replace("\n", "") == text.replace("\n", "")
    assert all(len(piece) <= 5 * PIECE_CHARS for piece in pieces)


def test_a_line_without_end_is_cut_too() -> None:
    pieces = list(_pieces(["y" * (9 * PIECE_CHARS)]))
    assert [len(piece) // PIECE_CHARS for piece in pieces] == [4, 4, 1]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(jsonl({"text": "one"}, {"text": "two"}))
    (folder / "validation.jsonl").write_bytes(jsonl({"text": "three"}))
    return folder


def test_datasets_stream_by_split(dataset: Path) -> None:
    assert texts(f"hf:{dataset}") == [("dataset", "one"), ("dataset", "two")]
    assert texts(f"hf:{dataset}:default") == [("dataset", "one"), ("dataset", "two")]
    assert texts(f"hf:{dataset}::validation") == [("dataset", "three")]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:", "expected hf:<dataset>"),
        ("hf:a:b:c:d", "expected hf:<dataset>"),
        ("hf:{}::tests", "Bad split: tests"),
        ("hf:{}:big", "BuilderConfig 'big' not found"),
        ("hf:{}/nothing", "hf:.*nothing: "),
    ],
)
def test_bad_datasets(dataset: Path, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        texts(spec.format(dataset))


def test_broken_dataset_records(dataset: Path) -> None:
    (dataset / "train.jsonl").write_bytes(jsonl({"body": "one"}))
    with pytest.raises(UserError, match="row 1: no field 'text'"):
        texts(f"hf:{dataset}")
